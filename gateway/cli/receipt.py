"""receipt: what one request held, used and cost.

Floor: cli.
"""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.output import money, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import percent_text, rate_text
from gateway.control.database import NotFound
from ledger.books.receipts import Receipt


@click.command()
@click.argument("request_id")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 300),
    default=2.0,
    show_default=True,
    metavar="S",
    help="How long to wait for the books: they are a moment behind the answer.",
)
@operator
async def receipt(place: Place, /, request_id: str, wait_s: float) -> None:
    """Print the receipt of a request; REQUEST_ID is the x-request-id of its answer."""
    async with place.ledger() as ledger:
        found = await ledger.receipt(request_id, wait_s=wait_s)
    if found is None:
        raise NotFound(f"The books have no receipt of {request_id}: it took no hold, or has not ended yet.")
    show_record(
        place,
        _record(found),
        title="Receipt",
        sections={
            "meters": ("meter", "quantity", "rate", "per"),
            "transfers": ("id", "kind", "amount", "posted_at"),
        },
    )


def _record(found: Receipt) -> dict[str, Any]:
    card = found.price_card
    return {
        "request_id": found.request_id,
        "org_id": found.org_id,
        "key_id": found.key_id,
        "endpoint_id": found.endpoint_id,
        "alias": found.alias,
        "route": found.route,
        "streamed": found.streamed,
        "outcome": found.outcome,
        "status": found.status,
        "closed_by": found.kind,
        "usage_source": found.source,
        "meters": [
            {
                "meter": line.meter.value,
                "quantity": line.quantity,
                "rate_nanos": line.rate_nanos,
                "rate_usd": None if line.rate_nanos is None else rate_text(line.meter, line.rate_nanos)[0],
                "per": rate_text(line.meter, 0)[1],
            }
            for line in found.lines
        ],
        "price_card_id": found.price_card_id,
        "rates_nanos": None if card is None else {meter.value: rate for meter, rate in card.rates.items()},
        "discount_bps": found.discount_bps,
        "discount_percent": percent_text(found.discount_bps),
        **money("held", found.held_nanos),
        **money("charge", found.charged_nanos),
        **money("shortfall", found.shortfall_nanos),
        "transfers": [
            {"id": moved.id, "kind": moved.kind, **money("amount", moved.amount_nanos), "posted_at": moved.posted_at}
            for moved in found.transfers
        ],
        "created_at": found.created_at,
        "started_at": found.started_at,
        "settled_at": found.settled_at,
        "ttft_ms": _rounded(found.ttft_ms),
        "total_ms": _rounded(found.total_ms),
        "epoch": found.epoch,
        "shard": found.shard,
        "seq": found.seq,
    }


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)
