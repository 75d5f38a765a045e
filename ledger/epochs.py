"""Epochs: which generation of the Redis counter the ledger trusts.

Floor: edge. Redis scripts carry the epoch and refuse to work under another one, so a Redis that lost something stays
fenced until somebody decides. Here is only the beginning of that story: the first epoch, given to a Redis that was
never used. Opening a later one is the guardian's work.
"""

from __future__ import annotations

from typing import Protocol

from ledger.counter_values import ShardMeta
from ledger.database import Connection, Pool, acquired, transaction
from ledger.errors import LedgerError

FIRST_EPOCH = 1


class EpochMismatch(LedgerError):
    """Redis and the ledger do not belong together as they stand; no credit may be spent until somebody decides."""


class FencedCounter(Protocol):
    """What is asked of the counter."""

    @property
    def shards(self) -> int:
        """How many shards there are."""

    @property
    def epoch(self) -> int:
        """The epoch it works under."""

    async def meta(self, shard: int) -> ShardMeta | None:
        """Where a shard stands."""

    async def is_blank(self) -> bool:
        """Whether Redis has none of our keys."""

    async def begin_epoch(self) -> None:
        """Open a blank Redis at the epoch."""


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


async def ensure_epoch(pool: Pool, counter: FencedCounter) -> None:
    """Give the first epoch to a Redis that was never used; anything else stays fenced. Safe to call from all sides.

    Raises:
        EpochMismatch: with a sentence for the operator. LedgerUnavailable; what the counter raises.
    """
    if await _belongs_together(pool, counter) or await _belongs_together(pool, counter):  # somebody else may be at it
        return
    raise EpochMismatch(await _describe(pool, counter))


async def _belongs_together(pool: Pool, counter: FencedCounter) -> bool:
    metas = [await counter.meta(shard) for shard in range(counter.shards)]
    async with acquired(pool, "compare the epochs") as conn:
        unused = await never_used(conn)
    begun = [meta for meta in metas if meta is not None]
    at_epoch = all(meta.epoch == counter.epoch for meta in begun)
    if len(begun) == len(metas) and at_epoch:
        return not unused or all(meta.seq == 0 for meta in begun)
    half_begun = bool(begun) and at_epoch and all(meta.seq == 0 for meta in begun)
    if unused and (half_begun or await counter.is_blank()):
        await counter.begin_epoch()
        return True
    return False


async def _describe(pool: Pool, counter: FencedCounter) -> str:
    async with acquired(pool, "compare the epochs") as conn:
        unused = await never_used(conn)
    metas = [await counter.meta(shard) for shard in range(counter.shards)]
    if unused:
        return (
            "Redis holds a credit counter, but this ledger has never granted anything: it belongs to another ledger, "
            "or Postgres was restored from before the first grant."
        )
    if None in metas:
        return (
            f"Redis has lost the credit counter (epoch {counter.epoch}) that this ledger granted credit to. "
            "Restore its append-only file, or open a new epoch."
        )
    found = ", ".join(str(meta.epoch) for meta in metas if meta is not None)
    return f"Redis is at epoch {found}, the ledger at epoch {counter.epoch}; restart with the ledger's epoch."
