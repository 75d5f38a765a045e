"""Carry out scenarios: each load as often as it says, through the gateway and, to compare, past it.

Knows nothing of tables and files; `benchmarks.results` holds what comes of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.load import Load, Measurement, Progress, Target, run
from benchmarks.load.watch import cpu_s
from benchmarks.results import DIRECT, GATEWAY, Result
from benchmarks.scenarios import SCENARIOS, Customer, Scenario
from benchmarks.stack import BenchStack

_FINDING_S, _FINDING_WARM_UP_S = 3.0, 1.0
"""How long a rate is looked for that another scenario takes a share of."""
_QUIET_SHARE, _QUIET_LOOK_S, _QUIET_WAIT_S = 0.05, 0.1, 10.0
"""A gateway that uses less than this share of a core is done with what the load before left it: streams that were hung
up, settlements. It is waited for so long at most."""
_FIRST_TOUCH = Load(name="first touch", connections=64, seconds=1, warm_up_s=0.5)
"""What a fresh gateway gets before its memory is looked at: all code is loaded then."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Somebody's gateway, of which only the address is known, and maybe its processes."""

    target: Target
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """How a load is sent.

    Attributes:
        processes: worker processes of the load generator.
        cores: which they may use.
        seconds: instead of each scenario's own.
        repeats: the same.
        progress: is told where it is.
    """

    processes: int = 1
    cores: Sequence[int] | None = None
    seconds: float | None = None
    repeats: int | None = None
    progress: Callable[[Progress], None] | None = None


class Bench:
    """Carries out scenarios one after the other, and remembers the rates that later ones take a share of."""

    def __init__(self, place: BenchStack | Deployment, way: Way) -> None:
        self._place = place
        self._way = way
        self._highest: dict[str, float] = {}

    def carry_out(self, scenario: Scenario) -> list[Result]:
        """One scenario, through the gateway and as far as it says past it.

        Raises:
            LoadFailed: the load could not be sent.
            StackError: the gateway could not be started again.
        """
        loads = list(self._loads(scenario))
        repeats = self._way.repeats or scenario.repeats
        ways = [GATEWAY, DIRECT] if scenario.is_compared and isinstance(self._place, BenchStack) else [GATEWAY]
        found: list[Result] = []
        for load in loads:
            measured: dict[str, list[Measurement]] = {via: [] for via in ways}
            # In turns, so that what else the machine does meets both.
            for _ in range(repeats):
                for via in ways:
                    measured[via].append(self._measure(scenario, load, via))
            found += [Result(scenario.name, via, tuple(all_of_it)) for via, all_of_it in measured.items()]
        self._remember(scenario, found)
        return found

    def how_long_s(self, scenarios: Iterable[Scenario]) -> float:
        """About how long they all take, in seconds."""
        total_s = 0.0
        known = set(self._highest)
        for scenario in scenarios:
            ways = 2 if scenario.is_compared and isinstance(self._place, BenchStack) else 1
            repeats = self._way.repeats or scenario.repeats
            one_s = self._timed(scenario.load).total_s
            total_s += one_s * repeats * ways * max(1, len(scenario.connections))
            if scenario.share_of and scenario.share_of not in known:
                total_s += _FINDING_S + _FINDING_WARM_UP_S
                known.add(scenario.share_of)
            known.add(scenario.name)
        return total_s

    # -- one measurement -------------------------------------------------------------------------------------

    def _loads(self, scenario: Scenario) -> Iterable[Load]:
        load = self._timed(scenario.load)
        if scenario.share_of is not None:
            load = replace(load, rate_per_s=max(1.0, scenario.share * self._highest_of(scenario.share_of)))
        if not isinstance(self._place, BenchStack):
            # Neither the pace nor the number of tokens is ours to know.
            load = replace(load, pace_ms=None, tokens_known=False)
        if not scenario.connections:
            yield load
        for connections in scenario.connections:
            yield replace(load, connections=connections)

    def _timed(self, load: Load) -> Load:
        return load if self._way.seconds is None else replace(load, seconds=self._way.seconds)

    def _measure(self, scenario: Scenario, load: Load, via: str) -> Measurement:
        place, way = self._place, self._way
        watch: Mapping[str, Sequence[int]] = {}
        if isinstance(place, BenchStack):
            _wait_quiet(place.groups()["gateway"])
            place.mock.pace(ttft_ms=scenario.ttft_ms, itl_ms=scenario.itl_ms)
            if scenario.on_fresh_gateway and via == GATEWAY:
                place.restart_gateway()
                run(place.target, _FIRST_TOUCH, cores=way.cores)
            watch = place.groups()
        elif place.pids:
            watch = {"gateway": place.pids}
        target = self._target(scenario.customer, via)
        return run(target, load, watch=watch, processes=way.processes, cores=way.cores, progress=way.progress)

    def _target(self, customer: Customer, via: str) -> Target:
        place = self._place
        if isinstance(place, Deployment):
            return replace(place.target, api_key="nobody") if customer is Customer.STRANGER else place.target
        if via == DIRECT:
            return place.direct
        return {
            Customer.PAYING: place.target,
            Customer.WITHOUT_CREDIT: place.pauper,
            Customer.STRANGER: place.stranger,
        }[customer]

    # -- rates that others take a share of -------------------------------------------------------------------

    def _remember(self, scenario: Scenario, results: Sequence[Result]) -> None:
        if not scenario.load.is_open_loop and not scenario.connections:
            self._highest[scenario.name] = results[0].median(lambda measured: measured.requests_per_s) or 0.0

    def _highest_of(self, name: str) -> float:
        """The highest rate of a scenario: as it was measured, or else looked for now."""
        if name not in self._highest:
            scenario = SCENARIOS[name]
            load = replace(scenario.load, name=f"{name}, its rate", seconds=_FINDING_S, warm_up_s=_FINDING_WARM_UP_S)
            if not isinstance(self._place, BenchStack):
                load = replace(load, tokens_known=False)
            found = self._measure(scenario, load, GATEWAY)
            self._highest[name] = found.requests_per_s
        return self._highest[name]


def _wait_quiet(pids: Sequence[int]) -> None:
    """Until the gateway is done with the load before."""
    give_up_s = time.monotonic() + _QUIET_WAIT_S
    while time.monotonic() < give_up_s:
        before_s = sum(map(cpu_s, pids))
        time.sleep(_QUIET_LOOK_S)
        if sum(map(cpu_s, pids)) - before_s < _QUIET_SHARE * _QUIET_LOOK_S:
            return
