"""Counts and distributions in plain Python, moved into prometheus-client a few times a second.

Floor: edge. An increment of prometheus-client in multi-process mode packs into a shared file and asks for the process
id: a few microseconds, ten times a request and once a chunk. A list of ints costs a tenth of that.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from prometheus_client import Histogram


class Distribution:
    """Observations in buckets, since the last `take`.

    Args:
        bounds: upper bounds of the buckets, ascending, inclusive; beyond the last one comes one more bucket.
    """

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Note one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def take(self) -> tuple[list[int], float]:
        """The count of each bucket and the sum of all values; both begin anew."""
        taken = self._counts, self._total
        self._counts, self._total = [0] * len(self._counts), 0.0
        return taken


class BulkHistogram(Histogram):
    """A histogram that takes many observations at once."""

    def add(self, taken: tuple[list[int], float]) -> None:
        """Add what `Distribution.take` returned; the bounds must be this histogram's."""
        counts, total = taken
        if not any(counts):
            return
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)
