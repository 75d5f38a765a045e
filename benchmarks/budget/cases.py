"""What is counted: which requests, how many, and what one of them is.

Pure. A case is asked in rounds: so many requests at once, each on a connection of its own, the next round when all have
their answers.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.scenarios import BURST_TOKENS, SMALL_TOKENS

AT_ONCE = 16
PACE_MS = 5.0
SHORT_TOKENS, LONG_TOKENS = 30, 180
"""Of paced streams: what the longer ones cost more is the cost of the chunks between."""


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        unit: what the counts are divided by, in words.
        tokens: of each answer.
        itl_ms: what the engine waits between two tokens; 0 sends an answer at once.
        rounds: how many are counted; a few before them are not.
        less_tokens: the same streams with so many tokens are taken off, and the unit is a token between; 0 takes off
            nothing.
    """

    name: str
    unit: str
    stream: bool
    tokens: int
    at_once: int
    rounds: int
    itl_ms: float = 0.0
    less_tokens: int = 0

    @property
    def units(self) -> int:
        """How many units its rounds have."""
        return self.rounds * self.at_once * ((self.tokens - self.less_tokens) if self.less_tokens else 1)


CASES = (
    Case("small", "small whole request, one at a time", False, SMALL_TOKENS, 1, 200),
    Case(f"small-{AT_ONCE}", f"small whole request, {AT_ONCE} at once", False, SMALL_TOKENS, AT_ONCE, 25),
    Case("burst", f"stream of {BURST_TOKENS} tokens at once, one at a time", True, BURST_TOKENS, 1, 150),
    Case(f"burst-{AT_ONCE}", f"stream of {BURST_TOKENS} tokens at once, {AT_ONCE} of them", True, BURST_TOKENS, AT_ONCE, 20),
    Case("chunk", "chunk of a paced stream, one stream", True, LONG_TOKENS, 1, 1, PACE_MS, SHORT_TOKENS),
    Case(f"chunk-{AT_ONCE}", f"chunk of a paced stream, {AT_ONCE} streams", True, LONG_TOKENS, AT_ONCE, 1, PACE_MS, SHORT_TOKENS),
)
