"""Extend: what a stream may still deliver for what is held, and more credit for one that outgrows its hold.

Floor: dataplane. A hold covers the tokens that the engine was told to stop at, so a stream only gets here when its
engine does not stop: it ignores its bound, or counts otherwise. Then its hold is extended, each time by about as much
as was used, ahead of need where there is room. A delta that is not paid for is kept back while the counter is asked; if
it says no, or nothing in time, the answer ends at what is paid for.

The hot path pays one comparison a delta: `Extension.allowance` says how far it may go, and is asked again only there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from backends.wire.allowance import WAIT
from backends.wire.usage import Observed
from gateway.core.exchange import Exchange
from gateway.dataplane.settle import delivered_nanos
from ledger.core.pricing import UNITS_PER_RATE
from ledger.counter import CounterUnavailable

PATIENCE_S = 2.0
"""How long a delta may be kept back until its credit is there; below every bound on an engine's silence."""
AGAIN_S = 0.1
FIRST_LOOK = 16
"""After so many deltas it is known how many tokens the engine puts into one."""
LEAST_STEP, MOST_STEP = 64, 4096
"""Tokens that a hold is extended by."""


class CreditSource(Protocol):
    """Who can raise what a hold reserves."""

    async def extend(self, hold_id: str, org_id: str, total_nanos: int) -> bool:
        """Reserve ``total_nanos`` in all. False: there is not so much credit, or no such hold.

        Raises:
            CounterUnavailable: nobody knows; it is asked again. The total makes a repeat harmless.
        """


class Extension:
    """The allowance of one stream.

    Args:
        exchange: has its hold; ``held_nanos`` grows with it.
        source: where more credit comes from.
        tokens_held: completion tokens of all choices that the hold surely covers.
        rate_nanos: the most that a million completion tokens cost; above 0.
        answered: called when a delta that was told to wait may be asked for again (True), or never will (False).
    """

    __slots__ = (
        "_answered", "_asking", "_exchange", "_is_waiting", "_needed_nanos", "_rate_nanos", "_source", "_step",
        "_tokens_held", "_was_refused",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        source: CreditSource,
        *,
        tokens_held: int,
        rate_nanos: int,
        answered: Callable[[bool], None],
    ) -> None:
        self._exchange = exchange
        self._source = source
        self._tokens_held = tokens_held
        self._rate_nanos = rate_nanos
        self._answered = answered
        self._asking: asyncio.Task[None] | None = None
        self._step = LEAST_STEP
        self._needed_nanos = 0
        self._is_waiting = False
        self._was_refused = False

    def allowance(self, seen: Observed) -> int:
        """See `backends.wire.allowance.Allowance`."""
        deltas = seen.content_deltas
        if deltas == 0:
            return min(FIRST_LOOK, self._tokens_held)
        cost_nanos = delivered_nanos(self._exchange, seen)
        if cost_nanos > self._held_nanos:
            self._needed_nanos = cost_nanos
            self._is_waiting = True
            self._ask()
            return WAIT
        used = max(deltas, seen.usage.completion if seen.usage is not None else 0)
        room = (self._held_nanos - cost_nanos) * UNITS_PER_RATE // self._rate_nanos
        per_delta = -(-used // deltas)
        if used <= self._tokens_held:
            return min(room, self._tokens_held - used) // per_delta
        if room < self._step and not self._was_refused:
            self._ask()
        # An engine that heeds no bound may change its mind about tokens in a delta as well.
        return room if seen.usage is None else room // (2 * per_delta)

    def stop(self) -> None:
        """The stream is over; nobody waits any more."""
        if self._asking is not None:
            self._asking.cancel()

    @property
    def _held_nanos(self) -> int:
        assert self._exchange.held_nanos is not None
        return self._exchange.held_nanos

    def _ask(self) -> None:
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._obtain())

    async def _obtain(self) -> None:
        """Get more, as much as there is; wake the stream if it waits."""
        is_granted = await self._try()
        self._asking = None
        self._was_refused = not is_granted  # so none is asked for ahead of need
        if self._is_waiting:
            self._is_waiting = False
            self._answered(is_granted)

    async def _try(self) -> bool:
        """Ask for a step beyond what is needed, then for half of it, at last for no more than what is needed."""
        exchange, loop = self._exchange, asyncio.get_running_loop()
        assert exchange.key is not None
        deadline_s = loop.time() + PATIENCE_S
        while loop.time() < deadline_s:
            more_nanos = -(-self._step * self._rate_nanos // UNITS_PER_RATE)
            total_nanos = max(self._needed_nanos, self._held_nanos) + more_nanos
            if total_nanos <= self._held_nanos:
                return False
            try:
                async with asyncio.timeout_at(deadline_s):
                    is_granted = await self._source.extend(exchange.request_id, exchange.key.org_id, total_nanos)
            except TimeoutError:
                return False
            except CounterUnavailable:
                await asyncio.sleep(AGAIN_S)
                continue
            if is_granted:
                exchange.held_nanos = total_nanos
                self._step = min(max(1, 2 * self._step), MOST_STEP)
                return True
            if self._step == 0:
                return False
            self._step //= 2
        return False
