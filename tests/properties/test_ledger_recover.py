"""What a recovered settlement costs: properties of the pure decision."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ledger.core.recover import BookedHold, Ending, Purse, recover

nanos = st.integers(0, 2**52)
purses = st.builds(Purse, nanos, nanos)
endings = st.sampled_from(["settle", "void", "reap"])


@given(purses, endings, nanos)
def test_a_new_hold_is_charged_what_it_costs_or_all_there_is(purse: Purse, ending: Ending, price: int) -> None:
    """Charge and shortfall are the price; the charge is what leaves the purse; nothing goes below zero."""
    entry = recover(purse, None, ending, price)
    assert entry is not None
    assert entry.amount_nanos + entry.hold.shortfall_nanos == (0 if ending == "void" else price)
    total = purse.available_nanos + purse.frozen_nanos
    assert entry.purse.available_nanos + entry.purse.frozen_nanos == total - entry.amount_nanos
    assert min(entry.purse.available_nanos, entry.purse.frozen_nanos, entry.hold.shortfall_nanos) >= 0
    assert entry.hold.shortfall_nanos == 0 or entry.amount_nanos == total
    # Frozen credit goes first: available is touched only when nothing else is frozen.
    assert entry.cover_nanos == 0 or entry.purse.frozen_nanos == 0


@given(purses, nanos, nanos, endings, nanos)
def test_a_reap_is_corrected_once_to_what_was_settled(
    purse: Purse, charged: int, shortfall: int, ending: Ending, price: int
) -> None:
    """After the correction the hold costs its price, as far as there is credit, and no second correction follows."""
    entry = recover(purse, BookedHold("reap", charged, shortfall), ending, price)
    if ending == "reap":
        assert entry is None
        return
    assert entry is not None
    wanted = 0 if ending == "void" else price
    assert entry.hold.charged_nanos + entry.hold.shortfall_nanos == wanted
    assert entry.hold.charged_nanos == charged + entry.amount_nanos
    moved = entry.purse.available_nanos + entry.purse.frozen_nanos
    assert moved == purse.available_nanos + purse.frozen_nanos - entry.amount_nanos
    assert min(entry.purse.available_nanos, entry.purse.frozen_nanos) >= 0
    for again in ("settle", "void", "reap"):
        assert recover(entry.purse, entry.hold, again, price) is None


@given(purses, st.sampled_from(["settle", "void"]), nanos, endings, nanos)
def test_what_was_settled_stays(purse: Purse, kind: str, charged: int, ending: Ending, price: int) -> None:
    """Whatever is sent after a settlement or a void changes nothing."""
    assert recover(purse, BookedHold(kind, charged, 0), ending, price) is None
