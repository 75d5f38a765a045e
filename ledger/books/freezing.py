"""The end of an epoch in the books: what it had is frozen, and released when it is known what was spent of it.

Floor: edge. When Redis has lost something, nobody knows what was spent of the credit that it had. All of it is frozen,
in the transaction that opens the next epoch. What workers settled is charged from it (``ledger.books.recovered``),
streams that go on reserve it (``ledger.books.carried``), and the rest is released after a grace time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.books.batches import Term, lock_checkpoint
from ledger.books.database import Connection, Pool, PooledConnection, Record, acquired, transaction, translated
from ledger.books.epochs import current_epochs, record_guardian_event
from ledger.books.grants import fresh_id
from ledger.books.partitions import MonthKeeper, months_ahead
from ledger.books.postings import Posting, derived_id, post
from ledger.core.ids import shard_of
from ledger.queries import query

ORGANIZATIONS_AT_ONCE = 1000
RELEASED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Released:
    """What was released now. ``epochs``: lost ones of which nothing is frozen any more."""

    released_nanos: int
    organizations: int
    epochs: tuple[int, ...]


async def open_epoch(
    conn: PooledConnection,
    term: Term,
    shards: int,
    *,
    reason: str,
    grace_s: float,
    redis_epoch: int | None,
    redis_seq: int | None,
    witnessed_seq: int | None,
) -> int:
    """Close a shard's epoch and open the next: freeze its escrow, and move the checkpoint to the new beginning.

    Args:
        conn: outside any transaction.
        term: of the shard's reconciler; where it stands does not matter.
        shards: how many there are.
        reason: a sentence for the operator.
        grace_s: how long the frozen credit waits for what was spent of it.
        redis_epoch, redis_seq, witnessed_seq: where Redis stood, and what was seen of the lost epoch; None: unknown.

    Returns:
        The number of the new epoch. Redis must be fenced before, and given this number after.

    Raises:
        Fenced: the term is over. LedgerUnavailable: the outcome is unknown; see ``current_epochs``.
    """
    with translated("open a new epoch"):
        await MonthKeeper().ensure(conn, months_ahead(datetime.now(UTC), 1))
        async with conn.transaction():
            at = await lock_checkpoint(conn, term)
            # Two shards may lose their Redis at once, and numbers are everybody's.
            await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended('pareta open epoch', 0))")
            lost = (await current_epochs(conn, shards))[term.shard]
            # Whoever grants holds a share of this row: it has granted by now, or will find the epoch ended.
            await conn.execute("SELECT 1 FROM ledger.epoch WHERE number = $1 FOR UPDATE", lost)
            number: int = await conn.fetchval(
                """INSERT INTO ledger.epoch (number, reason, shard, closes, lost_booked_seq, lost_redis_seq,
                                             lost_witnessed_seq, release_after)
                   SELECT max(number) + 1, $1, $2, $3, $4, $5, $6, clock_timestamp() + make_interval(secs => $7)
                     FROM ledger.epoch
                   RETURNING number""",
                reason,
                term.shard,
                lost,
                at.seq if at.epoch == lost else 0,
                redis_seq if redis_epoch == lost else None,
                witnessed_seq,
                grace_s,
            )
            frozen_nanos = await _freeze(conn, term.shard, shards, lost)
            await conn.execute("UPDATE ledger.epoch SET frozen_nanos = $2 WHERE number = $1", number, frozen_nanos)
            await conn.execute(
                """UPDATE ledger.reconcile_checkpoint
                      SET epoch = $2, seq = 0, stream_id = '0-0', last_event = '', updated_at = clock_timestamp()
                    WHERE shard = $1""",
                term.shard,
                number,
            )
    return number


async def _freeze(conn: Connection, shard: int, shards: int, lost: int) -> int:
    """Freeze all escrow of a shard's organizations; returns how much that was."""
    frozen_nanos, after_org = 0, ""
    while True:
        page = await conn.fetch(
            "SELECT org_id FROM ledger.balance WHERE escrow_nanos > 0 AND org_id > $1 ORDER BY org_id LIMIT $2",
            after_org,
            ORGANIZATIONS_AT_ONCE,
        )
        if not page:
            return frozen_nanos
        after_org = page[-1]["org_id"]
        ours = [row["org_id"] for row in page if shard_of(row["org_id"], shards) == shard]
        frozen_nanos += await _freeze_some(conn, shard, lost, ours)


async def _freeze_some(conn: Connection, shard: int, lost: int, org_ids: Sequence[str]) -> int:
    rows = await conn.fetch(
        """SELECT org_id, escrow_nanos FROM ledger.balance WHERE org_id = ANY($1::text[]) AND escrow_nanos > 0
            ORDER BY org_id FOR NO KEY UPDATE""",
        org_ids,
    )
    if not rows:
        return 0
    now_ms = time.time_ns() // 1_000_000
    ids = [derived_id("frz_", now_ms, row["org_id"], lost, "freeze") for row in rows]
    await conn.execute(
        """INSERT INTO ledger.escrow_freeze (id, org_id, shard, epoch, kind, amount_nanos)
           SELECT f.id, f.org_id, $1, $2, 'freeze', f.amount_nanos
             FROM unnest($3::text[], $4::text[], $5::bigint[]) AS f (id, org_id, amount_nanos)""",
        shard,
        lost,
        ids,
        [row["org_id"] for row in rows],
        [row["escrow_nanos"] for row in rows],
    )
    await conn.execute(
        """UPDATE ledger.escrow_grant SET state = 'frozen'
            WHERE state = 'pending' AND epoch = $1 AND org_id = ANY($2::text[])""",
        lost,
        [row["org_id"] for row in rows],
    )
    await post(
        conn,
        [
            Posting("tx_" + freeze[-26:], "freeze", row["org_id"], "escrow", "frozen", row["escrow_nanos"], freeze)
            for freeze, row in zip(ids, rows, strict=True)
        ],
    )
    return sum(row["escrow_nanos"] for row in rows)


async def release_due(pool: Pool, shard: int) -> Released:
    """Release what is frozen, over its grace time and not reserved by a carried hold; safe to repeat, at any time.

    Raises:
        LedgerUnavailable: repeat.
    """
    nanos, organizations, after_org, months = 0, 0, "", MonthKeeper()
    while True:
        async with acquired(pool, "look for credit to release") as conn:
            rows = await conn.fetch(query("due_releases"), shard, after_org, RELEASED_AT_ONCE)
            if not rows:
                break
            await months.ensure(conn, months_ahead(datetime.now(UTC), 1))
        after_org = rows[-1]["org_id"]
        async with transaction(pool, "release frozen credit") as conn:
            released = await _release(conn, shard, [row["org_id"] for row in rows])
        nanos += sum(released.values())
        organizations += len(released)
    async with transaction(pool, "note what was released") as conn:
        # Locked first, so that what follows sees what others have noted.
        await conn.execute(
            """SELECT 1 FROM ledger.epoch WHERE shard = $1 AND closes IS NOT NULL AND released_at IS NULL
                ORDER BY number FOR NO KEY UPDATE""",
            shard,
        )
        done = await conn.fetch(query("finish_epochs"), shard)
        epochs = tuple(row["closes"] for row in done if row["finished"])
        if nanos or epochs:
            await record_guardian_event(
                conn, shard, "released", detail={"nanos": nanos, "organizations": organizations, "epochs": epochs}
            )
    return Released(nanos, organizations, epochs)


async def _release(conn: Connection, shard: int, org_ids: Sequence[str]) -> dict[str, int]:
    """Release what is due of these organizations; returns how much by organization."""
    if not org_ids:
        return {}
    await conn.execute(
        "SELECT 1 FROM ledger.balance WHERE org_id = ANY($1::text[]) ORDER BY org_id FOR NO KEY UPDATE", org_ids
    )
    # Read under the lock: what is due now stays due until it is written.
    rows = await conn.fetch(query("releasable"), shard, org_ids)
    parts = [(fresh_id("rel_"), row["org_id"], row["epoch"], nanos) for row, nanos in _parts(rows)]
    await conn.execute(
        """INSERT INTO ledger.escrow_freeze (id, org_id, shard, epoch, kind, amount_nanos)
           SELECT f.id, f.org_id, $1, f.epoch, 'release', f.amount_nanos
             FROM unnest($2::text[], $3::text[], $4::integer[], $5::bigint[]) AS f (id, org_id, epoch, amount_nanos)""",
        shard,
        [release for release, _, _, _ in parts],
        [org_id for _, org_id, _, _ in parts],
        [epoch for _, _, epoch, _ in parts],
        [nanos for _, _, _, nanos in parts],
    )
    await post(
        conn,
        [
            Posting("tx_" + release[-26:], "release", org_id, "frozen", "available", nanos, release)
            for release, org_id, _, nanos in parts
        ],
    )
    released: dict[str, int] = {}
    for _, org_id, _, nanos in parts:
        released[org_id] = released.get(org_id, 0) + nanos
    return released


def _parts(rows: Sequence[Record]) -> list[tuple[Record, int]]:
    """Split what an organization is due over its lost epochs, oldest first: to each at most what was frozen for it."""
    parts = []
    left: dict[str, int] = {}
    for row in rows:
        due_nanos = left.setdefault(row["org_id"], int(row["due_nanos"]))
        nanos = min(due_nanos, int(row["unreleased_nanos"]))
        if nanos > 0:
            parts.append((row, nanos))
            left[row["org_id"]] -= nanos
    return parts
