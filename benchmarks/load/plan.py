"""What to send: to whom, how many at once or how often, how long, and of which lengths.

Plain values that travel to the worker processes as JSON; nothing here sends anything.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

_LOGNORMAL = re.compile(r"lognormal\(\s*([^,()]+?)\s*,\s*([^,()]+?)\s*(?:,\s*max\s*=\s*(\d+)\s*)?\)")
_MOST_TOKENS = 10_000_000


class PlanError(ValueError):
    """A plan cannot be carried out; the text is a sentence for who wrote it."""


@dataclass(frozen=True, slots=True)
class Target:
    """Who is loaded.

    Attributes:
        base_url: ``http://host:port`` or ``https://…``, with or without ``/v1``, as for the OpenAI clients.
        headers: further request headers.
        customers: keys and their models that take turns in place of `api_key` and `model`; empty: only these.
    """

    base_url: str
    api_key: str
    model: str
    headers: Mapping[str, str] = field(default_factory=dict)
    customers: Sequence[tuple[str, str]] = ()

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise PlanError(f"The base URL must look like http://host:port, got {self.base_url!r}.")

    @property
    def root(self) -> str:
        """The path under which ``/v1`` lies, without a slash at its end; mostly empty."""
        return urlsplit(self.base_url).path.rstrip("/").removesuffix("/v1")


@dataclass(frozen=True, slots=True)
class Distribution:
    """Whole numbers ≥ 1, drawn at random. Made by `parse`, and written back by ``str``.

    Attributes:
        kind: ``constant`` (value), ``uniform`` (low, high, both included), ``lognormal`` (median, sigma) or ``list``
            (values, each as likely as it is often named).
        most: what is drawn above it becomes this.
    """

    kind: str
    numbers: tuple[float, ...]
    most: int = _MOST_TOKENS

    @classmethod
    def parse(cls, text: str | int) -> Distribution:
        """Read ``64``, ``16..128``, ``lognormal(200,0.6,max=2000)`` (median, sigma) or ``16,64,64,256``.

        Raises:
            PlanError: it is none of these, or holds a number outside 1 to ten million.
        """
        stripped = str(text).strip()
        try:
            if found := _LOGNORMAL.fullmatch(stripped):
                made = cls("lognormal", (float(found[1]), float(found[2])), int(found[3] or _MOST_TOKENS))
            elif ".." in stripped:
                low, high = stripped.split("..")
                made = cls("uniform", (int(low), int(high)))
            elif "," in stripped:
                made = cls("list", tuple(int(part) for part in stripped.split(",")))
            else:
                made = cls("constant", (int(stripped),))
        except ValueError:
            raise PlanError(
                f"{text!r} is no distribution; write 64, 16..128, 16,64,256 or lognormal(200,0.6,max=2000)."
            ) from None
        made._check()
        return made

    def sample(self, chance: random.Random) -> int:
        """Draw one."""
        match self.kind:
            case "uniform":
                return chance.randint(int(self.numbers[0]), int(self.numbers[1]))
            case "lognormal":
                median, sigma = self.numbers
                return max(1, min(self.most, round(median * math.exp(chance.gauss(0.0, sigma)))))
            case "list":
                return int(chance.choice(self.numbers))
            case _:
                return int(self.numbers[0])

    def __str__(self) -> str:
        match self.kind:
            case "uniform":
                return f"{self.numbers[0]:.0f}..{self.numbers[1]:.0f}"
            case "lognormal":
                most = "" if self.most == _MOST_TOKENS else f",max={self.most}"
                return f"lognormal({self.numbers[0]:g},{self.numbers[1]:g}{most})"
            case _:
                return ",".join(f"{number:.0f}" for number in self.numbers)

    def _check(self) -> None:
        lengths = self.numbers[:1] if self.kind == "lognormal" else self.numbers
        if not all(1 <= length <= _MOST_TOKENS for length in (*lengths, self.most)):
            raise PlanError(f"Lengths go from 1 to {_MOST_TOKENS:,}, got {self}.")
        if self.kind == "uniform" and self.numbers[0] > self.numbers[1]:
            raise PlanError(f"The low end of {self} is above its high one.")
        if self.kind == "lognormal" and not 0 <= self.numbers[1] <= 10:
            raise PlanError(f"The sigma of {self} must be between 0 and 10.")


class Arrivals(StrEnum):
    """How the requests of an open loop follow one another."""

    POISSON = "poisson"
    EVEN = "even"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """One load. Exactly one of `connections` (closed loop) and `rate_per_s` (open loop) is given.

    Attributes:
        connections: so many requests are under way at any time: each connection sends its next when it has its answer.
        rate_per_s: so many requests are due a second, whatever becomes of those before.
        arrivals: of an open loop; ``poisson`` is what independent customers do.
        max_open: of an open loop: no more than so many at once. What is due beyond that waits, and its latency counts
            from when it was due.
        seconds: how long it is measured, after `warm_up_s`. Connections open during the first half of the warm-up.
        drain_s: how long requests under way may finish afterwards; then they are hung up.
        prompt_tokens: words of the prompt, most of which are one token in common vocabularies. No two prompts of a run
            begin alike, so no cache of prefixes answers them.
        body: further members of the request's JSON.
        pace_ms: what the engine is known to wait between tokens; from it follows how many events are due.
        expect_status: what is right; another status is an error.
        tokens_known: the engine is known to deliver exactly ``max_tokens`` tokens, an event each: an answer with fewer
            events, or a whole answer whose usage says another number, is an error.
    """

    name: str
    stream: bool = False
    connections: int | None = None
    rate_per_s: float | None = None
    arrivals: Arrivals = Arrivals.POISSON
    max_open: int = 4096
    seconds: float = 10.0
    warm_up_s: float = 2.0
    drain_s: float = 5.0
    prompt_tokens: Distribution = Distribution("constant", (32,))
    max_tokens: Distribution = Distribution("constant", (16,))
    body: Mapping[str, Any] = field(default_factory=dict)
    pace_ms: float | None = None
    expect_status: int = 200
    tokens_known: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if (self.connections is None) == (self.rate_per_s is None):
            raise PlanError(f"The load {self.name!r} needs either connections or a rate.")
        for name, low in (("connections", 1), ("rate_per_s", 1e-6), ("max_open", 1), ("seconds", 0.05), ("pace_ms", 0)):
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise PlanError(f"{name} of the load {self.name!r} must be at least {low}, got {value}.")
        if self.warm_up_s < 0 or self.drain_s < 0:
            raise PlanError(f"The load {self.name!r} has a time below 0.")

    @property
    def is_open_loop(self) -> bool:
        """Whether requests come at a rate."""
        return self.rate_per_s is not None

    @property
    def total_s(self) -> float:
        """Warm-up and measurement."""
        return self.warm_up_s + self.seconds

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return plain | {
            "prompt_tokens": str(self.prompt_tokens),
            "max_tokens": str(self.max_tokens),
            "arrivals": self.arrivals.value,
            "body": dict(self.body),
        }

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Load:
        """The reverse of `to_json`.

        Raises:
            PlanError: it is no load.
        """
        made = dict(plain)
        made["prompt_tokens"] = Distribution.parse(plain["prompt_tokens"])
        made["max_tokens"] = Distribution.parse(plain["max_tokens"])
        made["arrivals"] = Arrivals(plain["arrivals"])
        return cls(**made)
