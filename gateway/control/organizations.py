"""Organizations: who pays.

Floor: control. Storage only; balances are the ledger's.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from gateway.control.database import NotFound, Refused, new_id
from gateway.core.state import Limits

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection


@dataclass(frozen=True, slots=True)
class Organization:
    """One paying organization. ``limits`` apply to all its keys together."""

    id: str
    name: str
    limits: Limits
    created_at: datetime


async def create(conn: Connection, name: str, limits: Limits | None = None) -> tuple[Organization, bool]:
    """Create an organization, or find the one of that name.

    Args:
        name: 1 to 100 characters, unique.
        limits: of all its keys together; ``None`` means not asked for.

    Returns:
        The organization, and whether it is new.

    Raises:
        Refused: the name is empty or too long, or the existing one has other limits than asked for.
    """
    name = name.strip()
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Refused("The name of an organization has 1 to 100 printable characters.")
    wanted = limits or Limits()
    row = await conn.fetchrow(
        "INSERT INTO control.organization (id, name, requests_per_minute, tokens_per_minute, concurrent)"
        " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (name) DO NOTHING RETURNING *",
        new_id("org"),
        name,
        wanted.requests_per_minute,
        wanted.tokens_per_minute,
        wanted.concurrent,
    )
    if row is not None:
        return _organization(row), True
    existing = await find(conn, name)
    if limits is not None and existing.limits != limits:
        raise Refused(f"The organization {name!r} exists ({existing.id}) with other limits; set them with org limit.")
    return existing, False


async def find(conn: Connection, reference: str) -> Organization:
    """Find one by id or by name.

    Raises:
        NotFound: there is none.
    """
    row = await conn.fetchrow(
        "SELECT * FROM control.organization WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC LIMIT 1",
        reference,
    )
    if row is None:
        raise NotFound(f"There is no organization {reference!r}.")
    return _organization(row)


async def list_all(conn: Connection, *, limit: int = 1000) -> list[Organization]:
    """The oldest ``limit`` organizations, oldest first."""
    rows = await conn.fetch("SELECT * FROM control.organization ORDER BY created_at, id LIMIT $1", limit)
    return [_organization(row) for row in rows]


async def set_limits(conn: Connection, org_id: str, limits: Limits) -> Organization:
    """Replace the limits; every worker obeys within a second.

    Raises:
        NotFound: there is no such organization.
    """
    row = await conn.fetchrow(
        "UPDATE control.organization SET requests_per_minute = $2, tokens_per_minute = $3, concurrent = $4"
        " WHERE id = $1 RETURNING *",
        org_id,
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrent,
    )
    if row is None:
        raise NotFound(f"There is no organization {org_id!r}.")
    return _organization(row)


def _organization(row: asyncpg.Record) -> Organization:
    return Organization(
        id=row["id"],
        name=row["name"],
        limits=Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent"]),
        created_at=row["created_at"],
    )
