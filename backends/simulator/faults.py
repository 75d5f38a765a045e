"""Plans of misbehaviour set while the simulator runs: which requests, how often, and what happens to them.

Pure: the dice come from a seeded generator.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from backends.simulator.options import BadOption, Fault, SimOptions, parse_options

ROUTES = ("chat", "completion", "embedding", "models", "health", "metrics")
_DEFAULT_ROUTES = ("chat", "completion", "embedding")
_OWN_FIELDS = ("times", "skip", "probability", "model", "route", "stream")
MAX_PLANS = 100


@dataclass(slots=True)
class FaultPlan:
    """One plan. Its options apply to the requests it matches, under those of the request itself.

    Attributes:
        times: how many requests it still takes; None for all.
        skip: matching requests it lets pass first.
        probability: of taking a request that matches.
        fired: requests taken so far.
    """

    options: SimOptions
    times: int | None = None
    skip: int = 0
    probability: float = 1.0
    model: str | None = None
    routes: tuple[str, ...] = _DEFAULT_ROUTES
    stream: bool | None = None
    fired: int = 0
    source: dict[str, Any] = field(default_factory=dict)


class FaultBook:
    """The plans in force; the first that matches a request takes it."""

    def __init__(self, seed: int) -> None:
        self._plans: list[FaultPlan] = []
        self._rng = random.Random(seed)  # noqa: S311 - dice for tests

    def add(self, value: Any) -> None:
        """Add a plan, or an array of plans, all or none.

        Raises:
            BadOption: with a sentence.
        """
        plans = [parse_plan(item) for item in (value if isinstance(value, list) else [value])]
        if len(self._plans) + len(plans) > MAX_PLANS:
            raise BadOption(f"At most {MAX_PLANS} plans can be in force.")
        self._plans += plans

    def clear(self) -> None:
        """Drop all plans."""
        self._plans.clear()

    def as_json(self) -> list[dict[str, Any]]:
        """The plans as they were posted, with how often each fired and what is left of it."""
        return [{**plan.source, "fired": plan.fired, "left": plan.times} for plan in self._plans]

    def take(self, route: str, *, model: str | None = None, stream: bool = False) -> SimOptions | None:
        """The options of the plan that takes this request, if any does; counts it."""
        if not self._plans:
            return None
        for plan in self._plans:
            if (
                route in plan.routes
                and plan.times != 0
                and plan.model in (None, model)
                and plan.stream in (None, stream)
                and self._fires(plan)
            ):
                return plan.options
        return None

    def refuses(self, route: str) -> bool:
        """Whether a plan wants the connection reset before the body is read; counts it."""
        for plan in self._plans:
            if plan.options.fail is Fault.REFUSE and route in plan.routes and plan.times != 0 and plan.model is None:
                return self._fires(plan)
        return False

    def _fires(self, plan: FaultPlan) -> bool:
        if plan.skip > 0:
            plan.skip -= 1
            return False
        if plan.probability < 1 and self._rng.random() >= plan.probability:
            return False
        plan.fired += 1
        if plan.times is not None:
            plan.times -= 1
        return True


def parse_plan(value: Any) -> FaultPlan:
    """Read a plan: the fields of `SimOptions`, and times, skip, probability, model, route, stream.

    Raises:
        BadOption: with a sentence.
    """
    if not isinstance(value, dict):
        raise BadOption("A plan must be an object.")
    own = {name: value[name] for name in _OWN_FIELDS if value.get(name) is not None}
    options = parse_options({name: item for name, item in value.items() if name not in _OWN_FIELDS})
    for name in ("times", "skip"):
        count = own.get(name, 0)
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise BadOption(f"`{name}` must be an integer of at least 0.")
    probability = own.get("probability", 1.0)
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
        raise BadOption("`probability` must be a number from 0 to 1.")
    if "model" in own and not isinstance(own["model"], str):
        raise BadOption("`model` must be a string.")
    if "stream" in own and not isinstance(own["stream"], bool):
        raise BadOption("`stream` must be true or false.")
    route = own.get("route")
    routes = tuple(route) if isinstance(route, list) else _DEFAULT_ROUTES if route is None else (route,)
    if not routes or not set(routes) <= {*ROUTES, "any"}:
        raise BadOption(f"`route` must be any, or one or several of {', '.join(ROUTES)}.")
    return FaultPlan(
        options=options,
        times=own.get("times"),
        skip=own.get("skip", 0),
        probability=probability,
        model=own.get("model"),
        routes=ROUTES if "any" in routes else routes,
        stream=own.get("stream"),
        source=value,
    )
