"""The watch: one clock for all connections and exchanges of a worker.

Floor: dataplane. Timers per stream would cost more than the streams: one task looks at all of them a few times a
second, and every few seconds sends the delivered-so-far of every hold, some hundred at a time. A stream whose hold was
lost with Redis goes on; Postgres carries its hold from then on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence

import orjson

from gateway.core import errors
from gateway.core.exchange import Ending, Exchange
from gateway.dataplane.admit import admission_info
from gateway.dataplane.relay import Relay
from gateway.dataplane.server import Connection, Shared
from gateway.dataplane.settle import accrued
from ledger.books.recovery import CarriedBeat
from ledger.counter import Beat, CounterUnavailable, CreditCounter
from ledger.errors import LedgerError

TICK_S = 0.25
REMEMBER_S = 30.0
"""How long a revoked key is remembered for requests that were let in just before; longer than any wait for a hold."""
BEATS_AT_ONCE = 500
log = logging.getLogger("pareta.watch")

Carry = Callable[[Sequence[CarriedBeat]], Awaitable[None]]


class Watch:
    """Everything that is open in this worker.

    Args:
        counter: gets the heartbeats.
        carry: gets those of holds that Redis has lost.
        heartbeat_s: time between them.
        expires_in_s: how long a hold lives after one.
    """

    def __init__(self, counter: CreditCounter, carry: Carry, *, heartbeat_s: float, expires_in_s: float) -> None:
        self._counter = counter
        self._carry = carry
        self._heartbeat_s = heartbeat_s
        self._expires_in_s = expires_in_s
        self._beating: asyncio.Task[None] | None = None
        self._revoked_at_s: dict[str, float] = {}
        self._is_closing = False
        self.relays: set[Relay] = set()

    async def run(self, shared: Shared) -> None:
        """Look at the clock until cancelled."""
        loop = asyncio.get_running_loop()
        next_beat_s = time.monotonic() + self._heartbeat_s
        while True:
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            clocked: list[Connection | Relay] = [*shared.connections, *self.relays]
            for ticking in clocked:
                try:
                    ticking.tick(now_s)
                except Exception:
                    # One that fails must not stop the clock of all others: their holds would expire.
                    log.exception("a deadline could not be enforced")
            if now_s >= next_beat_s and (self._beating is None or self._beating.done()):
                next_beat_s = now_s + self._heartbeat_s
                self._beating = loop.create_task(self._beat())

    def add(self, relay: Relay) -> None:
        """Look after a relay, unless it has to end at once: much can happen while a request waits for its hold."""
        self.relays.add(relay)
        key = relay.exchange.key
        if self._is_closing:
            relay.interrupt(errors.overloaded(), Ending.FAILED)
        elif key is not None and key.id in self._revoked_at_s:
            relay.interrupt(errors.invalid_api_key(), Ending.ABANDONED)

    def revoke(self, key_id: str) -> None:
        """A key was revoked: its open exchanges end now, charged for what was delivered."""
        now_s = time.monotonic()
        self._revoked_at_s = {key: at_s for key, at_s in self._revoked_at_s.items() if now_s - at_s < REMEMBER_S}
        self._revoked_at_s[key_id] = now_s
        for relay in list(self.relays):
            if relay.exchange.key is not None and relay.exchange.key.id == key_id:
                relay.interrupt(errors.invalid_api_key(), Ending.ABANDONED)

    def interrupt_all(self) -> None:
        """The drain's time is over: what still runs ends now, and costs nothing."""
        self._is_closing = True
        for relay in list(self.relays):
            relay.interrupt(errors.overloaded(), Ending.FAILED)

    async def _beat(self) -> None:
        """Renew all holds, a piece at a time: thousands at once would keep Redis and this loop from everybody else."""
        relays = list(self.relays)
        pieces = [relays[start : start + BEATS_AT_ONCE] for start in range(0, len(relays), BEATS_AT_ONCE)]
        try:
            for piece in pieces:
                await self._beat_for(piece)
                if len(pieces) > 1:
                    await asyncio.sleep(self._heartbeat_s / 2 / len(pieces))
        except (CounterUnavailable, LedgerError) as error:
            # The next beat comes in seconds; a hold outlives several missed ones.
            log.warning("heartbeat not delivered: %s", error)
        except Exception:
            log.exception("heartbeat failed")

    async def _beat_for(self, relays: Sequence[Relay]) -> None:
        beats = [beat for relay in relays if (beat := self._beat_of(relay)) is not None]
        if beats:
            lost = await self._counter.heartbeat(beats)
            if lost:
                await self._carry_lost(relays, {beat.hold_id: beat for beat in beats if beat.hold_id in lost})

    async def _carry_lost(self, relays: Sequence[Relay], lost: dict[str, Beat]) -> None:
        """Have Postgres keep the holds of a lost epoch. Others were reaped: their settlement will correct that."""
        carried = []
        for relay in relays:
            exchange = relay.exchange
            beat = lost.get(exchange.request_id)
            if beat is None or exchange.ending is not None:
                continue
            shard = self._counter.shard_of(beat.org_id)
            if exchange.held_epoch != self._counter.epoch_of(shard):
                carried.append(_carried(exchange, beat, shard))
        if carried:
            await self._carry(carried)

    def _beat_of(self, relay: Relay) -> Beat | None:
        exchange = relay.exchange
        if exchange.key is None or exchange.held_nanos is None or exchange.ending is not None:
            return None
        amount_nanos, usage = accrued(exchange, relay.observed())
        return Beat(exchange.request_id, exchange.key.org_id, amount_nanos, usage, self._expires_in_s)


def _carried(exchange: Exchange, beat: Beat, shard: int) -> CarriedBeat:
    return CarriedBeat(
        hold_id=beat.hold_id,
        org_id=beat.org_id,
        shard=shard,
        epoch=exchange.held_epoch,
        held_nanos=exchange.held_nanos or 0,
        accrued_nanos=beat.accrued_nanos,
        info=orjson.dumps({**admission_info(exchange), **orjson.loads(beat.usage_json)}),
        expires_in_s=beat.expires_in_s,
    )
