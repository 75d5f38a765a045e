"""Durations in logarithmic buckets: cheap to add to, exact to merge, true to 0.5 %.

After the idea of HdrHistogram: a value is kept as its place on a logarithmic scale, so the memory is bounded however
long a run is, and the percentiles of several processes are those of their sum, not a mean of percentiles.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_PER_E = 100
"""Buckets per factor e: each is 1 % wide."""


class Histogram:
    """Counts of durations in seconds. Zero has a bucket of its own; the largest value is kept as it is."""

    __slots__ = ("counts", "max_s", "zeros")

    def __init__(self, durations_s: Iterable[float] = ()) -> None:
        self.counts: Counter[int] = Counter()
        self.zeros = 0
        self.max_s = 0.0
        for duration_s in durations_s:
            self.add(duration_s)

    def add(self, duration_s: float, count: int = 1) -> None:
        """Count a duration; one that is not above 0 counts as 0."""
        if duration_s <= 0:
            self.zeros += count
            return
        if duration_s > self.max_s:
            self.max_s = duration_s
        self.counts[math.floor(math.log(duration_s) * _PER_E)] += count

    def add_all(self, durations_s: Sequence[float]) -> None:
        """Count many at once, for a third of the price of `add`."""
        if not durations_s:
            return
        if min(durations_s) <= 0:
            for duration_s in durations_s:
                self.add(duration_s)
            return
        self.max_s = max(self.max_s, max(durations_s))
        # Every step is a function of C, called by another.
        self.counts.update(map(math.floor, map(float(_PER_E).__mul__, map(math.log, durations_s))))

    def merge(self, other: Histogram) -> None:
        """Add all of another."""
        self.counts.update(other.counts)
        self.zeros += other.zeros
        self.max_s = max(self.max_s, other.max_s)

    @property
    def total(self) -> int:
        """How many were counted."""
        return self.zeros + self.counts.total()

    def percentile_s(self, percent: float) -> float:
        """The duration that `percent` of all do not exceed, in seconds, within 0.5 %; NaN if there are none."""
        total = self.total
        if not total:
            return math.nan
        # The rounding keeps 99.9 % of 1000 from becoming the 1000th.
        rank = max(1, math.ceil(round(total * percent / 100, 6)))
        if rank == total:
            return self.max_s
        seen = self.zeros
        if rank <= seen:
            return 0.0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if rank <= seen:
                return min(self.max_s, math.exp((bucket + 0.5) / _PER_E))
        raise AssertionError("the rank is within the total")

    @property
    def mean_s(self) -> float:
        """The mean, within 0.5 %; NaN if there are none."""
        if not self.total:
            return math.nan
        return sum(math.exp((bucket + 0.5) / _PER_E) * count for bucket, count in self.counts.items()) / self.total

    def share_above(self, duration_s: float) -> float:
        """Which share lies above a duration, within the width of a bucket."""
        if not self.total:
            return 0.0
        edge = math.floor(math.log(duration_s) * _PER_E)
        return sum(count for bucket, count in self.counts.items() if bucket > edge) / self.total

    def summary_ms(self) -> dict[str, float]:
        """Percentiles in milliseconds; empty if there is nothing."""
        if not self.total:
            return {}
        named = {"p50": 50, "p90": 90, "p99": 99, "p99.9": 99.9, "max": 100}
        return {name: self.percentile_s(percent) * 1e3 for name, percent in named.items()}

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values."""
        counts = {str(bucket): count for bucket, count in sorted(self.counts.items())}
        return {"per_e": _PER_E, "zeros": self.zeros, "max_s": self.max_s, "counts": counts}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Histogram:
        """The reverse of `to_json`.

        Raises:
            ValueError: its buckets are of another width.
        """
        if plain["per_e"] != _PER_E:
            raise ValueError(f"Buckets of 1/{plain['per_e']} cannot be merged with those of 1/{_PER_E}.")
        made = cls()
        made.zeros, made.max_s = plain["zeros"], plain["max_s"]
        made.counts.update({int(bucket): count for bucket, count in plain["counts"].items()})
        return made

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (self.counts, self.zeros, self.max_s) == (other.counts, other.zeros, other.max_s)

    __hash__ = None  # type: ignore[assignment]  # it changes
