"""The books alone: a migrated Postgres whose events come from the test and not from Redis."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from ledger.books.batches import BatchWriter, Booked, Term
from ledger.books.booking import Position, plan
from ledger.books.database import Pool, PooledConnection, acquired, transaction
from ledger.books.epochs import current_epochs
from ledger.books.grants import Grant, grant_slice
from ledger.books.ledger import Ledger
from ledger.books.partitions import MonthKeeper
from ledger.books.recovery import Recovered, open_epoch
from ledger.books.terms import try_take
from ledger.core.ids import shard_of
from ledger.core.meters import Meter
from ledger.counter.values import LedgerEvent
from ledger.proof.audit import audit
from tests.integration.ledger_world import migrated_pool, new_request_id

NANO = {Meter.REQUEST: 1}
"""A price at which so many requests cost so many nanos, so that every charge has a usage that explains it."""


@dataclass(slots=True)
class Desk:
    """One shard's reconciler without Redis: events are made here, and booked when the test says so."""

    shard: int
    epoch: int
    at: Position
    conn: PooledConnection
    term: Term
    writer: BatchWriter
    seq: int = 0

    async def book(self, events: Sequence[LedgerEvent]) -> Booked:
        planned = plan(events, self.at)
        booked = await self.writer.book(planned)
        self.at = planned.end
        return booked


@dataclass(slots=True)
class Books:
    """A ledger, its shards' desks, and short ways to make things happen."""

    pool: Pool
    ledger: Ledger
    months: MonthKeeper
    desks: list[Desk]
    card_id: str

    def desk_of(self, org: str) -> Desk:
        return self.desks[shard_of(org, len(self.desks))]

    async def fund(self, org: str, nanos: int, *, granted: int | None = None) -> None:
        """Pay in, and grant all of it or a part."""
        await self.ledger.open_accounts(org)
        await self.ledger.top_up(org, nanos, new_request_id())
        await self.grant(org, nanos if granted is None else granted)

    async def grant(self, org: str, nanos: int) -> Grant | None:
        desk = self.desk_of(org)
        async with transaction(self.pool, "grant") as conn:
            return await grant_slice(conn, org, shard=desk.shard, epoch=desk.epoch, want_nanos=nanos)

    def info(self, nanos: int, **more: object) -> bytes:
        """The description of a usage that costs so much."""
        about = {"endpoint": "ep_a", "card": self.card_id, "meters": {"request": nanos}, "outcome": "finished"}
        return json.dumps(about | more).encode()

    def event(self, org: str, kind: str, nanos: int, *, hold: str = "", short: int = 0, price: int = -1) -> LedgerEvent:
        """The next event of the organization's shard. ``price``: of the whole usage, unless it is what is charged."""
        desk = self.desk_of(org)
        desk.seq += 1
        return LedgerEvent(
            id=f"{desk.epoch}-{desk.seq}",
            seq=desk.seq,
            epoch=desk.epoch,
            kind=kind,
            hold="" if kind == "return" else hold or new_request_id(),
            org=org,
            amount_nanos=nanos,
            held_nanos=0,
            short_nanos=short,
            t_ms=time.time_ns() // 1_000_000,
            grant_seq=None,
            info=self.info(nanos + short if price < 0 else price),
            beat=None,
        )

    def recovered(
        self, org: str, nanos: int, *, hold: str = "", epoch: int | None = None, kind: str = "settle"
    ) -> Recovered:
        desk = self.desk_of(org)
        return Recovered(
            hold_id=hold or new_request_id(),
            org_id=org,
            shard=desk.shard,
            epoch=desk.epoch if epoch is None else epoch,
            amount_nanos=nanos,
            info=self.info(nanos),
            kind=kind,  # type: ignore[arg-type]
        )

    async def lose(self, shard: int = 0, *, grace_s: float = 0.0) -> int:
        """Close the shard's epoch; returns the lost one."""
        desk, lost = self.desks[shard], self.desks[shard].epoch
        desk.epoch = await open_epoch(
            desk.conn,
            desk.term,
            len(self.desks),
            reason="The test has lost Redis.",
            grace_s=grace_s,
            redis_epoch=lost,
            redis_seq=desk.at.seq,
            witnessed_seq=desk.seq,
        )
        desk.at, desk.seq = Position(desk.epoch, 0, "0-0"), 0
        return lost

    async def purse(self, org: str) -> tuple[int, int, int]:
        """What is available, in escrow and frozen."""
        balance = await self.ledger.balance(org)
        return balance.available_nanos, balance.escrow_nanos, balance.frozen_nanos

    async def differences(self) -> list[str]:
        """What the audit finds, without Redis."""
        report = await audit(self.pool, None)
        return [
            f"{found.check}: {found.subject}: {found.found} and not {found.expected}" for found in report.differences
        ]

    async def later(self) -> None:
        """Let all grace times pass."""
        async with self.pool.acquire() as conn, conn.transaction():
            await conn.execute("SET LOCAL session_replication_role = replica")
            await conn.execute("UPDATE ledger.epoch SET release_after = now() - interval '1 second' WHERE closes > 0")


@asynccontextmanager
async def opened_books(database_url: str, *, shards: int = 1, size: int = 12) -> AsyncIterator[Books]:
    """A fresh ledger in which every shard is this test's to book."""
    async with migrated_pool(database_url, size=size) as pool, AsyncExitStack() as stack:
        ledger = Ledger(pool)
        card = await ledger.set_price("ep_a", NANO)
        desks = []
        for shard, epoch in enumerate(await current_epochs(pool, shards)):
            conn = await stack.enter_async_context(acquired(pool, "book"))
            term = await try_take(conn, shard, "test")
            assert term is not None
            writer = BatchWriter(conn, term, MonthKeeper())
            await writer.prepare()
            desks.append(Desk(shard, epoch, term.start, conn, term, writer))
        yield Books(pool, ledger, MonthKeeper(), desks, card.id)
