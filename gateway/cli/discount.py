"""discount: set, list, end.

Floor: cli. A discount is never changed: the one in force is closed and the next one begins.
"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import click

from gateway.cli.endpoint import find_endpoint
from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import moment, moment_of_ms, percent, percent_text
from gateway.control import organizations
from ledger.core.pricing import Discount

_ENDPOINT = click.option(
    "--endpoint", "endpoint", metavar="ENDPOINT", help="For this endpoint only; it counts instead of the one for all."
)


@click.group()
def discount() -> None:
    """Discounts of organizations. ORG is an id or a name."""


@discount.command("set")
@click.argument("reference", metavar="ORG")
@click.option("--percent", "bps", type=percent, required=True, metavar="P", help="Such as 12.5; 0 is none.")
@_ENDPOINT
@click.option("--from", "effective_from", type=moment, metavar="TIME", help="From then on; otherwise from now on.")
@operator
async def set_(
    place: Place, /, reference: str, bps: int, endpoint: str | None, effective_from: datetime | None
) -> None:
    """Give an organization a discount. The same discount again changes nothing; what runs keeps its own."""
    org_id, endpoint_id = await _whose(place, reference, endpoint)
    async with place.ledger() as ledger:
        given = await ledger.set_discount(org_id, bps, endpoint_id=endpoint_id, effective_from=effective_from)
    show_record(place, _record(given), title="Discount")


@discount.command("list")
@click.argument("reference", metavar="ORG")
@operator
async def list_(place: Place, /, reference: str) -> None:
    """List every discount that an organization ever had or will have, each endpoint's oldest first."""
    org_id, _ = await _whose(place, reference, None)
    async with place.ledger() as ledger:
        given = await ledger.discounts(org_id)
    show_list(
        place,
        [_record(one) for one in given],
        columns=("id", "state", "endpoint_id", "percent", "effective_from", "effective_to"),
        title=f"Discounts of {org_id}",
        empty="It has no discount.",
    )


@discount.command("end")
@click.argument("reference", metavar="ORG")
@_ENDPOINT
@click.option("--at", "effective_to", type=moment, metavar="TIME", help="End then; otherwise now.")
@operator
async def end(place: Place, /, reference: str, endpoint: str | None, effective_to: datetime | None) -> None:
    """End the discount that is open."""
    org_id, endpoint_id = await _whose(place, reference, endpoint)
    async with place.ledger() as ledger:
        ended = await ledger.end_discount(org_id, endpoint_id=endpoint_id, effective_to=effective_to)
    show_record(place, _record(ended), title="Discount")


async def _whose(place: Place, reference: str, endpoint: str | None) -> tuple[str, str | None]:
    async with place.control() as conn:
        org_id = (await organizations.find(conn, reference)).id
    return org_id, None if endpoint is None else (await find_endpoint(place, endpoint, org_id)).id


def _record(given: Discount) -> dict[str, Any]:
    return {
        "id": given.id,
        "org_id": given.org_id,
        "endpoint_id": given.endpoint_id,
        "state": _state(given, time.time_ns() // 1_000_000),
        "percent": percent_text(given.bps),
        "bps": given.bps,
        "effective_from": moment_of_ms(given.effective_from_ms),
        "effective_to": None if given.effective_to_ms is None else moment_of_ms(given.effective_to_ms),
    }


def _state(given: Discount, now_ms: int) -> str:
    if given.is_in_force(now_ms):
        return "current"
    return "future" if given.effective_from_ms > now_ms else "past"
