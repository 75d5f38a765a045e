"""What one worker process has seen. It travels to the parent as JSON and is added to those of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from benchmarks.load.histogram import Histogram
from benchmarks.load.measurement import TIMES


class Tally:
    """Counts of one phase of a load.

    ``gaps`` and ``together`` (gaps of nothing) go to ``inter_token`` a few times a second: a list is what costs least
    for each read.
    """

    __slots__ = ("cut", "errors", "events", "gaps", "requests", "statuses", "times", "together")

    def __init__(self) -> None:
        self.requests = 0
        self.events = 0
        self.cut = 0
        self.together = 0
        self.statuses: Counter[int] = Counter()
        self.errors: Counter[str] = Counter()
        self.gaps: list[float] = []
        self.times = {name: Histogram() for name in TIMES}

    def fold_gaps(self) -> None:
        """Move the gaps between reads into their histogram."""
        gaps = self.times["inter_token"]
        gaps.zeros += self.together
        self.together = 0
        gaps.add_all(self.gaps)
        self.gaps.clear()

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        self.fold_gaps()
        return {
            "requests": self.requests,
            "events": self.events,
            "cut": self.cut,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "errors": dict(self.errors),
            "times": {name: times.to_json() for name, times in self.times.items()},
        }

    def merge(self, plain: Mapping[str, Any]) -> None:
        """Add what another process has seen, as its `to_json`."""
        self.requests += plain["requests"]
        self.events += plain["events"]
        self.cut += plain["cut"]
        self.statuses.update({int(status): count for status, count in plain["statuses"].items()})
        self.errors.update(plain["errors"])
        for name, times in self.times.items():
            times.merge(Histogram.from_json(plain["times"][name]))
