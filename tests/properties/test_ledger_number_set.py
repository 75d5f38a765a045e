"""A number set behaves as a set of integers does, whatever is done to it."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ledger.core.number_set import NumberSet

numbers = st.one_of(st.integers(0, 40), st.integers(1000, 1050), st.integers(2040, 2060), st.integers(0, 2**64 - 1))


@given(st.lists(st.tuples(st.booleans(), numbers)))
def test_it_is_a_set(changes: list[tuple[bool, int]]) -> None:
    """Adding, removing, asking and counting agree with Python's own set, and iteration is in order."""
    model: set[int] = set()
    mine = NumberSet()
    for adding, number in changes:
        if adding:
            assert mine.add(number) == (number not in model)
            model.add(number)
        else:
            assert mine.discard(number) == (number in model)
            model.discard(number)
        assert len(mine) == len(model)
    assert all((number in mine) == (number in model) for _, number in changes)
    # Not by iterating the numbers: one run may be long.
    assert [number for first, last in mine.runs() for number in range(first, last + 1)] == sorted(model)


@given(st.sets(numbers))
def test_runs_have_no_neighbours(wanted: set[int]) -> None:
    """Runs are as long as they can be: between two of them something is missing."""
    runs = list(NumberSet(wanted).runs())
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(runs))
    assert sum(last - first + 1 for first, last in runs) == len(wanted)


@given(st.sets(numbers), numbers, numbers)
def test_a_run_is_taken_out(wanted: set[int], one: int, other: int) -> None:
    """Taking a run out leaves exactly what was outside of it."""
    first, last = min(one, other), max(one, other)
    mine = NumberSet(wanted)
    taken = mine.take_run(first, last)
    assert list(taken) == sorted(number for number in wanted if first <= number <= last)
    assert list(mine) == sorted(number for number in wanted if not first <= number <= last)
    assert (len(taken), len(mine)) == (len(list(taken)), len(list(mine)))


@given(st.sets(numbers), st.integers(0, 3000), st.integers(0, 3000))
def test_a_run_is_put_in(wanted: set[int], one: int, other: int) -> None:
    """Putting a run in adds exactly what was missing of it."""
    first, last = min(one, other), max(one, other)
    mine = NumberSet(wanted)
    mine.add_run(first, last)
    assert list(mine) == sorted(wanted | set(range(first, last + 1)))
    assert len(mine) == len(list(mine))


@given(st.sets(numbers), st.sets(numbers))
def test_a_set_is_taken_out(wanted: set[int], less: set[int]) -> None:
    """Taking a set out leaves what only the first one had."""
    mine = NumberSet(wanted)
    mine.remove_all(NumberSet(less))
    assert list(mine) == sorted(wanted - less)
    assert len(mine) == len(wanted - less)


@given(st.sets(numbers), st.sets(numbers), numbers)
def test_union_and_first(wanted: set[int], more: set[int], start: int) -> None:
    """A union has all of both once, and the first number from a place is the smallest one there."""
    mine = NumberSet(wanted)
    mine.update(NumberSet(more))
    assert list(mine) == sorted(wanted | more)
    assert len(mine) == len(wanted | more)
    assert mine.first_from(start) == min((n for n in wanted | more if n >= start), default=None)


@given(st.sets(st.integers(0, 5000)), st.integers(0, 5000), st.integers(0, 3000))
def test_a_run_is_discarded(wanted: set[int], first: int, length: int) -> None:
    """Discarding a run says how many were there, and leaves exactly what was outside of it, over chunks too."""
    mine = NumberSet(wanted)
    inside = {number for number in wanted if first <= number <= first + length}
    assert mine.discard_run(first, first + length) == len(inside)
    assert (len(mine), list(mine)) == (len(wanted - inside), sorted(wanted - inside))
