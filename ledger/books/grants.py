"""Escrow: what Postgres has granted to Redis, slice by slice, and bringing it there.

Floor: edge. A grant is a committed move of an organization's credit from *available* to *escrow*, numbered per
organization and epoch. Redis applies each number once and in order, so sending is always safe to repeat. How large a
slice is, and when one is made, is decided by ``ledger.cover`` (a request came short) and ``ledger.upkeep.escrow``
(ahead of need).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ledger.books.database import Connection, Pool, Record, acquired
from ledger.core.ids import REQUEST_PREFIX, REQUEST_RANDOM_BYTES, request_id
from ledger.core.money import MAX_GRANT_NANOS
from ledger.counter.values import GrantVerdict

SEND_AT_ONCE = 1000
"""Pending grants read in one round."""


class GrantTaker(Protocol):
    """The side of the counter that takes grants."""

    async def grant(self, org_id: str, grant_seq: int, amount_nanos: int, *, epoch: int | None = None) -> GrantVerdict:
        """Apply grant number ``grant_seq`` of an organization and epoch, once."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One slice of credit on its way to, or in, Redis."""

    id: str
    org_id: str
    epoch: int
    grant_seq: int
    amount_nanos: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    """What sending the pending grants came to. ``gaps``: organizations whose earlier grants Redis has lost."""

    delivered: int
    gaps: tuple[str, ...]


def fresh_id(prefix: str) -> str:
    """An id with the present time in it, such as ``top_…``."""
    minted = request_id(time.time_ns() // 1_000_000, secrets.token_bytes(REQUEST_RANDOM_BYTES))
    return prefix + minted.removeprefix(REQUEST_PREFIX)


def transfer_id(event_id: str, *, late: bool = False) -> str:
    """The id of the transfer that an event causes; the same rule stands in ``queries/apply_batch.sql``."""
    return ("txl_" if late else "tx_") + event_id.rpartition("_")[2]


async def grant_slice(conn: Connection, org_id: str, *, shard: int, epoch: int, want_nanos: int) -> Grant | None:
    """Move up to ``want_nanos`` from available to escrow; None if there is nothing to move, or the epoch has ended.

    Args:
        conn: inside a transaction; the balance row stays locked until its end.
        shard: the organization's.
        epoch: that this process takes for the shard's current one.
    """
    if not await _hold_epoch(conn, shard, epoch):
        return None
    have = await conn.fetchrow(
        "SELECT available_nanos, escrow_nanos FROM ledger.balance WHERE org_id = $1 FOR UPDATE", org_id
    )
    if have is None:
        return None
    # Escrow here is never below what Redis really has left, so Redis can count whatever it is granted.
    amount_nanos = max(0, min(want_nanos, have["available_nanos"], MAX_GRANT_NANOS - have["escrow_nanos"]))
    if amount_nanos == 0:
        return None
    row = await conn.fetchrow(
        """INSERT INTO ledger.escrow_grant (id, org_id, epoch, grant_seq, amount_nanos)
           SELECT $1, $2, $3, coalesce(max(grant_seq), 0) + 1, $4
             FROM ledger.escrow_grant WHERE org_id = $2 AND epoch = $3
           RETURNING *""",
        fresh_id("grant_"),
        org_id,
        epoch,
        amount_nanos,
    )
    assert row is not None
    await conn.execute(
        """INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
           SELECT $1, ledger.id_time($1), 'grant', a.id, e.id, $4, $3
             FROM ledger.account a JOIN ledger.account e ON e.org_id = a.org_id AND e.kind = 'escrow'
            WHERE a.org_id = $2 AND a.kind = 'available'""",
        transfer_id(row["id"]),
        org_id,
        row["id"],
        amount_nanos,
    )
    await conn.execute(
        """UPDATE ledger.balance
              SET available_nanos = available_nanos - $2, escrow_nanos = escrow_nanos + $2, changed_at = now()
            WHERE org_id = $1""",
        org_id,
        amount_nanos,
    )
    return _grant(row)


async def _hold_epoch(conn: Connection, shard: int, epoch: int) -> bool:
    """Whether the epoch is the shard's current one; if so it stays that until the transaction ends.

    Who opens a new epoch locks the row of the old one first, so a grant is either made before and frozen with the
    rest, or comes here after and finds the epoch ended. A grant in between would be credit that nobody can spend.
    """
    await conn.execute("SELECT 1 FROM ledger.epoch WHERE number = $1 FOR KEY SHARE", epoch)
    newest = await conn.fetchval("SELECT max(number) FROM ledger.epoch WHERE shard = $1 OR shard IS NULL", shard)
    return bool(newest == epoch)


async def pending_grants(pool: Pool, org_id: str | None = None) -> list[Grant]:
    """Grants that Redis has not confirmed, in the order in which they must be sent.

    Those of an epoch that ended are among them, if they never arrived: the counter takes them for stale.
    """
    async with acquired(pool, "read the pending grants") as conn:
        rows = await conn.fetch(
            """SELECT * FROM ledger.escrow_grant
                WHERE state = 'pending' AND ($1::text IS NULL OR org_id = $1)
                ORDER BY epoch DESC, org_id, grant_seq LIMIT $2""",
            org_id,
            SEND_AT_ONCE,
        )
    return [_grant(row) for row in rows]


async def mark_attempted(pool: Pool, grants: Sequence[Grant]) -> None:
    """Record that these are about to be sent. From then on, an empty Redis is a loss and not a beginning."""
    async with acquired(pool, "record that grants are sent") as conn:
        await conn.execute(
            "UPDATE ledger.escrow_grant SET attempted_at = now() WHERE id = ANY($1) AND attempted_at IS NULL",
            [grant.id for grant in grants],
        )


async def mark_granted(pool: Pool, grants: Sequence[Grant]) -> None:
    """Record that Redis has confirmed these."""
    async with acquired(pool, "record that grants arrived") as conn:
        await conn.execute(
            """UPDATE ledger.escrow_grant SET state = 'applied', applied_at = now()
                WHERE id = ANY($1) AND state = 'pending'""",
            [grant.id for grant in grants],
        )


async def deliver_grants(pool: Pool, counter: GrantTaker, org_id: str | None = None) -> Delivery:
    """Send what is pending. Safe to call from anywhere, at any time, several times at once.

    Raises:
        LedgerUnavailable; what the counter raises when Redis cannot be asked (the grants stay pending).
    """
    grants = await pending_grants(pool, org_id)
    if not grants:
        return Delivery(0, ())
    await mark_attempted(pool, grants)
    arrived: list[Grant] = []
    gaps: dict[str, None] = {}
    try:
        for grant in grants:
            if grant.org_id in gaps:
                continue
            verdict = await counter.grant(grant.org_id, grant.grant_seq, grant.amount_nanos, epoch=grant.epoch)
            if verdict == "gap":
                gaps[grant.org_id] = None
            elif verdict != "stale":
                arrived.append(grant)
    finally:
        if arrived:
            await mark_granted(pool, arrived)
    return Delivery(len(arrived), tuple(gaps))


def _grant(row: Record) -> Grant:
    return Grant(row["id"], row["org_id"], row["epoch"], row["grant_seq"], row["amount_nanos"], row["created_at"])
