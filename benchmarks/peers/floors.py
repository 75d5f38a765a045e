"""The floors that the gateway is held to, each with what the run says about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.peers.catalog import GATEWAY, LITELLM, NGINX, SGLANG, UNMETERED
from benchmarks.peers.figures import Run, cpu_us, per_core
from benchmarks.peers.scenarios import BURST, PACED_300, PACED_800, SMALL, TTFT, Scenario
from benchmarks.results import Spread


@dataclass(frozen=True, slots=True)
class Floor:
    """One of them.

    Attributes:
        about: what is bounded, in words.
        at_least: whether `bound` is the least, or else the most.
        unit: behind the figures; a ratio has ``×``.
        value: what the run says; ``None`` where it was not measured.
        needs: the peers without which it can't be said.
        paced: the scenario, where chunks have a time at which they are due.
    """

    about: str
    at_least: bool
    bound: float
    unit: str
    value: Callable[[Run], Spread | None]
    needs: tuple[str, ...]
    paced: Scenario | None = None

    def judge(self, run: Run) -> Verdict:
        """Met or missed, by the median of the rounds."""
        spread = self.value(run)
        if spread is None:
            absent = [peer for peer in self.needs if peer in run.absent]
            return Verdict(self, None, None, 0.0, f"without {' and '.join(absent)}" if absent else "not measured", "")
        is_met = spread.median >= self.bound if self.at_least else spread.median <= self.bound
        short = (self.bound - spread.median) if self.at_least else (spread.median - self.bound)
        return Verdict(self, spread, is_met, 0.0 if is_met else short / self.bound, "", self._reached(run))

    def _reached(self, run: Run) -> str:
        """How much of what was due came through: late chunks come several at once, and cost less each."""
        if self.paced is None or not (due_per_s := self.paced.due_per_s):
            return ""
        shares = []
        for peer in self.needs:
            rate = run.spread(peer, self.paced.name, lambda cell: cell.rate_per_s)
            shares.append(f"{peer} {rate.median / due_per_s:.0%}" if rate else f"{peer} none")
        return f"; of what was due came: {', '.join(shares)}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a floor.

    Attributes:
        is_met: ``None``: nobody knows.
        missed_by: share of the bound.
        reason: why nobody knows.
        reached: what to know besides.
    """

    floor: Floor
    spread: Spread | None
    is_met: bool | None
    missed_by: float
    reason: str
    reached: str

    @property
    def text(self) -> str:
        """In words."""
        floor = self.floor
        bound = f"{'≥' if floor.at_least else '≤'} {floor.bound:,g} {floor.unit}".strip()
        if self.spread is None:
            return f"not known: {floor.about} {bound} ({self.reason})"
        median, low, high = (_short(value) for value in (self.spread.median, self.spread.low, self.spread.high))
        rounds = f"{median} ({low} to {high})"
        word = "met" if self.is_met else f"missed by {self.missed_by:.0%}"
        return f"{word}: {floor.about} {bound}: {rounds}{self.reached}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _paced(scenario: Scenario) -> tuple[Floor, ...]:
    return (
        Floor(
            f"{scenario.connections} paced streams, CPU a chunk over nginx's",
            False,
            1.5,
            "×",
            lambda run: run.ratio(scenario.name, cpu_us, GATEWAY, NGINX),
            (GATEWAY, NGINX),
            scenario,
        ),
        Floor(
            f"{scenario.connections} paced streams, chunks a CPU second",
            True,
            60_000,
            "",
            lambda run: run.spread(GATEWAY, scenario.name, per_core),
            (GATEWAY,),
            scenario,
        ),
        Floor(
            f"{scenario.connections} paced streams, chunks a CPU second over SGLang's router",
            True,
            1.4,
            "×",
            lambda run: run.ratio(scenario.name, per_core, GATEWAY, SGLANG),
            (GATEWAY, SGLANG),
            scenario,
        ),
    )


def _requests(scenario: str, about: str, other: str, label: str, bound: float) -> Floor:
    return Floor(
        f"{about}, requests a CPU second over {label}",
        True,
        bound,
        "×",
        lambda run: run.ratio(scenario, per_core, GATEWAY, other),
        (GATEWAY, other),
    )


def _price_of_money(run: Run) -> Spread | None:
    return run.compared(SMALL.name, cpu_us, GATEWAY, UNMETERED, lambda metered, free: metered - free)


FLOORS: tuple[Floor, ...] = (
    *_paced(PACED_300),
    *_paced(PACED_800),
    _requests(SMALL.name, "small answers", SGLANG, "SGLang's router", 1.5),
    _requests(SMALL.name, "small answers", NGINX, "nginx", 0.2),
    _requests(SMALL.name, "small answers", LITELLM, "LiteLLM", 100),
    _requests(BURST.name, "64-token streams at once", SGLANG, "SGLang's router", 7),
    Floor(
        "time to first token at 30 % load over direct, p50",
        False,
        0.5,
        "ms",
        lambda run: run.added_ms(TTFT.name, GATEWAY, 50),
        (GATEWAY,),
    ),
    Floor(
        "time to first token at 30 % load over direct, p99",
        False,
        3.0,
        "ms",
        lambda run: run.added_ms(TTFT.name, GATEWAY, 99),
        (GATEWAY,),
    ),
    Floor(
        "hold, settlement, journal and event, CPU a small request",
        False,
        40.0,
        "µs",
        _price_of_money,
        (GATEWAY, UNMETERED),
    ),
)
