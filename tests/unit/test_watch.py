"""What a request meets when its key was revoked, or the worker drained, while it waited for its hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import pytest
from prometheus_client import CollectorRegistry

from backends.protocol import Backend
from backends.wire.request import InferenceRequest, Kind
from gateway.core.exchange import Ending, Exchange
from gateway.core.state import Key, Limits, Scope
from gateway.dataplane.relay import Interrupted, Patience, Relay
from gateway.dataplane.reply import Reply
from gateway.dataplane.server import Handler, Shared
from gateway.dataplane.watch import BEATS_AT_ONCE, Carry, Watch
from gateway.edges.metrics import Metrics
from gateway.settings import Settings
from ledger.counter import Beat, CreditCounter


class Quiet:
    """A reply that nobody reads."""

    on_pause: Callable[[], None] | None = None
    on_resume: Callable[[], None] | None = None


def relay_of(key_id: str) -> Relay:
    exchange = Exchange("req_0" + "0" * 25, "/v1/chat/completions", 0.0, 0)
    exchange.key = Key(key_id, "org_1", b"", Scope.FULL, None, False, Limits(), Limits())
    patience = Patience(deadline_s=1, idle_s=1, commit_stream_s=1, heartbeat_s=1, write_s=1)
    return Relay(exchange, cast(Reply, Quiet()), head=b"", patience=patience, recorder=Metrics(CollectorRegistry()))


async def ending_of(relay: Relay) -> Ending:
    request = InferenceRequest(Kind.CHAT, {}, False, False, "chatcmpl-1", 1, "ep_x")
    with pytest.raises(Interrupted) as caught:
        await relay.ask(cast(Backend, None), request)
    return caught.value.ending


async def test_a_key_revoked_while_its_request_was_admitted_gets_no_answer() -> None:
    """The revocation came before the relay was watched; it counts all the same. Other keys go on."""
    watch = Watch(cast(CreditCounter, None), cast(Carry, None), heartbeat_s=1, expires_in_s=3)
    watch.revoke("a" * 24)
    late, other = relay_of("a" * 24), relay_of("b" * 24)
    watch.add(late)
    watch.add(other)
    assert await ending_of(late) is Ending.ABANDONED
    watch.revoke("b" * 24)
    assert await ending_of(other) is Ending.ABANDONED


async def test_a_request_admitted_after_the_drain_costs_nothing() -> None:
    """What comes out of its wait when the drain's time is over ends as our failure."""
    watch = Watch(cast(CreditCounter, None), cast(Carry, None), heartbeat_s=1, expires_in_s=3)
    watch.interrupt_all()
    late = relay_of("a" * 24)
    watch.add(late)
    assert await ending_of(late) is Ending.FAILED


class Pulse:
    """A counter that takes note of heartbeats."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    async def heartbeat(self, beats: Sequence[Beat]) -> frozenset[str]:
        self.calls.append([beat.hold_id for beat in beats])
        return frozenset()


async def test_thousands_of_holds_are_renewed_a_piece_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call keeps Redis to itself; every hold is renewed once."""
    monkeypatch.setattr("gateway.dataplane.watch.accrued", lambda exchange, observed: (1, b"{}"))
    pulse = Pulse()
    watch = Watch(cast(CreditCounter, pulse), cast(Carry, None), heartbeat_s=0.02, expires_in_s=3)
    wanted = set()
    for number in range(2 * BEATS_AT_ONCE + 1):
        relay = relay_of("a" * 24)
        relay.exchange.request_id = f"req_{number}"
        relay.exchange.held_nanos = 5
        watch.add(relay)
        wanted.add(relay.exchange.request_id)
    shared = Shared(settings=Settings(), handler=cast(Handler, None), loop=asyncio.get_running_loop())
    clock = asyncio.create_task(watch.run(shared))
    async with asyncio.timeout(5):
        while sum(map(len, pulse.calls)) < len(wanted):
            await asyncio.sleep(0.01)
    clock.cancel()
    assert max(map(len, pulse.calls)) <= BEATS_AT_ONCE
    assert sorted(hold for call in pulse.calls[:3] for hold in call) == sorted(wanted)
