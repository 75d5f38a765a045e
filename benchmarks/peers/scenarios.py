"""The loads that all peers get: the hot path's bullets, each as a load and what it is counted in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from benchmarks.load import Distribution, Load

TOKEN_MS = 10.0
PACED_TOKENS = 20_000
"""More than a stream gets while it is measured: the cost of a chunk, and nothing else."""
BURST_TOKENS = 64
SMALL_TOKENS = 16
CONNECTIONS = 64
PROMPT_TOKENS = 32
LOAD_SHARE = 0.3
"""At which part of its saturated rate a peer's added latency is measured."""


class Unit(StrEnum):
    """What a scenario's cost is divided by."""

    CHUNK = "chunk"
    REQUEST = "request"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One load for all peers.

    Attributes:
        itl_ms: what the engine waits between two tokens; 0 sends an answer at once.
        connections: requests under way at any time; ``None`` for an open loop, whose rate depends on the peer.
    """

    name: str
    label: str
    unit: Unit
    stream: bool
    tokens: int
    itl_ms: float = 0.0
    connections: int | None = CONNECTIONS

    @property
    def is_open_loop(self) -> bool:
        """Whether requests come at a rate."""
        return self.connections is None

    @property
    def waits_for(self) -> str:
        """What its latency is counted to: a paced stream has begun long before it is measured."""
        return "next token" if self.itl_ms else "first token" if self.stream else "answer"

    @property
    def due_per_s(self) -> float | None:
        """Chunks that a paced engine sends."""
        return (self.connections or 0) * 1000 / self.itl_ms if self.itl_ms else None

    def load(self, *, seconds: float, rate_per_s: float | None = None) -> Load:
        """The load; an open loop needs its rate."""
        return Load(
            name=self.name,
            stream=self.stream,
            connections=self.connections,
            rate_per_s=rate_per_s if self.is_open_loop else None,
            seconds=seconds,
            warm_up_s=2.0 if self.itl_ms else 1.0,
            drain_s=0.2 if self.itl_ms else 3.0,
            prompt_tokens=Distribution("constant", (PROMPT_TOKENS,)),
            max_tokens=Distribution("constant", (self.tokens,)),
            pace_ms=self.itl_ms or None,
            tokens_known=True,
        )


SMALL = Scenario("small", "small whole answers, 64 connections", Unit.REQUEST, False, SMALL_TOKENS)
BURST = Scenario("burst", "64-token streams sent at once, 64 connections", Unit.REQUEST, True, BURST_TOKENS)
TTFT = Scenario("ttft", "the same streams at 30 % load", Unit.REQUEST, True, BURST_TOKENS, connections=None)
PACED_300 = Scenario("paced-300", "300 streams, a token each 10 ms", Unit.CHUNK, True, PACED_TOKENS, TOKEN_MS, 300)
PACED_800 = Scenario("paced-800", "800 streams, a token each 10 ms", Unit.CHUNK, True, PACED_TOKENS, TOKEN_MS, 800)

SCENARIOS = (SMALL, BURST, TTFT, PACED_300, PACED_800)
"""In this order: the rate of `TTFT` comes from what `BURST` reached in the same round."""
