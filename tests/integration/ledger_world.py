"""A ledger of one test: migrated Postgres, real Redis, and short ways to make money move."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from ledger.books.database import Pool, open_pool, transaction
from ledger.books.epochs import current_epochs
from ledger.books.grants import Grant, grant_slice
from ledger.books.ledger import Ledger
from ledger.books.migrate import ledger_migrations, migrate
from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, Quote, charge_nanos
from ledger.counter import Admission, CreditCounter, Held, Level, Settlement
from ledger.upkeep.escrow import EscrowPolicy
from ledger.upkeep.reconcile import Reconciler

ORG = "org_aaaaaaaaaaaa"
ENDPOINT = "ep_aaaaaaaaaaaa"
USD = 1_000_000_000
RATES = {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000, Meter.REQUEST: 1_001}


class HandsOff(EscrowPolicy):
    """Neither refills nor returns."""

    def refill_nanos(self, level: Level, nanos_per_s: float) -> int:
        return 0

    def excess_keep_nanos(self, level: Level, nanos_per_s: float) -> int | None:
        return None


QUIET = HandsOff(idle_s=86_400.0)


async def migrate_url(database_url: str) -> None:
    """Migrate an empty database."""
    conn = await asyncpg.connect(database_url)
    try:
        await migrate(conn, ledger_migrations(), namespace="ledger")
    finally:
        await conn.close()


@asynccontextmanager
async def migrated_pool(database_url: str, *, size: int = 8, timeout_s: float = 20.0) -> AsyncIterator[Pool]:
    """Migrate an empty database and open a pool on it."""
    await migrate_url(database_url)
    pool = await open_pool(database_url, size=size, timeout_s=timeout_s)
    try:
        yield pool
    finally:
        pool.terminate()


def new_request_id(time_ms: int | None = None) -> str:
    return request_id(time.time_ns() // 1_000_000 if time_ms is None else time_ms, os.urandom(10))


@dataclass(slots=True)
class World:
    """Both sides of the money and the one way between them."""

    pool: Pool
    counter: CreditCounter
    ledger: Ledger
    card: PriceCard

    async def fund(self, amount_nanos: int = 100 * USD, *, org: str = ORG, key: str = "first") -> None:
        """Pay in, and grant all of it to Redis."""
        await self.ledger.open_accounts(org)
        await self.ledger.top_up(org, amount_nanos, key)
        await self.grant(org)

    async def grant(self, org: str = ORG, want_nanos: int = 1 << 62) -> Grant | None:
        """Grant to Redis what is available, or as much as is wanted, and send it."""
        grant = await grant_only(self.pool, self.counter, org, want_nanos)
        await self.ledger.deliver_grants(self.counter, org)
        return grant

    async def hold(
        self, *, org: str = ORG, hold_id: str = "", expires_in_s: float = 30.0, fixed: int = 10_000_000
    ) -> str:
        """Take a hold and return its id."""
        hold_id = hold_id or new_request_id()
        admission = Admission(
            hold_id, org, "f", Quote(fixed, 0), 0, expires_in_s, info=self.info({}, "reaped", started_ms=1)
        )
        assert isinstance(await self.counter.admit(admission), Held)
        return hold_id

    def info(self, meters: dict[Meter, int], outcome: str = "finished", **more: object) -> bytes:
        """The description of a request as the gateway writes it."""
        return json.dumps(
            {
                "key": "k" * 24,
                "endpoint": ENDPOINT,
                "card": self.card.id,
                "route": "chat",
                "stream": True,
                "meters": meters,
                "source": "reported",
                "outcome": outcome,
                "status": 200,
                "started_ms": time.time_ns() // 1_000_000,
                "ttft_ms": 12.5,
                "total_ms": 250.0,
                **more,
            }
        ).encode()

    def settlement(self, hold_id: str, meters: dict[Meter, int], *, org: str = ORG) -> Settlement:
        """What the gateway would post for these quantities."""
        return Settlement(hold_id, org, charge_nanos(self.card, meters), info=self.info(meters))

    async def spend(self, meters: dict[Meter, int], *, org: str = ORG, hold_id: str = "") -> str:
        """One whole request."""
        hold_id = await self.hold(org=org, hold_id=hold_id)
        await self.counter.settle(self.settlement(hold_id, meters, org=org))
        return hold_id

    async def booked(self, reconciler: Reconciler | None = None, *, within_s: float = 20.0) -> None:
        """Run a reconciler (or wait for the one that runs) until everything in Redis is in Postgres."""
        if reconciler is None:
            async with reconciling(self) as own:
                await self.booked(own, within_s=within_s)
            return
        async with asyncio.timeout(within_s):
            for shard in range(self.counter.shards):
                while True:
                    meta = await self.counter.meta(shard)
                    at = await self.pool.fetchrow(
                        "SELECT epoch, seq FROM ledger.reconcile_checkpoint WHERE shard = $1", shard
                    )
                    if meta is not None and (meta.seq == 0 or (at is not None and tuple(at) == (meta.epoch, meta.seq))):
                        break
                    await asyncio.sleep(0.02)

    async def open_anomalies(self) -> list[str]:
        rows = await self.pool.fetch("SELECT kind FROM ledger.anomaly WHERE resolved_at IS NULL ORDER BY id")
        return [row["kind"] for row in rows]


async def grant_only(pool: Pool, counter: CreditCounter, org: str = ORG, want_nanos: int = 1 << 62) -> Grant | None:
    """Grant without sending."""
    shard = counter.shard_of(org)
    async with transaction(pool, "grant") as conn:
        return await grant_slice(conn, org, shard=shard, epoch=counter.epoch_of(shard), want_nanos=want_nanos)


@asynccontextmanager
async def opened_world(database_url: str, redis_url: str, *, shards: int = 1) -> AsyncIterator[World]:
    """A fresh ledger with a counter at its first epoch and one priced endpoint."""
    async with migrated_pool(database_url) as pool:
        ledger = Ledger(pool)
        epochs = await current_epochs(pool, shards)
        counter = await CreditCounter.connect(redis_url, shards=shards, epoch=epochs, timeout_s=5.0)
        try:
            await counter.begin_epoch()
            yield World(pool, counter, ledger, await ledger.set_price(ENDPOINT, RATES))
        finally:
            await counter.close()


@asynccontextmanager
async def reconciling(
    world: World, *, batch_events: int = 5000, policy: EscrowPolicy = QUIET, grace_s: float = 60.0
) -> AsyncIterator[Reconciler]:
    """A reconciler that runs inside the test's own loop. Unless told otherwise it leaves escrow as it is."""
    stop = asyncio.Event()
    reconciler = Reconciler(world.pool, world.counter, policy=policy, grace_s=grace_s, batch_events=batch_events)
    task = asyncio.create_task(reconciler.run(stop))
    try:
        yield reconciler
    finally:
        stop.set()
        await asyncio.wait_for(task, 20)
