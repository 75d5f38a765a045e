"""Promises of the schedule by which the books are asked, for every order of deliveries, answers and pauses."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from ledger.outbox.booked_watch import MOST_PAUSE_S, BookedWatch, Unbooked

ANYWHERE = cast(Any, None)  # the shelf is only handed through


def unbooked(name: str, times_delivered: int = 1) -> Unbooked:
    return Unbooked(name, ANYWHERE, 1, times_delivered, None)


@given(st.lists(st.tuples(st.floats(0, 60), st.booleans()), min_size=1, max_size=60), st.integers(1, 5))
def test_everything_is_asked_for_until_it_is_booked(steps: list[tuple[float, bool]], at_most: int) -> None:
    """Nothing that was put in is lost, asked for before its time, or handed out twice; what is due is found."""
    watch = BookedWatch(ask_after_s=1.0, redeliver_after_s=30.0)
    now_s, open_names = 0.0, set[str]()
    for number, (pause_s, is_booked) in enumerate(steps):
        now_s += pause_s
        watch.add([unbooked(f"h{number}")], now_s)
        open_names.add(f"h{number}")
        due = watch.due(now_s, at_most)
        assert len(due) <= at_most
        assert all(item.due_at_s <= now_s for item in due)
        assert {item.hold_id for item in due} <= open_names
        assert len(due) == at_most or not watch.due(now_s, 1)
        if is_booked:
            open_names -= {item.hold_id for item in due}
        else:
            watch.back(due, now_s)
        assert len(watch) == len(open_names)
    found: list[str] = []
    while due := watch.due(now_s + 31.0, at_most):
        found += [item.hold_id for item in due]
    assert sorted(found) == sorted(open_names)
    assert len(watch) == 0


@given(st.integers(1, 40), st.floats(0.01, 3600.0))
def test_pauses_grow_and_are_bounded(times_delivered: int, redeliver_after_s: float) -> None:
    """The pause before the next delivery doubles each time, up to a bound; it is never shorter than the first."""
    watch = BookedWatch(ask_after_s=1.0, redeliver_after_s=redeliver_after_s)
    pauses = []
    for times in (times_delivered, times_delivered + 1):
        item = unbooked("h", times)
        watch.add([item], 0.0)
        pauses.append(item.again_at_s)
    assert redeliver_after_s <= pauses[0] <= pauses[1] <= max(MOST_PAUSE_S, redeliver_after_s)
    assert pauses[1] in (2 * pauses[0], max(MOST_PAUSE_S, redeliver_after_s))


@given(st.lists(st.floats(0, 10), max_size=20))
def test_haste_makes_all_of_it_due(pauses: list[float]) -> None:
    """When Redis has lost something, everything is asked for at once and may be sent again, in any state it was."""
    watch = BookedWatch(ask_after_s=1.0, redeliver_after_s=30.0)
    now_s = 0.0
    for number, pause_s in enumerate(pauses):
        now_s += pause_s
        watch.back(watch.due(now_s, 2), now_s)
        watch.add([unbooked(f"h{number}")], now_s)
    watch.hurry(now_s)
    due = watch.due(now_s, 1000)
    assert len(due) == len(pauses)
    assert all(item.again_at_s <= now_s for item in due)


def test_what_may_be_sent_again_is_asked_for_in_time() -> None:
    """A settlement is asked for at least once between the end of its pause and one question later."""
    watch = BookedWatch(ask_after_s=1.0, redeliver_after_s=30.0)
    item = unbooked("h")
    watch.add([item], 0.0)
    asked = []
    for second in range(200):
        if due := watch.due(float(second), 10):
            asked.append(second)
            watch.back(due, float(second))
    assert asked[:6] == [1, 2, 4, 8, 16, 31]
    assert {later - earlier for earlier, later in pairwise(asked[6:])} == {30}
