"""Discounts of organizations: effective-dated, never rewritten, never overlapping, as price cards are.

Floor: edge. An organization has at most one discount at a time for all of its endpoints, and at most one for each; the
one of the endpoint counts. It ends by being closed, and the next one opens where it ended or later. The database itself
refuses overlap and rewriting.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from datetime import datetime

from ledger.books.database import Connection, Pool, Record, acquired, transaction
from ledger.books.prices import SAME_MOMENT_MS, STATE_CHANNEL
from ledger.core.ids import SHORT_RANDOM_BYTES, short_id
from ledger.core.pricing import WHOLE_BPS, Discount
from ledger.errors import LedgerConflict, LedgerRefused


async def set_discount(
    pool: Pool, *, org_id: str, bps: int, endpoint_id: str | None = None, effective_from: datetime | None = None
) -> Discount:
    """Give an organization a discount from a moment on, closing the one that is open.

    Args:
        bps: basis points of the price, 0 to 10,000; 0 is no discount, also where another one is for all endpoints.
        endpoint_id: for this endpoint only.
        effective_from: aware; ``None`` is now. Never in the past.

    Returns:
        The new discount; or the open one, when it is this very one already and no time was asked for.

    Raises:
        LedgerConflict: it would begin before one that exists, or in the past; LedgerRefused; LedgerUnavailable.
    """
    if isinstance(bps, bool) or not isinstance(bps, int) or not 0 <= bps <= WHOLE_BPS:
        raise LedgerRefused(f"A discount is a whole number of basis points from 0 to {WHOLE_BPS} (100 %).")
    async with transaction(pool, "set the discount") as conn:
        last, now_ms = await _locked(conn, org_id, endpoint_id)
        if last is not None and effective_from is None and _says_so_already(last, bps, now_ms):
            return last
        from_ms = now_ms if effective_from is None else round(effective_from.timestamp() * 1000)
        if last is not None:
            from_ms = _after(last, from_ms, is_now=effective_from is None, now_ms=now_ms)
            if last.effective_to_ms is None:
                await _close(conn, last, from_ms)
        if from_ms < now_ms:
            raise LedgerConflict("A discount cannot be given for the past: requests were charged without it.")
        return await _insert(conn, org_id, endpoint_id, bps, from_ms)


async def end_discount(
    pool: Pool, *, org_id: str, endpoint_id: str | None = None, effective_to: datetime | None = None
) -> Discount:
    """Close the discount that is open.

    Args:
        endpoint_id: the one for this endpoint; ``None``: the one for all.
        effective_to: aware; ``None`` is now. Never in the past.

    Raises:
        LedgerConflict: none is open, or it would end before it begins or in the past; LedgerUnavailable.
    """
    async with transaction(pool, "end the discount") as conn:
        last, now_ms = await _locked(conn, org_id, endpoint_id)
        if last is None or last.effective_to_ms is not None:
            raise LedgerConflict(f"No discount of {org_id} is open" + (f" for {endpoint_id}." if endpoint_id else "."))
        to_ms = now_ms if effective_to is None else round(effective_to.timestamp() * 1000)
        if effective_to is None and last.effective_from_ms - SAME_MOMENT_MS < to_ms <= last.effective_from_ms:
            to_ms = last.effective_from_ms + 1
        if to_ms < now_ms:
            raise LedgerConflict("A discount cannot end in the past: requests were charged with it.")
        if to_ms <= last.effective_from_ms:
            raise LedgerConflict(f"The discount {last.id} begins at {last.effective_from_ms} ms; end it after that.")
        return await _close(conn, last, to_ms)


async def discounts(pool: Pool, org_id: str) -> list[Discount]:
    """Every discount an organization ever had, for all endpoints first, then by endpoint, each oldest first."""
    async with acquired(pool, "read the discounts") as conn:
        rows = await conn.fetch(
            "SELECT * FROM ledger.discount WHERE org_id = $1 ORDER BY endpoint_id NULLS FIRST, effective_from_ms",
            org_id,
        )
    return [discount_of(row) for row in rows]


async def current_discounts(
    pool: Pool, at: datetime | None = None, *, org_ids: Sequence[str] | None = None
) -> dict[str, tuple[Discount, ...]]:
    """The discounts in force at a moment (``None``: now) and later ones, by organization, each oldest first.

    Args:
        org_ids: of these only.
    """
    at_ms = time.time_ns() // 1_000_000 if at is None else round(at.timestamp() * 1000)
    async with acquired(pool, "read the discounts") as conn:
        rows = await conn.fetch(
            """SELECT * FROM ledger.discount
                WHERE ($2::text[] IS NULL OR org_id = ANY($2)) AND (effective_to_ms IS NULL OR effective_to_ms > $1)
                ORDER BY org_id, effective_from_ms""",
            at_ms,
            None if org_ids is None else list(org_ids),
        )
    found: dict[str, list[Discount]] = {}
    for row in rows:
        found.setdefault(row["org_id"], []).append(discount_of(row))
    return {org_id: tuple(of_org) for org_id, of_org in found.items()}


def discount_of(row: Record) -> Discount:
    """A discount from its row."""
    return Discount(
        id=row["id"],
        org_id=row["org_id"],
        endpoint_id=row["endpoint_id"],
        bps=row["bps"],
        effective_from_ms=row["effective_from_ms"],
        effective_to_ms=row["effective_to_ms"],
    )


async def _locked(conn: Connection, org_id: str, endpoint_id: str | None) -> tuple[Discount | None, int]:
    """The last discount and the time by the database's clock, which nobody changes until the transaction ends."""
    name = f"pareta discount {org_id} {endpoint_id or ''}"
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", name)
    row = await conn.fetchrow(
        """SELECT * FROM ledger.discount WHERE org_id = $1 AND endpoint_id IS NOT DISTINCT FROM $2
            ORDER BY effective_from_ms DESC LIMIT 1""",
        org_id,
        endpoint_id,
    )
    now_ms: int = await conn.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
    return None if row is None else discount_of(row), now_ms


def _after(last: Discount, from_ms: int, *, is_now: bool, now_ms: int) -> int:
    """When the next discount begins: ``from_ms``, or a moment later if two changes came in one."""
    if is_now and now_ms - SAME_MOMENT_MS < last.effective_from_ms <= now_ms + SAME_MOMENT_MS:
        from_ms = max(now_ms, last.effective_from_ms + 1)
    if last.effective_to_ms is not None and is_now and now_ms < last.effective_to_ms <= now_ms + SAME_MOMENT_MS:
        from_ms = last.effective_to_ms
    if from_ms <= last.effective_from_ms:
        raise LedgerConflict(f"The discount {last.id} begins at {last.effective_from_ms} ms; begin after it.")
    if last.effective_to_ms is not None and from_ms < last.effective_to_ms:
        raise LedgerConflict(f"The discount {last.id} holds until {last.effective_to_ms} ms; begin then or later.")
    return from_ms


def _says_so_already(last: Discount, bps: int, now_ms: int) -> bool:
    return last.bps == bps and last.effective_to_ms is None and last.effective_from_ms <= now_ms


async def _close(conn: Connection, discount: Discount, to_ms: int) -> Discount:
    row = await conn.fetchrow(
        "UPDATE ledger.discount SET effective_to_ms = $2 WHERE id = $1 AND effective_to_ms IS NULL RETURNING *",
        discount.id,
        to_ms,
    )
    assert row is not None
    await _announce(conn, discount.org_id)
    return discount_of(row)


async def _insert(conn: Connection, org_id: str, endpoint_id: str | None, bps: int, from_ms: int) -> Discount:
    row = await conn.fetchrow(
        """INSERT INTO ledger.discount (id, org_id, endpoint_id, bps, effective_from_ms)
           VALUES ($1, $2, $3, $4, $5) RETURNING *""",
        short_id("dc_", secrets.token_bytes(SHORT_RANDOM_BYTES)),
        org_id,
        endpoint_id,
        bps,
        from_ms,
    )
    assert row is not None
    await _announce(conn, org_id)
    return discount_of(row)


async def _announce(conn: Connection, org_id: str) -> None:
    await conn.execute("SELECT pg_notify($1, $2)", STATE_CHANNEL, json.dumps({"kind": "discount", "id": org_id}))
