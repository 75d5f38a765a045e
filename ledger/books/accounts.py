"""Organizations' accounts: opening them, paying in, and what is left.

Floor: edge. Money enters the ledger here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.books.database import Connection, Pool, Record, acquired, transaction
from ledger.books.grants import fresh_id, transfer_id
from ledger.books.partitions import MonthKeeper, months_ahead
from ledger.core.money import MAX_NANOS
from ledger.errors import LedgerConflict, LedgerRefused, UnknownAccount

MAX_KEY_LETTERS = 200
MAX_NOTE_LETTERS = 1000


@dataclass(frozen=True, slots=True)
class TopUp:
    """Money paid in. ``replayed``: the key was known and nothing was booked again."""

    id: str
    org_id: str
    idempotency_key: str
    amount_nanos: int
    note: str
    created_at: datetime
    transfer_id: str
    replayed: bool


@dataclass(frozen=True, slots=True)
class Balance:
    """What an organization has, in nano-USD: not yet granted, granted to Redis and not yet charged, and frozen.

    Frozen is what Redis had when it lost something; it is available again when it is known what was spent of it.
    """

    org_id: str
    available_nanos: int
    escrow_nanos: int
    frozen_nanos: int = 0

    @property
    def total_nanos(self) -> int:
        """What is left of what was paid in, as far as it is booked."""
        return self.available_nanos + self.escrow_nanos + self.frozen_nanos


@dataclass(frozen=True, slots=True)
class Credit:
    """An organization's money at a glance; ``charged_nanos`` = paid in - what is left, as far as it is booked.

    ``returned_nanos``: what Redis gave back in the epoch of the last grant.
    """

    org_id: str
    topped_up_nanos: int
    available_nanos: int
    escrow_nanos: int
    charged_nanos: int
    pending_grant_nanos: int
    top_ups: int
    frozen_nanos: int = 0
    returned_nanos: int = 0


async def open_accounts(pool: Pool, org_id: str) -> Balance:
    """Open an organization's accounts, once; again it only reads them."""
    async with transaction(pool, "open the accounts") as conn:
        await conn.execute(
            """INSERT INTO ledger.account (kind, org_id) VALUES ('available', $1), ('escrow', $1), ('frozen', $1)
               ON CONFLICT (org_id, kind) WHERE org_id IS NOT NULL DO NOTHING""",
            org_id,
        )
        await conn.execute("INSERT INTO ledger.balance (org_id) VALUES ($1) ON CONFLICT DO NOTHING", org_id)
        return await _balance(conn, org_id)


async def top_up(
    pool: Pool, months: MonthKeeper, *, org_id: str, amount_nanos: int, idempotency_key: str, note: str = ""
) -> TopUp:
    """Book a payment, in one transaction. It is granted to Redis when it is needed.

    Args:
        amount_nanos: 1 to ``MAX_NANOS``.
        idempotency_key: the payer's name for this payment; the same key and amount book it once.

    Raises:
        LedgerConflict: the key is known with another amount; UnknownAccount; LedgerRefused; LedgerUnavailable: repeat.
    """
    if not 0 < amount_nanos <= MAX_NANOS:
        raise LedgerRefused(f"A top-up must be from 1 to {MAX_NANOS} nano-USD.")
    if not 0 < len(idempotency_key) <= MAX_KEY_LETTERS or len(note) > MAX_NOTE_LETTERS:
        raise LedgerRefused(
            f"An idempotency key has 1 to {MAX_KEY_LETTERS} letters, a note at most {MAX_NOTE_LETTERS}."
        )
    async with acquired(pool, "prepare the month") as conn:
        await months.ensure(conn, months_ahead(datetime.now(UTC), 1))
    async with transaction(pool, "book the top-up") as conn:
        # The row lock puts payments of one organization in a line, so the key can be looked up and used.
        if not await conn.fetchval("SELECT true FROM ledger.balance WHERE org_id = $1 FOR UPDATE", org_id):
            raise UnknownAccount(f"There is no account of {org_id}.")
        known = await conn.fetchrow(
            "SELECT * FROM ledger.top_up WHERE org_id = $1 AND idempotency_key = $2", org_id, idempotency_key
        )
        if known is not None:
            return _replayed(known, amount_nanos)
        booked = await conn.fetchrow(
            """INSERT INTO ledger.top_up (id, org_id, idempotency_key, amount_nanos, note) VALUES ($1, $2, $3, $4, $5)
               RETURNING *""",
            fresh_id("top_"),
            org_id,
            idempotency_key,
            amount_nanos,
            note,
        )
        assert booked is not None
        await _post_top_up(conn, booked)
    return _top_up(booked, replayed=False)


async def _post_top_up(conn: Connection, booked: Record) -> None:
    await conn.execute(
        """INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
           SELECT $1, ledger.id_time($1), 'top_up', x.id, a.id, $4, $3 FROM ledger.account x, ledger.account a
            WHERE x.kind = 'external' AND x.org_id IS NULL AND a.kind = 'available' AND a.org_id = $2""",
        transfer_id(booked["id"]),
        booked["org_id"],
        booked["id"],
        booked["amount_nanos"],
    )
    await conn.execute(
        "UPDATE ledger.balance SET available_nanos = available_nanos + $2, changed_at = now() WHERE org_id = $1",
        booked["org_id"],
        booked["amount_nanos"],
    )


def _replayed(known: Record, amount_nanos: int) -> TopUp:
    if known["amount_nanos"] != amount_nanos:
        raise LedgerConflict(
            f"The idempotency key {known['idempotency_key']!r} has already paid in {known['amount_nanos']} nano-USD."
        )
    return _top_up(known, replayed=True)


async def balance(pool: Pool, org_id: str) -> Balance:
    """What an organization has left.

    Raises:
        UnknownAccount; LedgerUnavailable.
    """
    async with acquired(pool, "read the balance") as conn:
        return await _balance(conn, org_id)


async def credit(pool: Pool, org_id: str) -> Credit:
    """An organization's money at a glance, from one snapshot.

    Raises:
        UnknownAccount; LedgerUnavailable.
    """
    async with acquired(pool, "read the credit") as conn:
        row = await conn.fetchrow(
            """SELECT b.available_nanos, b.escrow_nanos, b.frozen_nanos, t.nanos AS topped_up_nanos, t.count AS top_ups,
                      (SELECT coalesce(sum(amount_nanos), 0)::bigint FROM ledger.escrow_grant
                        WHERE org_id = $1 AND state = 'pending') AS pending_nanos,
                      (SELECT coalesce(sum(amount_nanos), 0)::bigint FROM ledger.escrow_return
                        WHERE org_id = $1 AND hold_id IS NULL AND epoch = (
                            SELECT max(epoch) FROM ledger.escrow_grant WHERE org_id = $1)) AS returned_nanos
                 FROM ledger.balance b,
                      (SELECT coalesce(sum(amount_nanos), 0)::bigint AS nanos, count(*)
                         FROM ledger.top_up WHERE org_id = $1) t
                WHERE b.org_id = $1""",
            org_id,
        )
    if row is None:
        raise UnknownAccount(f"There is no account of {org_id}.")
    left_nanos = row["available_nanos"] + row["escrow_nanos"] + row["frozen_nanos"]
    return Credit(
        org_id=org_id,
        topped_up_nanos=row["topped_up_nanos"],
        available_nanos=row["available_nanos"],
        escrow_nanos=row["escrow_nanos"],
        charged_nanos=row["topped_up_nanos"] - left_nanos,
        pending_grant_nanos=row["pending_nanos"],
        top_ups=row["top_ups"],
        frozen_nanos=row["frozen_nanos"],
        returned_nanos=row["returned_nanos"],
    )


async def top_ups(pool: Pool, org_id: str, *, limit: int = 100) -> list[TopUp]:
    """The latest payments of an organization, newest first."""
    async with acquired(pool, "read the top-ups") as conn:
        rows = await conn.fetch(
            "SELECT * FROM ledger.top_up WHERE org_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2", org_id, limit
        )
    return [_top_up(row, replayed=False) for row in rows]


async def _balance(conn: Connection, org_id: str) -> Balance:
    row = await conn.fetchrow(
        "SELECT available_nanos, escrow_nanos, frozen_nanos FROM ledger.balance WHERE org_id = $1", org_id
    )
    if row is None:
        raise UnknownAccount(f"There is no account of {org_id}.")
    return Balance(org_id, row["available_nanos"], row["escrow_nanos"], row["frozen_nanos"])


def _top_up(row: Record, *, replayed: bool) -> TopUp:
    return TopUp(
        id=row["id"],
        org_id=row["org_id"],
        idempotency_key=row["idempotency_key"],
        amount_nanos=row["amount_nanos"],
        note=row["note"],
        created_at=row["created_at"],
        transfer_id=transfer_id(row["id"]),
        replayed=replayed,
    )
