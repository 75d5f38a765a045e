"""credit: top-up, show.

Floor: cli.
"""

from __future__ import annotations

import secrets
from typing import Any

import click

from gateway.cli.balance import credit_record
from gateway.cli.output import money, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import usd
from gateway.control import organizations
from ledger.books.ledger import TopUp
from ledger.errors import LedgerUnavailable


@click.group()
def credit() -> None:
    """Credit of organizations. ORG is an id or a name."""


@credit.command("top-up")
@click.argument("reference", metavar="ORG")
@click.argument("amount_nanos", metavar="USD", type=usd)
@click.option(
    "--idempotency-key", metavar="KEY", help="Your name for this payment: a repeat with it books nothing twice."
)
@click.option("--note", default="", help="Kept with the payment.")
@operator
async def top_up(place: Place, /, reference: str, amount_nanos: int, idempotency_key: str | None, note: str) -> None:
    """Pay USD (such as 25.00) in for an organization.

    Without --idempotency-key one is made up and shown; repeat a failed top-up with it.
    """
    payment_key = idempotency_key or f"cli-{secrets.token_hex(8)}"
    async with place.control() as conn:
        organization = await organizations.find(conn, reference)
    async with place.ledger() as ledger:
        try:
            await ledger.open_accounts(organization.id)
            booked = await ledger.top_up(organization.id, amount_nanos, payment_key, note)
        except LedgerUnavailable as error:
            raise LedgerUnavailable(
                f"{error} It may have been booked; repeat it with --idempotency-key {payment_key}."
            ) from error
        credit = await credit_record(place, ledger, organization.id)
    show_record(
        place,
        {**_record(booked), "credit": credit},
        title="Top-up",
        sections={"credit": ()},
    )


@credit.command()
@click.argument("reference", metavar="ORG")
@operator
async def show(place: Place, /, reference: str) -> None:
    """Show what was paid in, what is left, what is held by running requests, and what was spent."""
    async with place.control() as conn:
        organization = await organizations.find(conn, reference)
    async with place.ledger() as ledger:
        record = await credit_record(place, ledger, organization.id)
        payments = [_record(top_up) for top_up in await ledger.top_ups(organization.id)]
    show_record(
        place,
        {**record, "name": organization.name, "payments": payments},
        title=f"Credit of {organization.name}",
        sections={"payments": ("id", "amount", "idempotency_key", "note", "created_at")},
    )


def _record(top_up: TopUp) -> dict[str, Any]:
    return {
        "id": top_up.id,
        "org_id": top_up.org_id,
        **money("amount", top_up.amount_nanos),
        "idempotency_key": top_up.idempotency_key,
        "note": top_up.note,
        "created_at": top_up.created_at,
        "transfer_id": top_up.transfer_id,
        "replayed": top_up.replayed,
    }
