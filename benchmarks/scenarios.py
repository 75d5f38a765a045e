"""The standard set: what is asked of the gateway, how long, and which of its figures are quoted.

A scenario is a value. `benchmarks.carry_out` runs it, against a stack of its own or somebody's deployment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from benchmarks.load import Distribution, Load


class Customer(StrEnum):
    """Who asks."""

    PAYING = "paying"
    WITHOUT_CREDIT = "without credit"
    STRANGER = "stranger"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One load, and how it is measured.

    Attributes:
        load: for the stack of our own. Its name is the scenario's.
        about: a sentence.
        ttft_ms, itl_ms: the pace of the mock engine.
        repeats: how often, each at full length; figures are medians.
        is_compared: the same load goes to the engine itself as well, to know what the gateway adds.
        share_of: a scenario whose highest rate is found first; this one's rate is `share` of it.
        connections: the load is measured with each of these numbers of connections.
        on_fresh_gateway: memory is measured, so nothing may have been asked before.
        customer: whose key.
        for_others: whether it makes sense against a deployment that we know nothing of.
    """

    load: Load
    about: str
    ttft_ms: float = 0.0
    itl_ms: float = 0.0
    repeats: int = 3
    is_compared: bool = False
    share_of: str | None = None
    share: float = 0.3
    connections: tuple[int, ...] = ()
    on_fresh_gateway: bool = False
    customer: Customer = Customer.PAYING
    for_others: bool = True

    @property
    def name(self) -> str:
        """What it is called on the command line."""
        return self.load.name


def _tokens(text: str | int) -> Distribution:
    return Distribution.parse(text)


_SMALL = Load(name="small", connections=64, seconds=4, warm_up_s=1, max_tokens=_tokens(16), tokens_known=True)
_STREAMS = Load(
    name="streams", stream=True, connections=64, seconds=4, warm_up_s=1, max_tokens=_tokens(64), tokens_known=True
)
_UNKNOWN_RATE = 1.0
"""Until the rate that it is a share of was measured."""


def _paced(streams: int, warm_up_s: float) -> Scenario:
    load = Load(
        name=f"paced-{streams}",
        stream=True,
        connections=streams,
        seconds=4,
        warm_up_s=warm_up_s,
        # Longer than it is measured: the cost of a chunk, and nothing else. At the end they are hung up.
        max_tokens=_tokens(20_000),
        drain_s=0,
        pace_ms=10,
        tokens_known=True,
    )
    return Scenario(load=load, itl_ms=10, about=f"{streams} streams that get a token every 10 ms")


def _open_loop(name: str, like: Load, about: str) -> Scenario:
    load = Load(
        name=name,
        stream=like.stream,
        rate_per_s=_UNKNOWN_RATE,
        seconds=4,
        warm_up_s=1,
        max_tokens=like.max_tokens,
        tokens_known=True,
    )
    return Scenario(load=load, about=about, is_compared=True, share_of=like.name)


def _refused(status: int, customer: Customer, about: str) -> Scenario:
    load = Load(
        name=f"errors-{status}", connections=64, seconds=2, warm_up_s=1, max_tokens=_tokens(16), expect_status=status
    )
    for_others = customer is Customer.STRANGER
    return Scenario(load=load, about=about, repeats=1, customer=customer, for_others=for_others)


_ALL = (
    Scenario(
        load=Load(
            name="quiet",
            stream=True,
            connections=10_000,
            seconds=5,
            warm_up_s=25,
            drain_s=0,
            max_tokens=_tokens(1000),
            tokens_known=True,
        ),
        itl_ms=60_000,
        repeats=1,
        on_fresh_gateway=True,
        for_others=False,
        about="10,000 open streams that say nothing (as many as may be): memory for each",
    ),
    Scenario(load=_SMALL, about="small whole answers (16 tokens), 64 connections"),
    _open_loop("small-30", _SMALL, "the same at 30 % of the rate that it reached: latency added"),
    Scenario(load=_STREAMS, about="streams of 64 tokens sent at once, 64 connections"),
    _open_loop("streams-30", _STREAMS, "the same at 30 % of the rate that it reached: time to first token added"),
    _paced(300, warm_up_s=2),
    _paced(800, warm_up_s=4),
    Scenario(
        load=Load(
            name="long-prompts",
            connections=16,
            seconds=4,
            warm_up_s=1,
            prompt_tokens=_tokens(8192),
            max_tokens=_tokens(16),
            tokens_known=True,
        ),
        about="prompts of 8,192 tokens (36 KB), whole answers, 16 connections",
    ),
    Scenario(
        load=Load(
            name="mix",
            stream=True,
            rate_per_s=60,
            seconds=6,
            warm_up_s=3,
            drain_s=15,
            prompt_tokens=_tokens("lognormal(400,0.8,max=4000)"),
            max_tokens=_tokens("lognormal(120,0.7,max=1000)"),
            tokens_known=True,
        ),
        ttft_ms=50,
        itl_ms=10,
        repeats=1,
        is_compared=True,
        about="lognormal lengths, 60 requests a second, streams at 10 ms a token",
    ),
    _refused(401, Customer.STRANGER, "keys that nobody has, 64 connections"),
    _refused(402, Customer.WITHOUT_CREDIT, "customers without credit, 64 connections"),
    Scenario(
        load=replace(_SMALL, name="concurrency", seconds=2, warm_up_s=0.5),
        about="small whole answers against the number of connections",
        repeats=1,
        is_compared=True,
        connections=(1, 4, 16, 64, 256),
    ),
)

SCENARIOS: Mapping[str, Scenario] = {scenario.name: scenario for scenario in _ALL}
"""All of them by name, in the order in which they run."""
