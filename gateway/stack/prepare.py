"""Bring databases to where a gateway can start: schemas, the counter's epoch, the way the ledger reaches both.

Floor: stack.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources

import asyncpg

from gateway.settings import Settings
from ledger.books.database import translated
from ledger.books.epochs import current_epochs
from ledger.books.ledger import Ledger, open_pool
from ledger.books.migrate import ledger_migrations, migrate
from ledger.counter import CreditCounter


async def migrate_all(database_url: str) -> list[str]:
    """Apply the migrations of the ledger, then of the control plane. Returns the names of those applied now."""
    with translated("connect"):
        conn = await asyncpg.connect(database_url, timeout=10)
    try:
        applied = await migrate(conn, ledger_migrations(), namespace="ledger")
        return applied + await migrate(conn, resources.files("gateway.control.sql"), namespace="control")
    finally:
        await conn.close()


@asynccontextmanager
async def open_ledger(settings: Settings) -> AsyncIterator[tuple[Ledger, CreditCounter]]:
    """The ledger and its counter, at the ledger's epochs. Redis may be away, or not be let in yet.

    Raises:
        LedgerError.
    """
    pool = await open_pool(
        settings.database_url, size=2, timeout_s=settings.postgres_timeout_s, application_name="pareta-stack"
    )
    try:
        ledger = Ledger(pool)
        counter = await CreditCounter.connect(
            settings.redis_url,
            shards=settings.shards,
            epoch=await current_epochs(pool, settings.shards),
            timeout_s=settings.redis_timeout_s,
            keep_closed_s=settings.keep_closed_s,
        )
        try:
            yield ledger, counter
        finally:
            await counter.close()
    finally:
        await pool.close()
