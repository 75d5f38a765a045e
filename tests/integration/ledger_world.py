"""A migrated ledger of one test: its pool, and short ways to fill it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from ledger.database import Pool, open_pool
from ledger.migrate import ledger_migrations, migrate


@asynccontextmanager
async def migrated_pool(database_url: str, *, size: int = 8, timeout_s: float = 20.0) -> AsyncIterator[Pool]:
    """Migrate an empty database and open a pool on it."""
    conn = await asyncpg.connect(database_url)
    try:
        await migrate(conn, ledger_migrations(), namespace="ledger")
    finally:
        await conn.close()
    pool = await open_pool(database_url, size=size, timeout_s=timeout_s)
    try:
        yield pool
    finally:
        pool.terminate()
