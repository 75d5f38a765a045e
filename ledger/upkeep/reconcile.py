"""The reconciler: carries events from Redis into Postgres, each exactly once.

Floor: edge. It owns no truth. The position in the stream commits together with what was booked, so whatever dies in
between, the next one reads on from where the books stand; the stream is trimmed behind that. Each term begins with the
guardian (``ledger.upkeep.guardian``), who is called again whenever Redis looks as if it had lost something. The chores
beside this are ``ledger.upkeep.chores``.

Several may run; one works per shard (``ledger.books.terms``), the others stand by.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.books.batches import BatchWriter, Booked, EventRefused, Term
from ledger.books.booking import Plan, Position, plan, quarantine
from ledger.books.database import Pool, PooledConnection, acquired
from ledger.books.partitions import MonthKeeper
from ledger.books.terms import RENEW_S, renew, try_lock, try_take
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.counter.values import LedgerEvent
from ledger.errors import Fenced, LedgerError
from ledger.upkeep.chores import Chores, wait
from ledger.upkeep.escrow import EscrowKeeper, EscrowPolicy
from ledger.upkeep.guardian import GRACE_S, Guardian, Judged

BATCH_EVENTS = 2000
IDLE_BLOCK_MS = 500
LOOK_AFTER_S = 1.0
GATHER_S = 0.05
"""Behind a batch that was not full, more events gather for so long: a transaction costs about as much for one of them
as for fifty, and it is one disk that Postgres, Redis and the journals share."""
STANDBY_POLL_S = 1.0
AFTER_FENCE_S = 5.0
"""Whoever was fenced off stands back for so long, so that its successor gets the lock as well."""

GUARD_EVERY_S = 0.1
"""Between two quick looks at Redis; each takes two short commands."""

_BACKOFF_S = (0.1, 0.3, 1.0, 2.0)
_REDIS_BACKOFF_S = 0.25
"""A Redis that comes back serves nobody before it was checked, so its check must not be late."""


log = logging.getLogger("pareta.reconciler")

OnBooked = Callable[[Sequence[LedgerEvent]], None]
"""Told of every batch that was booked."""


@dataclass(slots=True)
class ShardStatus:
    """What metrics and people may know about one shard. Counts are since the process began."""

    leading: bool = False
    booked_events: int = 0
    charged_nanos: int = 0
    batches: int = 0
    duplicates: int = 0
    anomalies: int = 0
    lag_events: int = 0
    lag_s: float = 0.0
    booked_epoch: int = 0
    booked_seq: int = 0
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class _Read:
    """Events, and what they become."""

    events: Sequence[LedgerEvent]
    planned: Plan


@dataclass(slots=True)
class _Desk:
    """One term's connection, right and position."""

    conn: PooledConnection
    term: Term
    writer: BatchWriter
    at: Position
    booked_t_ms: int | None = None
    looked_s: float = 0.0
    renewed_s: float = field(default_factory=time.monotonic)
    locked: bool = False
    ahead: asyncio.Task[_Read] | None = None


class ShardReconciler:
    """Books the stream of one shard whenever it holds the term."""

    def __init__(
        self,
        pool: Pool,
        counter: CreditCounter,
        shard: int,
        months: MonthKeeper,
        *,
        grace_s: float,
        on_booked: OnBooked,
        lacks_grants: Callable[[int], bool],
        batch_events: int = BATCH_EVENTS,
    ) -> None:
        self.status = ShardStatus()
        self.guardian = Guardian(counter, shard, grace_s=grace_s)
        self._on_booked = on_booked
        self._lacks_grants = lacks_grants
        self._pool = pool
        self._counter = counter
        self._shard = shard
        self._months = months
        self._batch_events = batch_events
        self._holder = f"pid {os.getpid()} {secrets.token_hex(4)}"

    async def run(self, stop: asyncio.Event) -> None:
        """Stand by, take the term, book; start over after any failure, until told to stop."""
        failures = 0
        while not stop.is_set():
            batches_before = self.status.batches
            try:
                await self._one_term(stop)
                failures, wait_s = 0, STANDBY_POLL_S
            except Fenced as error:
                self.status.last_error, wait_s = str(error), AFTER_FENCE_S
            except CounterUnavailable as error:
                self.status.last_error, wait_s = str(error), _REDIS_BACKOFF_S
            except LedgerError as error:
                failures = 0 if self.status.batches > batches_before else failures + 1
                self.status.last_error, wait_s = str(error), _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            except Exception as error:  # an event that nobody can read, or a bug of ours: the other shards go on
                log.exception("shard %d cannot be booked", self._shard)
                self.status.last_error, wait_s = f"an unexpected {type(error).__name__}", _BACKOFF_S[-1]
            self.status.leading = False
            await wait(stop, wait_s)
        await self.guardian.close()

    async def _one_term(self, stop: asyncio.Event) -> None:
        async with acquired(self._pool, "reconcile") as conn:
            term = await try_take(conn, self._shard, self._holder)
            if term is None:
                self.status.last_error = ""
                return
            desk = _Desk(conn, term, BatchWriter(conn, term, self._months), term.start)
            await desk.writer.prepare()
            await self._check(desk)
            await self._look_after(desk)
            await self._trim(desk)
            self.status.leading = True
            self.status.last_error = ""
            told_to_stop = asyncio.create_task(stop.wait())
            uneasy = asyncio.create_task(self._keep_watch(desk))
            try:
                while not stop.is_set():
                    desk.ahead = desk.ahead or asyncio.create_task(self._read(desk.at, IDLE_BLOCK_MS))
                    await asyncio.wait([desk.ahead, told_to_stop, uneasy], return_when=asyncio.FIRST_COMPLETED)
                    if uneasy.done():
                        uneasy.result()
                        await self._check(desk)
                        uneasy = asyncio.create_task(self._keep_watch(desk))
                    elif desk.ahead.done():
                        await self._turn(desk, desk.ahead.result())
            finally:
                await _call_off(told_to_stop)
                await _call_off(uneasy)
                await _call_off(desk.ahead)

    async def _keep_watch(self, desk: _Desk) -> None:
        """Until the shard needs the guardian."""
        while True:
            if await self.guardian.is_uneasy(desk.at):
                return
            await asyncio.sleep(GUARD_EVERY_S)

    async def _check(self, desk: _Desk) -> None:
        """Have the guardian judge the shard; nothing is booked meanwhile.

        Raises:
            Fenced, EpochMismatch, CounterUnavailable, LedgerUnavailable.
        """
        await _call_off(desk.ahead)
        desk.ahead = None
        judged = await self.guardian.check(desk.conn, desk.term, desk.at)
        if judged.book_first is None and self._lacks_grants(self._shard):
            judged = await self.guardian.distrust(desk.at, "Redis lacks a grant that it had confirmed.")
        if judged.book_first is not None:
            while (read := await self._read(desk.at, 0)).events:
                await self._book(desk, read)
            judged = Judged(await self.guardian.renew(desk.conn, desk.term, desk.at, judged.book_first))
        self._move(desk, judged.at)

    def _move(self, desk: _Desk, at: Position) -> None:
        desk.at = at
        self.status.booked_epoch, self.status.booked_seq = at.epoch, at.seq

    async def _turn(self, desk: _Desk, read: _Read) -> None:
        desk.ahead = None
        if read.events:
            if len(read.events) >= self._batch_events:  # catching up: read on while Postgres works
                desk.ahead = asyncio.create_task(self._read(read.planned.end, 0))
            await self._book(desk, read)
            await self._trim(desk)
            desk.ahead = desk.ahead or asyncio.create_task(self._read_later(desk.at))
        if not read.events or time.monotonic() - desk.looked_s > LOOK_AFTER_S:
            await self._look_after(desk)
            if self._lacks_grants(self._shard) or await self.guardian.somebody_saw_more(desk.conn):
                await self._check(desk)

    async def _read_later(self, at: Position) -> _Read:
        await asyncio.sleep(GATHER_S)
        return await self._read(at, IDLE_BLOCK_MS)

    async def _read(self, at: Position, block_ms: int) -> _Read:
        # An event's id begins with its epoch. Of a lost epoch nothing is read, should this connection still end at an
        # old primary that goes on counting: what was settled there is recovered from the journals.
        behind = at.stream_id if at.seq else f"{at.epoch}-0"
        events = await self._counter.read_events(self._shard, behind, self._batch_events, block_ms)
        if events:
            self._counter.saw(self._shard, events[-1].epoch, events[-1].seq)
        return _Read(events, plan(events, at))

    async def _book(self, desk: _Desk, read: _Read) -> None:
        """Book a batch. One that Postgres refuses is halved until the event that it refuses stands alone."""
        events = read.events
        try:
            booked = await desk.writer.book(read.planned)
        except EventRefused as refusal:
            if len(events) == 1:
                await self._set_aside(desk, events[0], refusal)
                return
            middle = len(events) // 2
            for half in (events[:middle], events[middle:]):
                await self._book(desk, _Read(half, plan(half, desk.at)))
            return
        self._note(desk, booked, read.planned.end, events)

    async def _set_aside(self, desk: _Desk, event: LedgerEvent, refusal: EventRefused) -> None:
        """Keep an event that has no place in the books as an anomaly, so that it stops nobody else's."""
        self._months.forget()  # should its partition have been detached, this is no fault of the event
        planned = plan([event], desk.at)
        try:
            booked = await desk.writer.book(planned)
        except EventRefused:
            planned = quarantine(event, desk.at, str(refusal))
            booked = await desk.writer.book(planned)
        self._note(desk, booked, planned.end, [event])

    def _note(self, desk: _Desk, booked: Booked, end: Position, events: Sequence[LedgerEvent]) -> None:
        self._move(desk, end)
        desk.booked_t_ms = events[-1].t_ms
        self._on_booked(events)
        desk.renewed_s = time.monotonic()
        status = self.status
        status.booked_events += booked.events
        status.charged_nanos += booked.charged_nanos
        status.duplicates += booked.duplicates
        status.anomalies += booked.anomalies
        status.batches += 1

    async def _trim(self, desk: _Desk) -> None:
        """Forget in Redis what is booked, but for the last of it: by that its past is recognized.

        Should this fail, the next batch does it.
        """
        await self._counter.trim(self._shard, desk.at.stream_id)

    async def _look_after(self, desk: _Desk) -> None:
        """See where Redis stands and what others saw, and renew the term.

        Raises:
            Fenced, CounterUnavailable, LedgerUnavailable.
        """
        desk.looked_s = time.monotonic()
        meta = await self._counter.meta(self._shard)
        epoch = self._counter.epoch_of(self._shard)
        if meta is None or meta.epoch != epoch:
            raise CounterUnavailable("fenced", f"shard {self._shard} is not at the epoch {epoch}")
        behind = max(0, meta.seq - (desk.at.seq if meta.epoch == desk.at.epoch else 0))
        self.status.lag_events = behind
        oldest_ms = desk.booked_t_ms if behind else None
        self.status.lag_s = max(0.0, time.time() - oldest_ms / 1000) if oldest_ms is not None else 0.0
        if time.monotonic() - desk.renewed_s > RENEW_S:
            await renew(desk.conn, desk.term)
            desk.locked = desk.locked or await try_lock(desk.conn, self._shard)
            desk.renewed_s = time.monotonic()


class Reconciler:
    """All shards, and the chores that go with them.

    Args:
        pool: at least ``shards + 2`` connections; each shard keeps one.
        counter: its epochs are kept up to date from here.
        policy: how much credit lies in Redis.
        grace_s: how long credit of a lost epoch stays frozen, so that what was spent of it comes to light.
    """

    def __init__(
        self,
        pool: Pool,
        counter: CreditCounter,
        *,
        policy: EscrowPolicy | None = None,
        grace_s: float = GRACE_S,
        batch_events: int = BATCH_EVENTS,
    ) -> None:
        months = MonthKeeper()
        escrow = EscrowKeeper(pool, counter, policy or EscrowPolicy())
        self._shards = [
            ShardReconciler(
                pool,
                counter,
                shard,
                months,
                grace_s=grace_s,
                on_booked=escrow.note,
                lacks_grants=lambda shard: self.chores.lacks_grants(shard),
                batch_events=batch_events,
            )
            for shard in range(counter.shards)
        ]
        self.chores = Chores(pool, counter, months, escrow, leads=self._leads)

    @property
    def shards(self) -> Sequence[ShardStatus]:
        """The status of each shard."""
        return [shard.status for shard in self._shards]

    @property
    def leading(self) -> bool:
        """Whether this process books at least one shard."""
        return any(shard.status.leading for shard in self._shards)

    @property
    def lag_events(self) -> int:
        """Events in Redis that are not booked, as of the last look (about once a second)."""
        return sum(shard.status.lag_events for shard in self._shards)

    @property
    def lag_s(self) -> float:
        """How old the last booked event is while others wait; 0 when nothing waits."""
        return max(shard.status.lag_s for shard in self._shards)

    @property
    def renewals(self) -> int:
        """How often this process opened a new epoch because Redis had lost something."""
        return sum(shard.guardian.renewals for shard in self._shards)

    @property
    def last_error(self) -> str:
        """What is wrong now, in one sentence; empty if nothing is."""
        errors = [shard.status.last_error for shard in self._shards]
        return next((error for error in (*errors, *self.chores.errors.values()) if error), "")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop. Failures of Redis and Postgres are waited out."""
        async with asyncio.TaskGroup() as group:
            for shard in self._shards:
                group.create_task(shard.run(stop))
            group.create_task(self.chores.run(stop))

    def _leads(self, shard: int) -> bool:
        return self._shards[shard].status.leading


async def _call_off(task: asyncio.Task[Any] | None) -> None:
    """End a task whose outcome does not matter any more: what it met will be met again."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
