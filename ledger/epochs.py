"""Epochs: which generation of the Redis counter the ledger trusts.

Floor: edge. Redis scripts carry the epoch and refuse to work under another one, so a Redis that lost something stays
fenced until somebody decides. Here is only the beginning of that story: the first epoch, given to a Redis that was
never used. Opening a later one is the guardian's work.
"""

from __future__ import annotations

from ledger.database import Connection, Pool, transaction

FIRST_EPOCH = 1


async def current_epoch(conn: Connection) -> int:
    """The latest epoch; opens the first one when there is none."""
    number = await conn.fetchval("SELECT max(number) FROM ledger.epoch")
    if number is None:
        await conn.execute(
            "INSERT INTO ledger.epoch (number, reason) VALUES ($1, 'the ledger was opened') ON CONFLICT DO NOTHING",
            FIRST_EPOCH,
        )
        number = FIRST_EPOCH
    return int(number)


async def epoch(pool: Pool) -> int:
    """The latest epoch; opens the first one when there is none."""
    async with transaction(pool, "read the epoch") as conn:
        return await current_epoch(conn)


async def never_used(conn: Connection) -> bool:
    """Whether no credit ever went to Redis: no grant was sent and no event was booked."""
    return bool(
        await conn.fetchval(
            """SELECT NOT EXISTS (SELECT 1 FROM ledger.escrow_grant WHERE attempted_at IS NOT NULL)
                  AND NOT EXISTS (SELECT 1 FROM ledger.reconcile_checkpoint WHERE seq > 0)
                  AND (SELECT coalesce(max(number), 1) FROM ledger.epoch) = 1"""
        )
    )
