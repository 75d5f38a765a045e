"""org: create, list, show, limit.

Floor: cli.
"""

from __future__ import annotations

from typing import Any

import click

from gateway.cli.balance import credit_record
from gateway.cli.output import limits_of, show_list, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import limit_options, limits_from
from gateway.control import organizations
from gateway.control.organizations import Organization
from gateway.core.state import Limits


@click.group()
def org() -> None:
    """Organizations: who pays. ORG is an id or a name."""


@org.command()
@click.argument("name")
@limit_options
@operator
async def create(place: Place, /, name: str, **limits: int | None) -> None:
    """Create the organization NAME with empty accounts, or find the one of that name."""
    asked = limits_from(**limits, before=Limits()) if any(limits.values()) else None
    async with place.control() as conn:
        organization, was_new = await organizations.create(conn, name, asked)
    async with place.ledger() as ledger:
        await ledger.open_accounts(organization.id)
    show_record(place, {**_record(organization), "created": was_new}, title="Organization")


@org.command("list")
@operator
async def list_(place: Place, /) -> None:
    """List the organizations, oldest first."""
    async with place.control() as conn:
        found = await organizations.list_all(conn)
    show_list(
        place,
        [_record(organization) for organization in found],
        columns=("id", "name", "requests_per_minute", "tokens_per_minute", "concurrent", "created_at"),
        title="Organizations",
        empty="There is no organization yet.",
    )


@org.command()
@click.argument("reference", metavar="ORG")
@operator
async def show(place: Place, /, reference: str) -> None:
    """Show an organization with its limits and its credit."""
    async with place.control() as conn:
        organization = await organizations.find(conn, reference)
    async with place.ledger() as ledger:
        credit = await credit_record(place, ledger, organization.id)
    del credit["org_id"]
    show_record(place, {**_record(organization), "credit": credit}, title="Organization", sections={"credit": ()})


@org.command()
@click.argument("reference", metavar="ORG")
@limit_options
@operator
async def limit(place: Place, /, reference: str, **limits: int | None) -> None:
    """Change the limits of an organization, which hold for all its keys together; workers obey within a second."""
    async with place.control() as conn:
        organization = await organizations.find(conn, reference)
        organization = await organizations.set_limits(
            conn, organization.id, limits_from(**limits, before=organization.limits)
        )
    show_record(place, _record(organization), title="Organization")


def _record(organization: Organization) -> dict[str, Any]:
    return {
        "id": organization.id,
        "name": organization.name,
        **limits_of(organization.limits),
        "created_at": organization.created_at,
    }
