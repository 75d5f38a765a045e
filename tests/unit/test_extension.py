"""How far a stream may go for what is held, and how it asks for more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backends.wire.allowance import WAIT
from backends.wire.request import Kind
from backends.wire.usage import Observed, TokenUsage
from gateway.core.exchange import Exchange
from gateway.core.openai import Ask
from gateway.core.state import Endpoint, Key, Limits, Scope
from gateway.dataplane import extend
from gateway.dataplane.extend import FIRST_LOOK, LEAST_STEP, Extension
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard
from ledger.counter import CounterUnavailable

RATE = 1_000_000_000
"""A thousand nanos a token."""


class Source:
    """Credit of so many nanos in all, or whatever else a test wants."""

    def __init__(self, credit_nanos: int, answer: Callable[[], Awaitable[bool | None]] | None = None) -> None:
        self.credit_nanos = credit_nanos
        self.asked: list[int] = []
        self._answer = answer

    async def extend(self, hold_id: str, org_id: str, total_nanos: int) -> bool:
        self.asked.append(total_nanos)
        if self._answer is not None and (said := await self._answer()) is not None:
            return said
        return total_nanos <= self.credit_nanos


def stream(source: Source, *, tokens_held: int) -> tuple[Extension, Exchange, list[bool]]:
    exchange = Exchange("req_0" + "0" * 25, "/v1/chat/completions", 0.0, 0)
    exchange.key = Key("a" * 24, "org_1", b"", Scope.FULL, None, False, Limits(), Limits())
    exchange.card = PriceCard("pc_1", "ep_1", {Meter.COMPLETION: RATE}, 0, None)
    exchange.ask = Ask(Kind.CHAT, "ep_1", True, False, {}, {}, tokens_held, 1, 1, 100, 100)
    exchange.endpoint = endpoint()
    exchange.held_nanos = tokens_held * 1_000
    woken: list[bool] = []
    extension = Extension(exchange, source, tokens_held=tokens_held, rate_nanos=RATE, answered=woken.append)
    return extension, exchange, woken


def endpoint() -> Endpoint:
    fields: dict[str, Any] = dict.fromkeys(Endpoint.__dataclass_fields__)
    return Endpoint(**fields | {"context_tokens": 1_000_000})


def seen(deltas: int, tokens: int | None = None) -> Observed:
    return Observed(TokenUsage(9, deltas if tokens is None else tokens), deltas)


async def test_an_engine_that_keeps_its_bound_is_looked_at_once_and_nobody_is_asked() -> None:
    """A hundred tokens held, a hundred delivered: one look after the first deltas, no call for credit."""
    source = Source(10**9)
    extension, _, _ = stream(source, tokens_held=100)
    assert extension.allowance(Observed(None, 0)) == FIRST_LOOK
    assert extension.allowance(seen(FIRST_LOOK + 1)) == 100 - (FIRST_LOOK + 1)
    await asyncio.sleep(0)
    assert source.asked == []


async def test_an_engine_that_puts_many_tokens_into_a_delta_is_looked_at_sooner() -> None:
    """With four tokens a delta, the next look is where the tokens that are held for end."""
    extension, _, _ = stream(Source(0), tokens_held=1_000)
    assert extension.allowance(seen(17, 68)) == (1_000 - 68) // 4


async def test_the_first_token_beyond_the_hold_waits_for_its_credit() -> None:
    """It is kept back, a step of tokens is asked for with it, and it goes on when the hold covers it."""
    source = Source(10**9)
    extension, exchange, woken = stream(source, tokens_held=10)
    assert extension.allowance(seen(11)) == WAIT
    while not woken:
        await asyncio.sleep(0)
    assert woken == [True]
    assert source.asked == [11_000 + LEAST_STEP * 1_000] == [exchange.held_nanos]
    assert extension.allowance(seen(11)) >= 0


async def test_the_last_token_that_credit_covers_is_found() -> None:
    """Credit for 20 tokens more: halved steps find exactly those; then the answer is no."""
    source = Source(30_000)
    extension, exchange, woken = stream(source, tokens_held=10)
    tokens = 11
    while True:
        if extension.allowance(seen(tokens)) == WAIT:
            while not woken:
                await asyncio.sleep(0)
            if not woken.pop():
                break
        else:
            tokens += 1
    assert (tokens, exchange.held_nanos) == (31, 30_000)
    assert len(source.asked) < 40


async def test_more_is_asked_for_before_it_is_needed() -> None:
    """A hold with room beyond its tokens, for a long prompt that was short: no delta waits while more is got."""
    source = Source(10**9)
    extension, exchange, woken = stream(source, tokens_held=10)
    exchange.held_nanos = 40_000
    assert extension.allowance(seen(11)) >= 0
    await asyncio.sleep(0)
    assert source.asked == [40_000 + LEAST_STEP * 1_000] == [exchange.held_nanos]
    assert woken == []


async def test_a_refusal_ahead_of_need_is_asked_again_at_the_end() -> None:
    """Credit may have come meanwhile; the delta that really needs it decides."""
    source = Source(0)
    extension, exchange, woken = stream(source, tokens_held=10)
    exchange.held_nanos = 20_000
    assert extension.allowance(seen(11)) >= 0
    for _ in range(50):
        await asyncio.sleep(0)
    assert all(total > 20_000 for total in source.asked), "a hold is never asked to stay as it is"
    asked = len(source.asked)
    assert extension.allowance(seen(15)) >= 0
    await asyncio.sleep(0)
    assert len(source.asked) == asked
    source.credit_nanos = 10**9
    assert extension.allowance(seen(21)) == WAIT
    while not woken:
        await asyncio.sleep(0)
    assert woken == [True]


async def test_silence_is_a_no_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a call that hangs nor one that fails at once again and again keeps a delta back for longer than that."""
    monkeypatch.setattr(extend, "PATIENCE_S", 0.1)
    monkeypatch.setattr(extend, "AGAIN_S", 0.02)

    async def hangs() -> bool | None:
        await asyncio.sleep(60)
        return True

    async def fails() -> bool | None:
        raise CounterUnavailable("unreachable", "no Redis")

    for answer in (hangs, fails):
        source = Source(10**9, answer)
        extension, exchange, woken = stream(source, tokens_held=10)
        assert extension.allowance(seen(11)) == WAIT
        async with asyncio.timeout(5):
            while not woken:
                await asyncio.sleep(0.01)
        assert woken == [False]
        assert exchange.held_nanos == 10_000


async def test_an_answer_after_the_end_wakes_nobody() -> None:
    """A stream that is over hears nothing more."""
    gate = asyncio.Event()

    async def waits() -> bool | None:
        await gate.wait()
        return True

    extension, exchange, woken = stream(Source(0, waits), tokens_held=10)
    assert extension.allowance(seen(11)) == WAIT
    await asyncio.sleep(0)
    extension.stop()
    gate.set()
    await asyncio.sleep(0.01)
    assert (woken, exchange.held_nanos) == ([], 10_000)
