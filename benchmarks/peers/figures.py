"""What the measurements of a run say: figures of each peer, and ratios of two of them within the same round.

Pure. A ratio is taken round by round and then the median of these, because what a machine is slow at one minute it is
for all peers of that minute.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from benchmarks.load import Measurement
from benchmarks.peers.catalog import DIRECT
from benchmarks.peers.scenarios import Scenario, Unit
from benchmarks.results import Spread

PROXY, STACK, ENGINE, WAITING = "proxy", "stack", "engine", "waiting"
"""Groups of processes: the proxy itself; all that belongs to the peer, it included; the mock engine; the peers whose
turn it is not."""

MIN_SHARE = 0.005
"""A proxy that has used less of its core has not been measured."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer under one load in one round."""

    peer: str
    scenario: Scenario
    round: int
    measurement: Measurement

    @property
    def count(self) -> int:
        """What came through: chunks or requests."""
        return self.measurement.events if self.scenario.unit is Unit.CHUNK else self.measurement.requests

    @property
    def rate_per_s(self) -> float:
        """That, by the clock."""
        return self.count / self.measurement.seconds

    @property
    def proxy_share(self) -> float | None:
        """Share of its core that the proxy used."""
        return self.measurement.cpu_share(PROXY) if PROXY in self.measurement.groups else None

    @property
    def all_share(self) -> float:
        """CPU of everything that took part, in cores: proxy, databases, engine, load generator."""
        groups = sum(self.measurement.cpu_share(name) for name in (STACK, ENGINE) if name in self.measurement.groups)
        return groups + sum(self.measurement.generator_shares)

    @property
    def cpu_us(self) -> float | None:
        """CPU of the proxy for each chunk or request, in microseconds."""
        share = self.proxy_share
        if share is None or share < MIN_SHARE or not self.count:
            return None
        return self.measurement.groups[PROXY].cpu_s / self.count * 1e6

    @property
    def per_core(self) -> float | None:
        """Chunks or requests for each second of the proxy's CPU: what one core brings."""
        cpu_us = self.cpu_us
        return 1e6 / cpu_us if cpu_us else None

    @property
    def rss_mib(self) -> float | None:
        """Largest resident memory of the proxy, in MiB."""
        use = self.measurement.groups.get(PROXY)
        return use.rss_peak_bytes / 2**20 if use else None

    def wait_ms(self, percent: float) -> float:
        """What a client waits for, in milliseconds: see `Scenario.waits_for`."""
        measured = self.measurement
        times = {"answer": measured.latency, "first token": measured.first_token, "next token": measured.inter_token}
        return times[self.scenario.waits_for].percentile_s(percent) * 1e3

    @property
    def errors(self) -> int:
        """Requests that went wrong."""
        return self.measurement.error_count


Figure = Callable[[Cell], float | None]


def cpu_us(cell: Cell) -> float | None:
    """See `Cell.cpu_us`."""
    return cell.cpu_us


def per_core(cell: Cell) -> float | None:
    """See `Cell.per_core`."""
    return cell.per_core


@dataclass(slots=True)
class Run:
    """All cells of a run.

    Attributes:
        absent: why a peer has none at all, by its name.
        gaps: why a peer has none of one scenario.
    """

    cells: list[Cell] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    gaps: dict[tuple[str, str], str] = field(default_factory=dict)

    def of(self, peer: str, scenario: str) -> list[Cell]:
        """The rounds of a peer under a load."""
        return [cell for cell in self.cells if cell.peer == peer and cell.scenario.name == scenario]

    def spread(self, peer: str, scenario: str, figure: Figure) -> Spread | None:
        """A figure over the rounds."""
        return spread_of(figure(cell) for cell in self.of(peer, scenario))

    def compared(
        self, scenario: str, figure: Figure, peer: str, other: str, how: Callable[[float, float], float]
    ) -> Spread | None:
        """How a peer's figure stands to another's, round by round; ``None`` where one of them is missing."""
        theirs = {cell.round: figure(cell) for cell in self.of(other, scenario)}
        found = []
        for cell in self.of(peer, scenario):
            ours, its = figure(cell), theirs.get(cell.round)
            if ours is not None and its is not None:
                found.append(how(ours, its))
        return spread_of(found)

    def ratio(self, scenario: str, figure: Figure, peer: str, other: str) -> Spread | None:
        """A peer's figure over another's."""
        return self.compared(scenario, figure, peer, other, lambda ours, its: ours / its if its else math.nan)

    def added_ms(self, scenario: str, peer: str, percent: float) -> Spread | None:
        """How much later than direct, at a percentile: a difference of percentiles, not that of single requests."""
        return self.compared(scenario, lambda cell: cell.wait_ms(percent), peer, DIRECT, lambda ours, its: ours - its)


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Median, lowest and highest of what is a number."""
    numbers: Sequence[float] = [value for value in values if value is not None and math.isfinite(value)]
    return Spread(statistics.median(numbers), min(numbers), max(numbers)) if numbers else None
