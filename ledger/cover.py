"""Cover: a request came short of escrow; ask Postgres for more, at once.

Floor: ``ledger`` edge, on the hot path's side. Credit lies in Postgres and comes to Redis in slices, so "Redis has too
little" is not yet "the organization has too little". Only Postgres can say that, and only then is the answer 402.

However many requests of an organization come short together, this process asks Postgres once for all of them. A slice
that is asked for again soon was too small: the next one is twice as large.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from enum import StrEnum

from ledger.books.database import Pool, acquired, transaction
from ledger.books.grants import deliver_grants, grant_slice
from ledger.core.money import MAX_GRANT_NANOS
from ledger.counter import CounterUnavailable, CreditCounter, Extended, OutOfCredit
from ledger.errors import LedgerError
from ledger.queries import query

GROW_WITHIN_S = 10.0
RETURN_WAIT_S = 1.0
"""How long to wait for the books when credit is on its way back to Postgres."""

_RETURN_POLL_S = 0.05
_EXTEND_ATTEMPTS = 3


class Answer(StrEnum):
    """What Postgres said."""

    GRANTED = "granted"
    """There is more escrow in Redis now: try again."""
    EXHAUSTED = "exhausted"
    """There is no more: what Redis has is all there is."""
    FROZEN = "frozen"
    """There is more, but it belongs to an epoch that Redis lost, and waits to be released."""
    UNKNOWN = "unknown"
    """Postgres could not be asked, or what it says is not settled yet."""


@dataclass(frozen=True, slots=True)
class Covered:
    """The answer, and when to ask again if it was not a final one."""

    answer: Answer
    retry_after_s: float = 1.0


@dataclass(slots=True)
class _Desk:
    """One organization's requests that came short."""

    waiting_nanos: int = 0
    next_round: asyncio.Task[Covered] | None = None
    slice_nanos: int = 0
    granted_at_s: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class Cover:
    """Gets more escrow for requests that came short. One per worker.

    Args:
        pool: connections to Postgres; a few are enough.
        counter: the credit counter.
        slice_nanos: the least that is granted at a time.
        timeout_s: deadline of one round.
    """

    def __init__(self, pool: Pool, counter: CreditCounter, *, slice_nanos: int, timeout_s: float) -> None:
        self._pool = pool
        self._counter = counter
        self._slice_nanos = slice_nanos
        self._timeout_s = timeout_s
        self._desks: dict[str, _Desk] = {}
        self.rounds = 0

    async def cover(self, org_id: str, need_nanos: int, short: OutOfCredit) -> Covered:
        """Try to bring ``need_nanos`` more of an organization's credit to Redis.

        Args:
            need_nanos: what is missing for the request.
            short: what the counter said.
        """
        desk = self._desks.setdefault(org_id, _Desk())
        desk.waiting_nanos += need_nanos
        if desk.next_round is None:
            desk.next_round = asyncio.create_task(self._round(org_id, desk, short))
        # A caller that is cancelled must not take the round of the others with it.
        return await asyncio.shield(desk.next_round)

    async def extend(self, hold_id: str, org_id: str, total_nanos: int) -> bool:
        """Raise what a hold reserves to ``total_nanos``, with more escrow if need be.

        Returns:
            False: there is not so much credit, or no such hold.

        Raises:
            CounterUnavailable: nobody knows; repeat it.
        """
        for _ in range(_EXTEND_ATTEMPTS):
            verdict = await self._counter.extend(hold_id, org_id, total_nanos=total_nanos)
            if isinstance(verdict, Extended):
                return True
            if not isinstance(verdict, OutOfCredit):
                return False
            need_nanos = total_nanos - verdict.held_nanos - verdict.available_nanos
            covered = await self.cover(org_id, need_nanos, verdict)
            if covered.answer is Answer.EXHAUSTED:
                return False
            if covered.answer is not Answer.GRANTED:
                break
        raise CounterUnavailable("busy", "Postgres could not be asked for more credit")

    async def _round(self, org_id: str, desk: _Desk, short: OutOfCredit) -> Covered:
        async with desk.turn:  # one round at a time; who comes during this one waits for the next
            desk.next_round = None
            need_nanos, desk.waiting_nanos = desk.waiting_nanos, 0
            self.rounds += 1
            try:
                slice_nanos = self._next_slice(desk)
                async with asyncio.timeout(self._timeout_s):
                    covered = await self._ask(org_id, max(need_nanos, slice_nanos), short)
                if covered.answer is Answer.GRANTED:
                    desk.slice_nanos, desk.granted_at_s = slice_nanos, time.monotonic()
                return covered
            except (LedgerError, CounterUnavailable, TimeoutError):
                return Covered(Answer.UNKNOWN)
            finally:
                if desk.next_round is None and len(self._desks) > 1000:
                    self._desks.pop(org_id, None)

    def _next_slice(self, desk: _Desk) -> int:
        soon = desk.slice_nanos and time.monotonic() - desk.granted_at_s < GROW_WITHIN_S
        return min(2 * desk.slice_nanos, MAX_GRANT_NANOS) if soon else self._slice_nanos

    async def _ask(self, org_id: str, want_nanos: int, short: OutOfCredit) -> Covered:
        shard = self._counter.shard_of(org_id)
        until_s = time.monotonic() + RETURN_WAIT_S
        while True:
            epoch = self._counter.epoch_of(shard)
            async with acquired(self._pool, "ask for more credit") as conn:
                row = await conn.fetchrow(query("cover"), org_id, epoch)
            if row is None:
                return Covered(Answer.EXHAUSTED)
            if row["available_nanos"] > 0 or row["pending"]:
                return await self._grant(org_id, shard, epoch, want_nanos)
            if short.returned_nanos > row["returned_nanos"] and epoch == self._counter.epoch_of(shard):
                # The organization's credit is on its way back to Postgres, and there in a moment.
                if time.monotonic() > until_s:
                    return Covered(Answer.UNKNOWN)
                await asyncio.sleep(_RETURN_POLL_S)
                continue
            if row["frozen_nanos"] > 0:
                return Covered(Answer.FROZEN, max(1.0, float(row["release_in_s"])))
            return Covered(Answer.EXHAUSTED)

    async def _grant(self, org_id: str, shard: int, epoch: int, want_nanos: int) -> Covered:
        async with transaction(self._pool, "grant credit") as conn:
            await grant_slice(conn, org_id, shard=shard, epoch=epoch, want_nanos=want_nanos)
        delivery = await deliver_grants(self._pool, self._counter, org_id)
        # Somebody else may have brought it there; what counts is that none is missing.
        return Covered(Answer.UNKNOWN if delivery.gaps else Answer.GRANTED)
