"""Receipts: what one request held, used and cost, and the transfers that moved the money.

Floor: edge. A receipt is read from the books alone, so it exists once the reconciler has booked the request (usually
within a moment of its end).
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ledger.books.booking import quantities_of
from ledger.books.database import Pool, Record, acquired
from ledger.books.partitions import time_of_ms
from ledger.core.ids import id_time_ms
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, rate_of
from ledger.errors import LedgerRefused
from ledger.queries import query

POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class ReceiptLine:
    """One meter. ``rate_nanos``: per million units, for ``REQUEST`` per request; None if the card is unknown."""

    meter: Meter
    quantity: int
    rate_nanos: int | None


@dataclass(frozen=True, slots=True)
class ReceiptTransfer:
    """One movement of money. ``amount_nanos`` is signed: what the organization paid (negative: was given back).

    ``recovered``: from frozen credit, and not from what Redis had.
    """

    id: str
    kind: str
    amount_nanos: int
    posted_at: datetime
    recovered: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """Everything the books say about one request.

    ``kind``: how its hold ended (``settle``, ``void``, ``reap``; ``late`` when a settlement corrected a reap).
    ``charged_nanos`` is the sum of ``transfers``; with ``shortfall_nanos`` (what the account could not pay) it is the
    price of ``lines`` less ``discount_bps`` (basis points). ``source``: ``reported``, ``counted`` or ``estimated``.
    """

    request_id: str
    org_id: str
    key_id: str | None
    endpoint_id: str | None
    alias: str | None
    route: str | None
    streamed: bool | None
    kind: str
    outcome: str | None
    status: int | None
    source: str | None
    lines: tuple[ReceiptLine, ...]
    price_card_id: str | None
    price_card: PriceCard | None
    held_nanos: int
    charged_nanos: int
    shortfall_nanos: int
    discount_bps: int
    transfers: tuple[ReceiptTransfer, ...]
    created_at: datetime
    started_at: datetime | None
    settled_at: datetime
    ttft_ms: float | None
    total_ms: float | None
    epoch: int
    shard: int
    seq: int
    recovered: bool = False
    """Whether Postgres has booked its last part itself, because Redis had lost the hold; then ``seq`` is 0."""


async def receipt(pool: Pool, request_id: str, *, wait_s: float = 0.0) -> Receipt | None:
    """The receipt of a request, or None if the books have none.

    Args:
        request_id: as the client saw it in ``x-request-id``.
        wait_s: how long to wait for the reconciler.

    Raises:
        LedgerRefused: that is no request id; LedgerUnavailable.
    """
    try:
        moment = time_of_ms(id_time_ms(request_id))
    except (ValueError, OverflowError):
        raise LedgerRefused(f"{request_id[:40]!r} is not a request id.") from None
    until_s = time.monotonic() + wait_s
    while True:
        async with acquired(pool, "read the receipt") as conn:
            rows = await conn.fetch(query("receipts"), [request_id], [moment])
        if rows:
            return _receipt(rows)
        if time.monotonic() >= until_s:
            return None
        await asyncio.sleep(POLL_S)


async def receipts(
    pool: Pool, org_id: str, *, since: datetime, until: datetime, limit: int = 1000, after: str = ""
) -> list[Receipt]:
    """An organization's receipts by the time of the request, oldest first; page on with ``after`` (the last id)."""
    async with acquired(pool, "read the receipts") as conn:
        # Ids sort by their time, so the last id of a page is a bound for the time as well.
        page = await conn.fetch(
            """SELECT hold_id, id_time FROM ledger.usage_event
                WHERE org_id = $1 AND id_time >= $2 AND id_time < $3 AND hold_id > $4 AND revision = 0
                ORDER BY id_time, hold_id LIMIT $5""",
            org_id,
            time_of_ms(id_time_ms(after)) if after else since,
            until,
            after,
            limit,
        )
        rows = await conn.fetch(query("receipts"), [row["hold_id"] for row in page], [row["id_time"] for row in page])
    by_hold: dict[str, list[Record]] = {}
    for row in rows:
        by_hold.setdefault(row["hold_id"], []).append(row)
    return [_receipt(revisions) for revisions in by_hold.values()]


def _receipt(revisions: Sequence[Record]) -> Receipt:
    """One request's rows, in the order of their revisions: the last one describes it, all of them moved money."""
    last = revisions[-1]
    card = _card(last)
    return Receipt(
        request_id=last["hold_id"],
        org_id=last["org_id"],
        key_id=last["key_id"],
        endpoint_id=last["endpoint_id"],
        alias=last["alias"],
        route=last["route"],
        streamed=last["streamed"],
        kind=last["kind"],
        outcome=last["outcome"],
        status=last["status"],
        source=last["source"],
        lines=tuple(
            ReceiptLine(meter, quantity, None if card is None else rate_of(card, meter))
            for meter, quantity in quantities_of(last).items()
        ),
        price_card_id=last["price_card_id"],
        price_card=card,
        held_nanos=last["held_nanos"],
        charged_nanos=sum(row["amount_nanos"] for row in revisions),
        shortfall_nanos=last["shortfall_nanos"],
        discount_bps=last["discount_bps"],
        transfers=tuple(
            ReceiptTransfer(
                id=row["transfer_id"],
                kind=row["transfer_kind"],
                amount_nanos=-row["transfer_nanos"] if row["transfer_kind"] == "late_refund" else row["transfer_nanos"],
                posted_at=row["posted_at"],
                recovered=row["recovered"],
            )
            for row in revisions
            if row["transfer_id"] is not None
        ),
        created_at=last["id_time"],
        started_at=last["started_at"],
        settled_at=last["settled_at"],
        ttft_ms=last["ttft_ms"],
        total_ms=last["total_ms"],
        epoch=last["epoch"],
        shard=last["shard"],
        seq=last["seq"],
        recovered=last["recovered"],
    )


def _card(row: Record) -> PriceCard | None:
    if row["card_endpoint_id"] is None:
        return None
    return PriceCard(
        id=row["price_card_id"],
        endpoint_id=row["card_endpoint_id"],
        rates={Meter(meter): int(rate) for meter, rate in json.loads(row["rates"]).items()},
        effective_from_ms=row["effective_from_ms"],
        effective_to_ms=row["effective_to_ms"],
    )
