"""Carried holds: streams that outlive the epoch in which their hold was taken.

Floor: edge. Redis has forgotten such a hold, so its worker's heartbeats come here. They keep its credit from being
released, and say what to charge should the worker fall silent: then it is reaped at what was delivered, by the clock of
Postgres. A settlement, before or after, has the last word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ledger.books.database import Connection, Pool, Record, acquired, transaction
from ledger.books.epochs import record_guardian_event
from ledger.books.partitions import MonthKeeper
from ledger.books.postings import lock_balances
from ledger.books.recovered import Recovered, book_locked, months_of

REAPED_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class CarriedBeat:
    """A sign of life of a hold that Redis has lost. ``info``: as its settlement's would be now."""

    hold_id: str
    org_id: str
    shard: int
    epoch: int
    held_nanos: int
    accrued_nanos: int
    info: bytes
    expires_in_s: float


async def carry_holds(pool: Pool, beats: Sequence[CarriedBeat]) -> None:
    """Keep these holds until ``expires_in_s`` from now. A beat that comes late takes nothing back.

    Raises:
        LedgerUnavailable: repeat; LedgerRefused: a value is out of bounds.
    """
    latest = {beat.hold_id: beat for beat in beats}
    beats = [latest[hold_id] for hold_id in sorted(latest)]  # locked in order, so that nobody waits in a circle
    if not beats:
        return
    async with acquired(pool, "carry holds") as conn:
        await conn.execute(
            """INSERT INTO ledger.carried_hold AS c
                   (hold_id, org_id, shard, epoch, held_nanos, accrued_nanos, info, expires_at)
               SELECT b.hold_id, b.org_id, b.shard, b.epoch, b.held_nanos, b.accrued_nanos, b.info,
                      clock_timestamp() + make_interval(secs => b.expires_in_s)
                 FROM unnest($1::text[], $2::text[], $3::smallint[], $4::integer[], $5::bigint[], $6::bigint[],
                             $7::bytea[], $8::double precision[])
                   AS b (hold_id, org_id, shard, epoch, held_nanos, accrued_nanos, info, expires_in_s)
               ON CONFLICT (hold_id) DO UPDATE SET
                   held_nanos = greatest(c.held_nanos, EXCLUDED.held_nanos),
                   accrued_nanos = greatest(c.accrued_nanos, EXCLUDED.accrued_nanos),
                   info = CASE WHEN EXCLUDED.accrued_nanos >= c.accrued_nanos THEN EXCLUDED.info ELSE c.info END,
                   expires_at = greatest(c.expires_at, EXCLUDED.expires_at)
                WHERE c.org_id = EXCLUDED.org_id""",
            [beat.hold_id for beat in beats],
            [beat.org_id for beat in beats],
            [beat.shard for beat in beats],
            [beat.epoch for beat in beats],
            [beat.held_nanos for beat in beats],
            [beat.accrued_nanos for beat in beats],
            [beat.info for beat in beats],
            [beat.expires_in_s for beat in beats],
        )


async def reap_carried(pool: Pool, months: MonthKeeper, shard: int) -> int:
    """Charge the carried holds of a shard that nobody renewed for what they had delivered; returns how many.

    Raises:
        LedgerUnavailable: repeat.
    """
    reaped = 0
    while True:
        async with acquired(pool, "look for expired holds") as conn:
            expired = await conn.fetch(
                """SELECT * FROM ledger.carried_hold WHERE shard = $1 AND expires_at <= clock_timestamp()
                    ORDER BY expires_at LIMIT $2""",
                shard,
                REAPED_AT_ONCE,
            )
            await months.ensure(conn, months_of([_item(row) for row in expired]))
        if not expired:
            return reaped
        async with transaction(pool, "reap carried holds") as conn:
            reaped += await _reap(conn, shard, expired)


async def _reap(conn: Connection, shard: int, expired: Sequence[Record]) -> int:
    await lock_balances(conn, [row["org_id"] for row in expired])
    # A heartbeat may have come since they were read.
    rows = await conn.fetch(
        """SELECT * FROM ledger.carried_hold WHERE hold_id = ANY($1::text[]) AND expires_at <= clock_timestamp()
            ORDER BY hold_id FOR UPDATE""",
        [row["hold_id"] for row in expired],
    )
    outcomes = await book_locked(conn, [_item(row) for row in rows])
    if rows:
        await conn.execute(
            "DELETE FROM ledger.carried_hold WHERE hold_id = ANY($1::text[])", [row["hold_id"] for row in rows]
        )
        await record_guardian_event(
            conn,
            shard,
            "reaped_carried",
            detail={"holds": len(rows), "charged_nanos": sum(outcome.charged_nanos for outcome in outcomes)},
        )
    return len(rows)


def _item(row: Record) -> Recovered:
    return Recovered(
        hold_id=row["hold_id"],
        org_id=row["org_id"],
        shard=row["shard"],
        epoch=row["epoch"],
        amount_nanos=row["accrued_nanos"],
        info=row["info"],
        kind="reap",
        held_nanos=row["held_nanos"],
    )
