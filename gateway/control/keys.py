"""API keys in Postgres: minted once, listed without their secret, revoked for good.

Floor: control. What a key looks like is ``gateway.core.keys``; here it is only stored.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.control.database import NotFound, Refused, StoreUnavailable
from gateway.core import keys as core_keys
from gateway.core.state import Limits, Scope

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as its operator sees it: everything but the secret."""

    id: str
    org_id: str
    name: str
    scope: Scope
    limits: Limits
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None

    def state_at(self, now: datetime) -> str:
        """``active``, ``expired`` or ``revoked``."""
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now else "active"


async def mint(
    conn: Connection,
    org_id: str,
    *,
    scope: Scope = Scope.FULL,
    name: str = "",
    limits: Limits | None = None,
    expires_at: datetime | None = None,
) -> tuple[KeyRecord, str]:
    """Make a key for an organization.

    Returns:
        The record, and the whole key. The latter is the only copy there will ever be: show it once, keep it nowhere.

    Raises:
        Refused: it would be expired already, or its name is too long.
        NotFound: there is no such organization.
    """
    if len(name) > 100 or not (name == "" or name.isprintable()):
        raise Refused("The name of a key has at most 100 printable characters.")
    if expires_at is not None and expires_at <= datetime.now(UTC):
        raise Refused("The key would be expired before it is first used.")
    minted = core_keys.mint(await pepper(conn), secrets.token_bytes(core_keys.MINT_BYTES))
    limits = limits or Limits()
    row = await conn.fetchrow(
        "INSERT INTO control.api_key (id, org_id, secret_hash, scope, name, requests_per_minute, tokens_per_minute,"
        " concurrent, expires_at) SELECT $1, o.id, $3, $4, $5, $6, $7, $8, $9 FROM control.organization o"
        " WHERE o.id = $2 RETURNING *",
        minted.id,
        org_id,
        minted.secret_hash,
        scope.value,
        name,
        limits.requests_per_minute,
        limits.tokens_per_minute,
        limits.concurrent,
        expires_at,
    )
    if row is None:
        raise NotFound(f"There is no organization {org_id!r}.")
    return _record(row), minted.token


async def revoke(conn: Connection, reference: str) -> tuple[KeyRecord, bool]:
    """Revoke a key; every worker obeys within a second.

    Args:
        reference: the key's id, or the whole key (only its id is used).

    Returns:
        The record, and whether this call revoked it (a repeat changes nothing).

    Raises:
        NotFound: there is no such key.
    """
    parsed = core_keys.parse(reference)
    key_id = parsed[0] if parsed else reference
    row = await conn.fetchrow(
        "UPDATE control.api_key SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING *",
        key_id,
    )
    if row is not None:
        return _record(row), True
    return await find(conn, key_id), False


async def find(conn: Connection, key_id: str) -> KeyRecord:
    """Find a key by its id.

    Raises:
        NotFound: there is none.
    """
    row = await conn.fetchrow("SELECT * FROM control.api_key WHERE id = $1", key_id)
    if row is None:
        # The reference may be a mistyped whole key: its secret part must not be repeated.
        raise NotFound("There is no such key; give the id that key list shows.")
    return _record(row)


async def list_of(conn: Connection, org_id: str, *, with_revoked: bool = False, limit: int = 1000) -> list[KeyRecord]:
    """The newest ``limit`` keys of an organization, oldest first."""
    rows = await conn.fetch(
        "SELECT * FROM control.api_key WHERE org_id = $1 AND (revoked_at IS NULL OR $2)"
        " ORDER BY created_at DESC, id LIMIT $3",
        org_id,
        with_revoked,
        limit,
    )
    return [_record(row) for row in reversed(rows)]


async def pepper(conn: Connection) -> bytes:
    """The installation's secret for key ids, 32 bytes.

    Raises:
        StoreUnavailable: the schema is there and its one row is not.
    """
    value = await conn.fetchval("SELECT pepper FROM control.installation")
    if value is None:
        raise StoreUnavailable("The table control.installation has lost its row; restore it from a backup.")
    return bytes(value)


def _record(row: asyncpg.Record) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        org_id=row["org_id"],
        name=row["name"],
        scope=Scope(row["scope"]),
        limits=Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent"]),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
