"""The guardian of one shard: lets callers into a Redis that has everything, and opens a new epoch where it has not.

Floor: ``ledger`` edge. It works inside the term of the shard's reconciler and on its connection to Postgres, so it
never decides while a batch is being booked, and no reconciler that was fenced off decides at all. The decision is
``ledger.core.trust``; here is what follows from it, in an order that may be cut off at any step:

1. Redis is fenced (its epoch becomes 0), so nobody spends.
2. One transaction in Postgres opens the new epoch, freezes all credit that the lost epoch was granted, and moves the
   checkpoint to the beginning of the new one.
3. Redis forgets the credit of the lost epoch and gets the new number, and the script.

What was settled and not booked is still in the workers' journals and is booked against the frozen credit; what is left
of it after a grace time is released (``ledger.books.recovery``).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace

from ledger.books.batches import Term
from ledger.books.booking import Position, identity
from ledger.books.database import PooledConnection, translated
from ledger.books.epochs import EpochMismatch, current_epochs, record_guardian_event, witnessed
from ledger.books.recovery import open_epoch
from ledger.core.trust import Books, Decision, Found, Verdict, decide
from ledger.counter import CreditCounter
from ledger.counter.door import ShardLook

GRACE_S = 60.0
"""How long credit of a lost epoch stays frozen, unless told otherwise."""

WITNESSES_WAIT_S = 0.2
"""How long workers have to report what they saw before a Redis that was restarted is judged."""

log = logging.getLogger("pareta.guardian")


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of a check. ``at``: where booking goes on. ``book_first``: fenced; book what is there, then renew."""

    at: Position
    book_first: Decision | None = None


class Guardian:
    """Guards one shard for whoever holds its term."""

    def __init__(self, counter: CreditCounter, shard: int, *, grace_s: float) -> None:
        self._counter = counter
        self._shard = shard
        self._grace_s = grace_s
        self._door = counter.door(shard)
        self.renewals = 0

    async def close(self) -> None:
        """Let go of the connection to Redis."""
        await self._door.close()

    async def is_uneasy(self, at: Position) -> bool:
        """A quick look: whether the shard needs a check.

        Raises:
            CounterUnavailable: Redis could not be asked.
        """
        look = await self._door.look()
        epoch = self._counter.epoch_of(self._shard)
        return not look.script_known or look.epoch != epoch or look.seq < (at.seq if at.epoch == epoch else 0)

    async def somebody_saw_more(self, conn: PooledConnection) -> bool:
        """Whether a worker has reported an event that Redis does not have.

        Raises:
            CounterUnavailable, LedgerUnavailable: unknown.
        """
        seen = await witnessed(conn, self._shard, self._counter.epoch_of(self._shard))
        return seen > 0 and (await self._door.look()).seq < seen

    async def check(self, conn: PooledConnection, term: Term, at: Position) -> Judged:
        """Judge the shard, and do what follows.

        Args:
            conn: of the term, outside any transaction.
            at: where booking stands; the checkpoint.

        Raises:
            EpochMismatch: a person has to decide; nobody is let in. Fenced: the term is over.
            CounterUnavailable, LedgerUnavailable: check again.
        """
        epoch = await self._follow(conn)
        if (await self._door.look()).script_known is False:
            await asyncio.sleep(WITNESSES_WAIT_S)
        books, look, decision = await self._compare(conn, epoch, at)
        if decision.verdict is not Verdict.TRUST:  # what moved between two reads must not look like a loss
            books, look, decision = await self._compare(conn, epoch, at)
        match decision.verdict:
            case Verdict.TRUST:
                if not look.script_known:
                    await self._door.let_in(look, epoch, at.seq if at.epoch == epoch else 0)
                    await self._note(conn, "same_epoch", books, look, decision)
                return Judged(at)
            case Verdict.BEGIN | Verdict.BEGIN_AGAIN:
                await self._open(look, epoch)
                await self._note(conn, "begun", books, look, decision)
                return Judged(at)
            case Verdict.BOOK_AND_RENEW:
                await self._door.fence(look)
                return Judged(at, book_first=decision)
            case Verdict.RENEW:
                return Judged(await self._renew(conn, term, books, look, decision))
            case Verdict.REFUSE:
                await self._note(conn, "refused", books, look, decision)
                raise EpochMismatch(decision.reason)

    async def distrust(self, at: Position, reason: str) -> Judged:
        """Fence a shard of which something is known that its own state does not show; a new epoch is to follow.

        Raises:
            CounterUnavailable: check again.
        """
        await self._door.fence(await self._door.look())
        return Judged(at, book_first=Decision(Verdict.BOOK_AND_RENEW, reason))

    async def renew(self, conn: PooledConnection, term: Term, at: Position, decision: Decision) -> Position:
        """Open a new epoch after what was left of the old one is booked.

        Raises:
            Fenced, CounterUnavailable, LedgerUnavailable: check again.
        """
        epoch = await self._follow(conn)
        books, look, _ = await self._compare(conn, epoch, at)
        # Fenced by us since it was judged, and otherwise as it was.
        return await self._renew(conn, term, books, replace(look, epoch=epoch), decision)

    async def _renew(
        self, conn: PooledConnection, term: Term, books: Books, look: ShardLook, decision: Decision
    ) -> Position:
        log.error("shard %d: %s A new epoch is opened.", self._shard, decision.reason)
        if look.epoch is not None:
            await self._door.fence(look)
        epoch = await open_epoch(
            conn,
            term,
            self._counter.shards,
            reason=decision.reason,
            grace_s=self._grace_s,
            redis_epoch=look.epoch,
            redis_seq=look.seq,
            witnessed_seq=books.witnessed_seq,
        )
        self.renewals += 1
        self._counter.set_epoch(self._shard, epoch)
        await self._open(look, epoch)
        await self._note(conn, "new_epoch", books, look, decision)
        return Position(epoch, 0, "0-0")

    async def _open(self, look: ShardLook, epoch: int) -> None:
        await self._door.open(look, epoch)
        await self._door.let_in(look, epoch, 0)

    async def _compare(self, conn: PooledConnection, epoch: int, at: Position) -> tuple[Books, ShardLook, Decision]:
        """Read the books, then Redis: it only moves forward, so what it lacks it has lost."""
        here = at.epoch == epoch
        with translated("read what the books know of the epoch"):
            used = await conn.fetchval(
                "SELECT EXISTS (SELECT 1 FROM ledger.escrow_grant WHERE epoch = $1 AND attempted_at IS NOT NULL)", epoch
            )
            seen = await witnessed(conn, self._shard, epoch)
        books = Books(
            epoch=epoch,
            seq=at.seq if here else 0,
            last_event=at.last_event if here else "",
            witnessed_seq=max(seen, self._counter.seen_seq(self._shard)),
            used=used,
        )
        look = await self._door.look(at.stream_id if here and at.seq else "")
        found = Found(look.epoch, look.seq, identity(look.event) if look.event is not None else "")
        return books, look, decide(books, found)

    async def _follow(self, conn: PooledConnection) -> int:
        epoch = (await current_epochs(conn, self._counter.shards))[self._shard]
        self._counter.set_epoch(self._shard, epoch)
        return epoch

    async def _note(self, conn: PooledConnection, kind: str, books: Books, look: ShardLook, decision: Decision) -> None:
        log.warning("shard %d: %s (%s)", self._shard, decision.reason, kind)
        await record_guardian_event(
            conn,
            self._shard,
            kind,
            epoch=self._counter.epoch_of(self._shard),
            redis_epoch=look.epoch,
            redis_seq=look.seq,
            booked_seq=books.seq,
            witnessed_seq=books.witnessed_seq,
            detail={"reason": decision.reason},
        )
