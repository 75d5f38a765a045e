"""Epochs: which generation of each shard's counter in Redis the ledger trusts, and what was seen of it.

Floor: edge. Every call into Redis carries the epoch, and Redis refuses to work under another one, so a Redis that lost
something stays fenced until the guardian has decided. Opening a later epoch is in ``ledger.books.freezing``, because it
freezes credit in the same transaction.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import asyncpg

from ledger.books.database import Connection, Pool, Record, acquired, translated
from ledger.errors import LedgerError

FIRST_EPOCH = 1

GuardianKind = Literal["begun", "same_epoch", "new_epoch", "wiped", "loaded", "released", "refused", "reaped_carried"]


class EpochMismatch(LedgerError):
    """Redis and the ledger do not belong together as they stand; no credit may be spent until somebody decides."""


@dataclass(frozen=True, slots=True)
class EpochStory:
    """One epoch, and what became of the one that it closed.

    ``shard`` None: of every shard. ``booked_seq``, ``redis_seq`` and ``witnessed_seq`` say where the closed one stood
    in the books, in Redis and in the eyes of the workers. ``frozen_nanos`` of it were frozen, ``released_nanos`` of
    that are released so far; ``released_at``: nothing is left to release.
    """

    number: int
    shard: int | None
    opened_at: datetime
    reason: str
    closes: int | None
    booked_seq: int | None
    redis_seq: int | None
    witnessed_seq: int | None
    frozen_nanos: int
    release_after: datetime | None
    released_at: datetime | None
    released_nanos: int


@dataclass(frozen=True, slots=True)
class GuardianEvent:
    """Something that the guardian saw or did."""

    at: datetime
    shard: int
    kind: str
    epoch: int | None
    redis_epoch: int | None
    redis_seq: int | None
    booked_seq: int | None
    witnessed_seq: int | None
    detail: dict[str, Any]


async def current_epochs(conn: Connection | Pool, shards: int) -> list[int]:
    """The epoch of each shard; opens the first one when there is none.

    Raises:
        LedgerUnavailable.
    """
    async with _asking(conn, "read the epochs") as asked:
        rows = await asked.fetch("SELECT shard, max(number) AS number FROM ledger.epoch GROUP BY shard")
        if not rows:
            await asked.execute(
                "INSERT INTO ledger.epoch (number, reason) VALUES ($1, 'the ledger was opened') ON CONFLICT DO NOTHING",
                FIRST_EPOCH,
            )
    numbers = {row["shard"]: int(row["number"]) for row in rows}
    everyones = numbers.get(None, FIRST_EPOCH)
    return [max(numbers.get(shard, 0), everyones) for shard in range(shards)]


async def never_used(conn: Connection) -> bool:
    """Whether no credit ever went to Redis: no grant was sent, no event was booked and no epoch was lost."""
    return bool(
        await conn.fetchval(
            """SELECT NOT EXISTS (SELECT 1 FROM ledger.escrow_grant WHERE attempted_at IS NOT NULL)
                  AND NOT EXISTS (SELECT 1 FROM ledger.reconcile_checkpoint WHERE seq > 0)
                  AND NOT EXISTS (SELECT 1 FROM ledger.epoch WHERE closes IS NOT NULL)"""
        )
    )


async def epoch_stories(pool: Pool, *, limit: int = 100) -> list[EpochStory]:
    """The latest epochs of all shards, newest first."""
    async with acquired(pool, "read the epochs") as conn:
        rows = await conn.fetch("SELECT * FROM ledger.epoch ORDER BY number DESC LIMIT $1", limit)
    return [
        EpochStory(
            number=row["number"],
            shard=row["shard"],
            opened_at=row["opened_at"],
            reason=row["reason"],
            closes=row["closes"],
            booked_seq=row["lost_booked_seq"],
            redis_seq=row["lost_redis_seq"],
            witnessed_seq=row["lost_witnessed_seq"],
            frozen_nanos=int(row["frozen_nanos"]),
            release_after=row["release_after"],
            released_at=row["released_at"],
            released_nanos=int(row["released_nanos"]),
        )
        for row in rows
    ]


# What was seen


async def witness(pool: Pool, shard: int, epoch: int, seq: int) -> None:
    """Record that event ``seq`` of an epoch exists, because somebody got its answer.

    Raises:
        LedgerUnavailable.
    """
    async with acquired(pool, "record what a worker saw") as conn:
        await conn.execute(
            """INSERT INTO ledger.witness AS w (shard, epoch, seq) VALUES ($1, $2, $3)
               ON CONFLICT (shard, epoch) DO UPDATE SET seq = EXCLUDED.seq, reported_at = clock_timestamp()
                WHERE w.seq < EXCLUDED.seq""",
            shard,
            epoch,
            seq,
        )


async def witnessed(conn: Connection | Pool, shard: int, epoch: int) -> int:
    """The highest event of an epoch that anybody has reported; 0 if nobody did."""
    async with _asking(conn, "read what workers saw") as asked:
        seq = await asked.fetchval("SELECT seq FROM ledger.witness WHERE shard = $1 AND epoch = $2", shard, epoch)
    return seq or 0


async def record_guardian_event(
    conn: Connection | Pool,
    shard: int,
    kind: GuardianKind | str,
    *,
    epoch: int | None = None,
    redis_epoch: int | None = None,
    redis_seq: int | None = None,
    booked_seq: int | None = None,
    witnessed_seq: int | None = None,
    detail: dict[str, Any] | None = None,
) -> None:
    """Write down what the guardian saw or did, for ``ledger status``.

    Args:
        kind: one of ``GuardianKind``.

    Raises:
        LedgerUnavailable; LedgerConflict: there is no such kind.
    """
    async with _asking(conn, "record what the guardian did") as asked:
        await asked.execute(
            """INSERT INTO ledger.guardian_event
                   (shard, kind, epoch, redis_epoch, redis_seq, booked_seq, witnessed_seq, detail)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)""",
            shard,
            kind,
            epoch,
            redis_epoch,
            redis_seq,
            booked_seq,
            witnessed_seq,
            json.dumps(detail or {}),
        )


async def guardian_events(pool: Pool, *, limit: int = 50) -> list[GuardianEvent]:
    """What the guardian saw and did last, newest first."""
    async with acquired(pool, "read what the guardian did") as conn:
        rows = await conn.fetch("SELECT * FROM ledger.guardian_event ORDER BY id DESC LIMIT $1", limit)
    return [_guardian_event(row) for row in rows]


def _guardian_event(row: Record) -> GuardianEvent:
    return GuardianEvent(
        at=row["at"],
        shard=row["shard"],
        kind=row["kind"],
        epoch=row["epoch"],
        redis_epoch=row["redis_epoch"],
        redis_seq=row["redis_seq"],
        booked_seq=row["booked_seq"],
        witnessed_seq=row["witnessed_seq"],
        detail=json.loads(row["detail"]),
    )


@asynccontextmanager
async def _asking(conn: Connection | Pool, doing: str) -> AsyncIterator[Connection]:
    """A connection, whether one or a pool of them was given."""
    if isinstance(conn, asyncpg.Pool):
        async with acquired(conn, doing) as own:
            yield own
    else:
        with translated(doing):
            yield conn
