"""The reconciler: carries events from Redis into Postgres, each exactly once.

Floor: edge. It owns no truth. The position in the stream commits together with what was booked, so whatever dies in
between, the next one reads on from where the books stand; the stream is trimmed behind that. Beside this it sends the
grants that wait, reaps holds that nobody renews, makes the next months' partitions and compares both sides for drift.

Several may run; one works per shard (``ledger.terms``), the others stand by.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ledger.batches import BatchWriter, Booked, EventRefused, Term
from ledger.booking import Plan, Position, plan, quarantine
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.counter_values import LedgerEvent
from ledger.database import Pool, PooledConnection, acquired
from ledger.drift import DriftWatch
from ledger.epochs import epoch
from ledger.errors import Fenced, LedgerError, LedgerUnavailable
from ledger.grants import deliver_grants, grant_waiting
from ledger.partitions import MonthKeeper, months_ahead
from ledger.terms import RENEW_S, renew, try_lock, try_take

BATCH_EVENTS = 2000
IDLE_BLOCK_MS = 500
LOOK_AFTER_S = 1.0
STANDBY_POLL_S = 1.0
AFTER_FENCE_S = 5.0
"""Whoever was fenced off stands back for so long, so that its successor gets the lock as well."""

REAP_EVERY_S = 1.0
REAP_AT_ONCE = 100
GRANTS_EVERY_S = 0.5
DRIFT_EVERY_S = 5.0
MAINTAIN_EVERY_S = 600.0
MONTHS_AHEAD = 2

_BACKOFF_S = (0.1, 0.3, 1.0, 2.0)


class RedisWentBack(LedgerUnavailable):
    """Redis stands before an event that is booked: it has lost what it once had, and somebody must decide."""


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
        self, pool: Pool, counter: CreditCounter, shard: int, months: MonthKeeper, *, batch_events: int = BATCH_EVENTS
    ) -> None:
        self.status = ShardStatus()
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
            except (LedgerError, CounterUnavailable) as error:
                failures = 0 if self.status.batches > batches_before else failures + 1
                self.status.last_error, wait_s = str(error), _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
            self.status.leading = False
            await wait(stop, wait_s)

    async def _one_term(self, stop: asyncio.Event) -> None:
        async with acquired(self._pool, "reconcile") as conn:
            term = await try_take(conn, self._shard, self._holder)
            if term is None:
                self.status.last_error = ""
                return
            desk = _Desk(conn, term, BatchWriter(conn, term, self._months), term.start)
            await desk.writer.prepare()
            await self._look_after(desk)
            await self._trim(desk)
            self.status.leading = True
            self.status.last_error = ""
            told_to_stop = asyncio.create_task(stop.wait())
            try:
                while not stop.is_set():
                    desk.ahead = desk.ahead or asyncio.create_task(self._read(desk.at, IDLE_BLOCK_MS))
                    await asyncio.wait([desk.ahead, told_to_stop], return_when=asyncio.FIRST_COMPLETED)
                    if desk.ahead.done():
                        await self._turn(desk, desk.ahead.result())
            finally:
                await _call_off(told_to_stop)
                await _call_off(desk.ahead)

    async def _turn(self, desk: _Desk, read: _Read) -> None:
        desk.ahead = None
        if read.events:
            if len(read.events) >= self._batch_events:  # catching up: read on while Postgres works
                desk.ahead = asyncio.create_task(self._read(read.planned.end, 0))
            await self._book(desk, read)
            await self._trim(desk)
        if not read.events or time.monotonic() - desk.looked_s > LOOK_AFTER_S:
            await self._look_after(desk)

    async def _read(self, at: Position, block_ms: int) -> _Read:
        events = await self._counter.read_events(self._shard, at.stream_id, self._batch_events, block_ms)
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
        self._note(desk, booked, read.planned.end, events[-1])

    async def _set_aside(self, desk: _Desk, event: LedgerEvent, refusal: EventRefused) -> None:
        """Keep an event that has no place in the books as an anomaly, so that it stops nobody else's."""
        self._months.forget()  # should its partition have been detached, this is no fault of the event
        planned = plan([event], desk.at)
        try:
            booked = await desk.writer.book(planned)
        except EventRefused:
            planned = quarantine(event, desk.at, str(refusal))
            booked = await desk.writer.book(planned)
        self._note(desk, booked, planned.end, event)

    def _note(self, desk: _Desk, booked: Booked, end: Position, last: LedgerEvent) -> None:
        desk.at = end
        desk.booked_t_ms = last.t_ms
        desk.renewed_s = time.monotonic()
        status = self.status
        status.booked_events += booked.events
        status.charged_nanos += booked.charged_nanos
        status.duplicates += booked.duplicates
        status.anomalies += booked.anomalies
        status.batches += 1

    async def _trim(self, desk: _Desk) -> None:
        """Forget in Redis what is booked. Should this fail, the next batch does it."""
        await self._counter.trim(self._shard, after(desk.at.stream_id))

    async def _look_after(self, desk: _Desk) -> None:
        """See where Redis stands, and renew the term.

        Raises:
            RedisWentBack, Fenced, CounterUnavailable, LedgerUnavailable.
        """
        desk.looked_s = time.monotonic()
        meta = await self._counter.meta(self._shard)
        if meta is None or meta.epoch != self._counter.epoch:
            raise CounterUnavailable("fenced", f"shard {self._shard} is not at the epoch {self._counter.epoch}")
        if (meta.epoch, meta.seq) < (desk.at.epoch, desk.at.seq):
            raise RedisWentBack(
                f"Redis is at event {meta.epoch}-{meta.seq} of shard {self._shard}, but {desk.at.epoch}-{desk.at.seq} "
                "is in the books: Redis has lost events. Nothing is booked until this is resolved."
            )
        behind = meta.seq - (desk.at.seq if meta.epoch == desk.at.epoch else 0)
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
        counter: at the ledger's epoch.
    """

    def __init__(
        self, pool: Pool, counter: CreditCounter, shards: int = 1, *, batch_events: int = BATCH_EVENTS
    ) -> None:
        self._pool = pool
        self._counter = counter
        self._months = MonthKeeper()
        self._shards = [
            ShardReconciler(pool, counter, shard, self._months, batch_events=batch_events) for shard in range(shards)
        ]
        self._drift = DriftWatch(pool, counter, shards)
        self._chore_errors: dict[str, str] = {}
        self.reaped_holds = 0
        self.delivered_grants = 0
        self.grant_gaps: tuple[str, ...] = ()

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
    def drift_nanos(self) -> int:
        """What Redis and Postgres disagree on, found at moments when both were quiet; should always be 0."""
        return self._drift.drift_nanos

    @property
    def last_error(self) -> str:
        """What is wrong now, in one sentence; empty if nothing is."""
        errors = [shard.status.last_error for shard in self._shards] + list(self._chore_errors.values())
        return next((error for error in errors if error), "")

    async def run(self, stop: asyncio.Event) -> None:
        """Work until told to stop. Failures of Redis and Postgres are waited out."""
        async with asyncio.TaskGroup() as group:
            for shard in self._shards:
                group.create_task(shard.run(stop))
            for name, every_s, chore in (
                ("partitions and waiting credit", MAINTAIN_EVERY_S, self._maintain),
                ("grants", GRANTS_EVERY_S, self._deliver_grants),
                ("reaping", REAP_EVERY_S, self._reap),
                ("drift", DRIFT_EVERY_S, self._compare),
            ):
                group.create_task(self._repeat(stop, name, every_s, chore))

    async def _repeat(
        self, stop: asyncio.Event, name: str, every_s: float, chore: Callable[[], Awaitable[None]]
    ) -> None:
        """Do a chore again and again while this process leads."""
        while not stop.is_set():
            wait_s = every_s
            if self.leading:
                try:
                    await chore()
                    self._chore_errors.pop(name, None)
                except (LedgerError, CounterUnavailable) as error:
                    self._chore_errors[name] = f"{name}: {error}"
                    wait_s = min(every_s, STANDBY_POLL_S)
            else:
                self._chore_errors.pop(name, None)
                wait_s = min(every_s, STANDBY_POLL_S)
            await wait(stop, wait_s)

    async def _maintain(self) -> None:
        async with acquired(self._pool, "make the next partitions") as conn:
            await self._months.ensure(conn, months_ahead(datetime.now(UTC), MONTHS_AHEAD))
        await grant_waiting(self._pool, epoch=await epoch(self._pool))

    async def _deliver_grants(self) -> None:
        delivery = await deliver_grants(self._pool, self._counter)
        self.delivered_grants += delivery.delivered
        self.grant_gaps = delivery.gaps
        if delivery.gaps:
            raise RedisWentBack(f"Redis lacks earlier grants of {len(delivery.gaps)} organizations.")

    async def _reap(self) -> None:
        while (reaped := await self._counter.reap(REAP_AT_ONCE)) > 0:
            self.reaped_holds += reaped

    async def _compare(self) -> None:
        await self._drift.step()


async def _call_off(task: asyncio.Task[Any] | None) -> None:
    """End a task whose outcome does not matter any more: what it met will be met again."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


def after(stream_id: str) -> str:
    """The id that follows directly on a stream id."""
    major, _, minor = stream_id.partition("-")
    return f"{major}-{int(minor) + 1}"


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past the order to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
