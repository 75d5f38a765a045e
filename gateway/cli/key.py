"""key: mint, list, revoke.

Floor: cli. The whole key is printed by mint, once, and can't be had again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from gateway.cli.output import limits_of, show_list, show_record
from gateway.cli.place import Place, operator
from gateway.cli.words import limit_options, limits_from, moment
from gateway.control import keys, organizations
from gateway.control.keys import KeyRecord
from gateway.core.state import Limits, Scope

_ORG = click.option("--org", "org", required=True, metavar="ORG", help="Id or name of the organization.")


@click.group()
def key() -> None:
    """API keys of an organization."""


@key.command()
@_ORG
@click.option("--scope", type=click.Choice([scope.value for scope in Scope]), default="full", show_default=True)
@click.option("--name", default="", help="A label, to tell keys apart.")
@click.option("--expires", type=moment, metavar="TIME", help="A span such as 30d, or an ISO 8601 time.")
@limit_options
@operator
async def mint(
    place: Place, /, org: str, scope: str, name: str, expires: datetime | None, **limits: int | None
) -> None:
    """Mint a key and print it. It is shown this once: only a hash of its secret is stored."""
    async with place.control() as conn:
        organization = await organizations.find(conn, org)
        record, token = await keys.mint(
            conn,
            organization.id,
            scope=Scope(scope),
            name=name,
            limits=limits_from(**limits, before=Limits()),
            expires_at=expires,
        )
    show_record(place, {"key": token, **_record(record)}, title="Key: keep it now, it can't be shown again")


@key.command("list")
@_ORG
@click.option("--all", "with_revoked", is_flag=True, help="Revoked ones too.")
@operator
async def list_(place: Place, /, org: str, with_revoked: bool) -> None:
    """List the keys of an organization, oldest first, without their secrets."""
    async with place.control() as conn:
        organization = await organizations.find(conn, org)
        found = await keys.list_of(conn, organization.id, with_revoked=with_revoked)
    show_list(
        place,
        [_record(record) for record in found],
        columns=("id", "name", "scope", "state", "expires_at", "created_at"),
        title=f"Keys of {organization.name}",
        empty="There is no key.",
    )


@key.command()
@click.argument("reference", metavar="KEY_ID")
@operator
async def revoke(place: Place, /, reference: str) -> None:
    """Revoke a key; every worker refuses it within a second. A repeat changes nothing."""
    async with place.control() as conn:
        record, changed = await keys.revoke(conn, reference)
    show_record(place, {**_record(record), "changed": changed}, title="Key")


def _record(record: KeyRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "org_id": record.org_id,
        "name": record.name,
        "scope": record.scope.value,
        "state": record.state_at(datetime.now(UTC)),
        **limits_of(record.limits),
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "revoked_at": record.revoked_at,
    }
