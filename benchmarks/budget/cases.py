"""What is counted: which requests, how many, and what one of them is.

Pure. A case is asked in rounds: so many requests at once, each on a connection of its own, the next round when all have
their answers. The rounds of a paced stream are its tokens: all streams get their next when all have relayed the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.peers.scenarios import BURST_TOKENS, SMALL_TOKENS

AT_ONCE = 16
WARM_UP_ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """One case.

    Attributes:
        unit: what the counts are divided by, in words; a round has ``at_once`` of it.
        tokens: of each answer.
        rounds: how many are counted, behind `WARM_UP_ROUNDS` that are not.
        is_paced: its rounds are the tokens of streams that stay open; else they are requests.
    """

    name: str
    unit: str
    stream: bool
    tokens: int
    at_once: int
    rounds: int
    is_paced: bool = False


def _small(name: str, how: str, at_once: int, rounds: int) -> Case:
    return Case(name, f"small whole request, {how}", False, SMALL_TOKENS, at_once, rounds)


def _burst(name: str, how: str, at_once: int, rounds: int) -> Case:
    return Case(name, f"stream of {BURST_TOKENS} tokens sent at once, {how}", True, BURST_TOKENS, at_once, rounds)


def _chunk(name: str, how: str, at_once: int, rounds: int) -> Case:
    # The last token comes with the end of its stream and is left out.
    tokens = WARM_UP_ROUNDS + rounds + 2
    return Case(name, f"chunk of a paced stream, {how}", True, tokens, at_once, rounds, is_paced=True)


CASES = (
    _small("small", "one at a time", 1, 80),
    _small("small-16", "16 at once", AT_ONCE, 24),
    _burst("burst", "one at a time", 1, 60),
    _burst("burst-16", "16 at once", AT_ONCE, 20),
    _chunk("chunk", "one stream", 1, 150),
    _chunk("chunk-16", "16 streams", AT_ONCE, 80),
)
