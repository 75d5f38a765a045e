"""Price cards: effective-dated, never rewritten, never overlapping.

Floor: edge. A card that was used for a charge must stay provable, so a price changes by closing one card and
opening the next. The database itself refuses overlap and rewriting.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime

from ledger.books.database import Connection, Pool, Record, acquired, transaction
from ledger.core.ids import SHORT_RANDOM_BYTES, short_id
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard
from ledger.errors import LedgerConflict, LedgerRefused

MAX_RATE_NANOS = 10**13
"""Ten thousand dollars per million tokens, or per request: dearer is a slip of the pen, and this keeps sums exact."""

MAX_UNIT_RATE_NANOS = 10**16
"""Ten dollars for an image or a second of audio, whose rates are per million units like the others."""

_UNIT_METERS = frozenset({Meter.IMAGE, Meter.AUDIO_SECOND})

SAME_MOMENT_MS = 10
"""Two changes within this time follow each other instead of colliding."""

STATE_CHANNEL = "pareta_state"


async def set_price(
    pool: Pool, *, endpoint_id: str, rates: Mapping[Meter, int], effective_from: datetime | None = None
) -> PriceCard:
    """Give an endpoint a price from a moment on, closing the card that is open.

    Args:
        rates: nano-USD per million units; ``Meter.REQUEST``: nano-USD per request. 0 to ``MAX_RATE_NANOS``
            (images and audio: ``MAX_UNIT_RATE_NANOS``).
        effective_from: aware; ``None`` is now. Only an endpoint's first card may begin in the past.

    Returns:
        The new card; or the open one, when it has these very rates already and no time was asked for.

    Raises:
        LedgerConflict: it would begin before a card that exists, or in the past; LedgerRefused; LedgerUnavailable.
    """
    checked = _checked(rates)
    async with transaction(pool, "set the price") as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"pareta price {endpoint_id}")
        last = await _last(conn, endpoint_id)
        if last is not None and last.effective_to_ms is None and effective_from is None and last.rates == checked:
            return last
        # One clock decides, the database's: the operators' own clocks differ.
        now_ms = await conn.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        from_ms = now_ms if effective_from is None else round(effective_from.timestamp() * 1000)
        if last is not None:
            if effective_from is None and now_ms - SAME_MOMENT_MS < last.effective_from_ms <= now_ms + SAME_MOMENT_MS:
                from_ms = max(now_ms, last.effective_from_ms + 1)
            _check_order(last, from_ms, now_ms=now_ms)
            await conn.execute(
                "UPDATE ledger.price_card SET effective_to_ms = $2 WHERE id = $1 AND effective_to_ms IS NULL",
                last.id,
                from_ms,
            )
        return await _insert(conn, endpoint_id, checked, from_ms)


def _checked(rates: Mapping[Meter, int]) -> dict[Meter, int]:
    try:
        checked = {Meter(meter): rate for meter, rate in rates.items()}
    except ValueError as error:
        raise LedgerRefused(f"{error}; the meters are {', '.join(Meter)}.") from None
    if not checked:
        raise LedgerRefused("A price card needs at least one rate; for a free endpoint set one to 0.")
    for meter, rate in checked.items():
        most = MAX_UNIT_RATE_NANOS if meter in _UNIT_METERS else MAX_RATE_NANOS
        if isinstance(rate, bool) or not isinstance(rate, int) or not 0 <= rate <= most:
            raise LedgerRefused(f"The rate of {meter} must be a whole number from 0 to {most} nano-USD.")
    return checked


def _check_order(last: PriceCard, from_ms: int, *, now_ms: int) -> None:
    if from_ms <= last.effective_from_ms:
        raise LedgerConflict(
            f"The card {last.id} of {last.endpoint_id} begins at {last.effective_from_ms} ms; begin after it."
        )
    if last.effective_to_ms is not None and from_ms < last.effective_to_ms:
        raise LedgerConflict(f"The card {last.id} of {last.endpoint_id} holds until {last.effective_to_ms} ms.")
    if from_ms < now_ms:
        raise LedgerConflict("A price cannot be changed for the past: requests were charged by the card of their time.")


async def _last(conn: Connection, endpoint_id: str) -> PriceCard | None:
    row = await conn.fetchrow(
        "SELECT * FROM ledger.price_card WHERE endpoint_id = $1 ORDER BY effective_from_ms DESC LIMIT 1", endpoint_id
    )
    return None if row is None else card_of(row)


async def _insert(conn: Connection, endpoint_id: str, rates: Mapping[Meter, int], from_ms: int) -> PriceCard:
    row = await conn.fetchrow(
        """INSERT INTO ledger.price_card (id, endpoint_id, rates, effective_from_ms)
           VALUES ($1, $2, $3, $4) RETURNING *""",
        short_id("pc_", secrets.token_bytes(SHORT_RANDOM_BYTES)),
        endpoint_id,
        json.dumps({str(meter): rate for meter, rate in rates.items()}),
        from_ms,
    )
    assert row is not None
    await conn.execute("SELECT pg_notify($1, $2)", STATE_CHANNEL, json.dumps({"kind": "price", "id": endpoint_id}))
    return card_of(row)


async def price_cards(pool: Pool, endpoint_id: str) -> list[PriceCard]:
    """Every card an endpoint ever had, oldest first."""
    async with acquired(pool, "read the prices") as conn:
        rows = await conn.fetch(
            "SELECT * FROM ledger.price_card WHERE endpoint_id = $1 ORDER BY effective_from_ms", endpoint_id
        )
    return [card_of(row) for row in rows]


async def current_cards(
    pool: Pool, at: datetime | None = None, *, endpoint_id: str | None = None
) -> dict[str, tuple[PriceCard, ...]]:
    """The cards in force at a moment (``None``: now) and later ones, by endpoint, each oldest first."""
    at_ms = time.time_ns() // 1_000_000 if at is None else round(at.timestamp() * 1000)
    async with acquired(pool, "read the prices") as conn:
        rows = await conn.fetch(
            """SELECT * FROM ledger.price_card
                WHERE ($2::text IS NULL OR endpoint_id = $2) AND (effective_to_ms IS NULL OR effective_to_ms > $1)
                ORDER BY endpoint_id, effective_from_ms""",
            at_ms,
            endpoint_id,
        )
    cards: dict[str, list[PriceCard]] = {}
    for row in rows:
        cards.setdefault(row["endpoint_id"], []).append(card_of(row))
    return {endpoint: tuple(found) for endpoint, found in cards.items()}


def card_of(row: Record) -> PriceCard:
    """A card from its row."""
    return PriceCard(
        id=row["id"],
        endpoint_id=row["endpoint_id"],
        rates={Meter(meter): int(rate) for meter, rate in json.loads(row["rates"]).items()},
        effective_from_ms=row["effective_from_ms"],
        effective_to_ms=row["effective_to_ms"],
    )
