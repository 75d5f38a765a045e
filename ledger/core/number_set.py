"""A set of whole numbers that takes about one bit for each when they lie close together.

Floor: ledger core (pure). A journal may have millions of records that Postgres has not booked yet; what is known of
each must not cost what a Python set of integers costs (a hundred bytes a number).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BITS = 1024
"""Numbers in one chunk: an integer of 128 bytes, copied at each change."""


class NumberSet:
    """Numbers from 0 on. Adding, removing and asking cost the same however many there are."""

    __slots__ = ("_chunks", "_count")

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._chunks: dict[int, int] = {}
        self._count = 0
        for number in numbers:
            self.add(number)

    def __len__(self) -> int:
        return self._count

    def __contains__(self, number: int) -> bool:
        return bool(self._chunks.get(number // _BITS, 0) >> number % _BITS & 1)

    def __iter__(self) -> Iterator[int]:
        """Ascending."""
        for first, last in self.runs():
            yield from range(first, last + 1)

    def add(self, number: int) -> bool:
        """Put a number in. False if it was there."""
        index, bit = divmod(number, _BITS)
        chunk = self._chunks.get(index, 0)
        if chunk >> bit & 1:
            return False
        self._chunks[index] = chunk | 1 << bit
        self._count += 1
        return True

    def discard(self, number: int) -> bool:
        """Take a number out. False if it was not there."""
        index, bit = divmod(number, _BITS)
        chunk = self._chunks.get(index, 0)
        if not chunk >> bit & 1:
            return False
        self._set_chunk(index, chunk & ~(1 << bit))
        self._count -= 1
        return True

    def update(self, other: NumberSet) -> None:
        """Put in all of another set."""
        for index, chunk in other._chunks.items():
            mine = self._chunks.get(index, 0)
            self._chunks[index] = mine | chunk
            self._count += (chunk & ~mine).bit_count()

    def remove_all(self, other: NumberSet) -> None:
        """Take out all of another set."""
        for index, chunk in other._chunks.items():
            mine = self._chunks.get(index, 0)
            if mine & chunk:
                self._count -= (mine & chunk).bit_count()
                self._set_chunk(index, mine & ~chunk)

    def add_run(self, first: int, last: int) -> None:
        """Put in all numbers from ``first`` to ``last``; the time it takes grows with how far they are apart."""
        for index in range(first // _BITS, last // _BITS + 1):
            low, high = max(first - index * _BITS, 0), min(last - index * _BITS, _BITS - 1)
            mine = self._chunks.get(index, 0)
            chunk = mine | ((1 << high - low + 1) - 1) << low
            self._chunks[index] = chunk
            self._count += chunk.bit_count() - mine.bit_count()

    def take_run(self, first: int, last: int) -> NumberSet:
        """Take out all numbers from ``first`` to ``last``, however far apart, and return them as a set."""
        taken = NumberSet()
        low, high = first // _BITS, last // _BITS
        near = range(low, high + 1) if high - low < len(self._chunks) else sorted(self._chunks)
        for index in near:
            chunk = self._chunks.get(index, 0)
            if not chunk or not low <= index <= high:
                continue
            mask = (1 << _BITS) - 1
            if index == low:
                mask &= ~((1 << first % _BITS) - 1)
            if index == high:
                mask &= (1 << last % _BITS + 1) - 1
            if chunk & mask:
                taken._chunks[index] = chunk & mask
                taken._count += (chunk & mask).bit_count()
                self._set_chunk(index, chunk & ~mask)
        self._count -= taken._count
        return taken

    def discard_run(self, first: int, last: int) -> int:
        """Take out all numbers from ``first`` to ``last``; the time it takes grows with how far they are apart.

        Returns how many were there.
        """
        removed = 0
        for index in range(first // _BITS, last // _BITS + 1):
            chunk = self._chunks.get(index, 0)
            if chunk:
                low, high = max(first - index * _BITS, 0), min(last - index * _BITS, _BITS - 1)
                gone = chunk & ((1 << high - low + 1) - 1) << low
                if gone:
                    removed += gone.bit_count()
                    self._set_chunk(index, chunk ^ gone)
        self._count -= removed
        return removed

    def runs(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """The numbers from ``start`` on as runs without a hole: first and last of each, ascending."""
        open_first = open_last = -1
        for index in sorted(index for index in self._chunks if index >= start // _BITS):
            chunk, base = self._chunks[index], index * _BITS
            if base < start:
                chunk &= ~((1 << start - base) - 1)
            while chunk:
                first = (chunk & -chunk).bit_length() - 1
                beyond = chunk >> first
                length = (~beyond & (beyond + 1)).bit_length() - 1
                if base + first == open_last + 1 and open_first >= 0:
                    open_last = base + first + length - 1
                else:
                    if open_first >= 0:
                        yield open_first, open_last
                    open_first, open_last = base + first, base + first + length - 1
                chunk &= ~(((1 << length) - 1) << first)
        if open_first >= 0:
            yield open_first, open_last

    def first_from(self, start: int) -> int | None:
        """The smallest number that is not below ``start``."""
        return next((first for first, _ in self.runs(start)), None)

    def _set_chunk(self, index: int, chunk: int) -> None:
        if chunk:
            self._chunks[index] = chunk
        else:
            self._chunks.pop(index, None)
