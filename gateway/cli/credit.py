"""credit: top-up, show.

Floor: cli.
"""

from __future__ import annotations

import secrets
from typing import Any

import click

from gateway.cli.balance import credit_record, open_counter
from gateway.cli.output import money, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import usd
from gateway.control import organizations
from ledger.counter_values import CounterUnavailable
from ledger.epochs import EpochMismatch
from ledger.errors import LedgerUnavailable
from ledger.postgres import Ledger, TopUp


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
        trouble = await _deliver(place, ledger, organization.id)
        credit = await credit_record(place, ledger, organization.id)
    show_record(
        place,
        {**_record(booked), "delivered": trouble is None, "credit": credit},
        title="Top-up",
        sections={"credit": ()},
    )
    if trouble is not None:
        click.echo(f"note: booked, but the gateway can't spend it yet: {trouble}", err=True)


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


async def _deliver(place: Place, ledger: Ledger, org_id: str) -> str | None:
    """Bring the money to the counter now. Returns why not: the reconciler does it as soon as it can."""
    try:
        async with open_counter(place, ledger) as counter:
            await ledger.ensure_epoch(counter)
            delivery = await ledger.deliver_grants(counter, org_id)
    except (CounterUnavailable, EpochMismatch) as error:
        return str(error)
    return "Redis has lost an earlier grant." if delivery.gaps else None


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
