"""What came of a load: counts, times, and what the watched processes used for it.

Plain values with a JSON form. Times come as histograms, so that repeats and processes can be merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.load.histogram import Histogram
from benchmarks.load.plan import Load

TIMES = ("latency", "latency_sent", "first_token", "first_token_sent", "inter_token", "send_lag")


@dataclass(frozen=True, slots=True)
class GroupUse:
    """What a group of processes, children included, used while it was measured.

    Attributes:
        cpu_s: CPU time, user and system.
        rss_before_bytes: resident memory before the load began.
        rss_mean_bytes: mean of samples during the measurement.
        rss_peak_bytes: the largest of them.
    """

    cpu_s: float
    rss_before_bytes: int
    rss_mean_bytes: int
    rss_peak_bytes: int

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "cpu_s": self.cpu_s,
            "rss_before_bytes": self.rss_before_bytes,
            "rss_mean_bytes": self.rss_mean_bytes,
            "rss_peak_bytes": self.rss_peak_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One load, measured.

    Attributes:
        seconds: length of the measurement, by the clock.
        requests: answers that ended within it and were right.
        events: ``data:`` events with JSON that were read within it (chunks).
        statuses: how many answers had which status.
        errors: how many requests went wrong, and how: ``status 502``, ``connection reset``, ``no [DONE]``…
        cut: answers that were right so far and that we hung up at the end.
        open_mean: requests under way, on average.
        latency: until the end of the answer; of an open loop from when the request was *due*. What had not ended when
            the load was over is in here with the time that it had taken until then.
        latency_sent: the same from when it was sent.
        first_token, first_token_sent: until the first event, in the same two ways.
        inter_token: from one event to the next of the same stream, by reads: events that come together are 0 apart.
        send_lag: of an open loop: how much later than due a request was sent.
        groups: what the watched processes used, by name of the group.
        generator_shares: CPU time of each of our own processes by the clock: near 1 it is us whom we measured.
    """

    load: Load
    seconds: float
    requests: int
    events: int
    statuses: Mapping[int, int]
    errors: Mapping[str, int]
    cut: int
    open_mean: float
    latency: Histogram
    latency_sent: Histogram
    first_token: Histogram
    first_token_sent: Histogram
    inter_token: Histogram
    send_lag: Histogram
    groups: Mapping[str, GroupUse] = field(default_factory=dict)
    generator_shares: tuple[float, ...] = ()

    @property
    def requests_per_s(self) -> float:
        """Right answers a second."""
        return self.requests / self.seconds

    @property
    def events_per_s(self) -> float:
        """Events a second."""
        return self.events / self.seconds

    @property
    def error_count(self) -> int:
        """Requests that went wrong."""
        return sum(self.errors.values())

    @property
    def due_events_per_s(self) -> float | None:
        """Events that a paced engine was to send; ``None`` where the pace is not known."""
        if not self.load.pace_ms or not self.load.stream:
            return None
        return self.open_mean * 1000 / self.load.pace_ms

    def cpu_share(self, group: str) -> float:
        """CPU time of a group by the clock: 1 is a core."""
        return self.groups[group].cpu_s / self.seconds

    def cpu_us_per_request(self, group: str) -> float | None:
        """CPU time of a group for each right answer, in microseconds; ``None`` if there was none."""
        return self.groups[group].cpu_s / self.requests * 1e6 if self.requests else None

    def cpu_us_per_event(self, group: str) -> float | None:
        """CPU time of a group for each event, in microseconds; ``None`` if there was none."""
        return self.groups[group].cpu_s / self.events * 1e6 if self.events else None

    def requests_per_core_s(self, group: str) -> float | None:
        """Right answers for each second of a group's CPU."""
        return self.requests / self.groups[group].cpu_s if self.groups[group].cpu_s else None

    def events_per_core_s(self, group: str) -> float | None:
        """Events for each second of a group's CPU."""
        return self.events / self.groups[group].cpu_s if self.groups[group].cpu_s else None

    def bytes_per_open(self, group: str) -> float | None:
        """Resident memory that a group gained, for each request under way; ``None`` without any."""
        use = self.groups[group]
        return (use.rss_mean_bytes - use.rss_before_bytes) / self.open_mean if self.open_mean >= 1 else None

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain values, and under ``figures`` what a reader wants to see first."""
        return {
            "load": self.load.to_json(),
            "figures": self.figures(),
            "seconds": self.seconds,
            "requests": self.requests,
            "events": self.events,
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "errors": dict(self.errors),
            "cut": self.cut,
            "open_mean": self.open_mean,
            "groups": {name: use.to_json() for name, use in self.groups.items()},
            "generator_shares": list(self.generator_shares),
            "times": {name: getattr(self, name).to_json() for name in TIMES},
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Measurement:
        """The reverse of `to_json`."""
        return cls(
            load=Load.from_json(plain["load"]),
            seconds=plain["seconds"],
            requests=plain["requests"],
            events=plain["events"],
            statuses={int(status): count for status, count in plain["statuses"].items()},
            errors=dict(plain["errors"]),
            cut=plain["cut"],
            open_mean=plain["open_mean"],
            groups={name: GroupUse(**use) for name, use in plain["groups"].items()},
            generator_shares=tuple(plain["generator_shares"]),
            **{name: Histogram.from_json(plain["times"][name]) for name in TIMES},
        )

    def figures(self) -> dict[str, Any]:
        """The figures, by name; those that do not apply are left out."""
        found: dict[str, Any] = {
            "requests_per_s": self.requests_per_s,
            "events_per_s": self.events_per_s,
            "due_events_per_s": self.due_events_per_s,
            "errors": self.error_count,
            "generator_cpu_share": max(self.generator_shares, default=None),
        }
        found |= {f"{name}_ms": getattr(self, name).summary_ms() or None for name in TIMES}
        for name in self.groups:
            found |= {
                f"{name}_cpu_share": self.cpu_share(name),
                f"{name}_cpu_us_per_request": self.cpu_us_per_request(name),
                f"{name}_cpu_us_per_event": self.cpu_us_per_event(name),
                f"{name}_rss_peak_bytes": self.groups[name].rss_peak_bytes,
                f"{name}_bytes_per_open": self.bytes_per_open(name),
            }
        return {name: value for name, value in found.items() if value is not None}
