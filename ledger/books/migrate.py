"""Ordered, checksummed schema migrations, one transaction per upgrade.

Floor: edge. Knows files called ``NNNN_name.sql`` and a table ``<namespace>.schema_migration``; knows nothing of what
they create. All pending files are applied in one transaction under an advisory lock, so processes that start
together don't collide and a failure leaves the old schema. The price: no ``CREATE INDEX CONCURRENTLY`` in a file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import asyncpg

from ledger.books.database import Connection, translated
from ledger.errors import MigrationError

_NAMESPACE = re.compile(r"[a-z][a-z_]{0,30}")
_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")
MIGRATE_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Migration:
    """One file: its name, its text and the SHA-256 of the text (hex)."""

    name: str
    text: str
    checksum: str


def ledger_migrations() -> Traversable:
    """The folder of the ledger's own migrations."""
    return resources.files("ledger.sql")


def read_folder(folder: Traversable | Path) -> list[Migration]:
    """Read the migrations of a folder in order.

    Raises:
        MigrationError: a ``.sql`` file has another kind of name, or the numbers are not 1, 2, 3…
    """
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if not entry.name.endswith(".sql"):
            continue
        if not _FILE.fullmatch(entry.name):
            raise MigrationError(f"A migration must be called NNNN_name.sql, not {entry.name}.")
        text = entry.read_text("utf-8")
        found.append(Migration(entry.name, text, hashlib.sha256(text.encode()).hexdigest()))
    numbers = [int(migration.name[:4]) for migration in found]
    if numbers != list(range(1, len(found) + 1)):
        raise MigrationError(f"Migrations must be numbered 0001, 0002… without gap or repeat, found {numbers}.")
    return found


def pending(available: Sequence[Migration], applied: Mapping[str, str]) -> list[Migration]:
    """Decide what is to be applied.

    Args:
        available: what this release brings, in order.
        applied: name → checksum of what the database has.

    Raises:
        MigrationError: the database is newer than this release, or an applied file was edited.
    """
    known = {migration.name: migration for migration in available}
    for name, checksum in applied.items():
        if name not in known:
            raise MigrationError(f"The database is newer than this release: it has the migration {name}.")
        if known[name].checksum != checksum:
            raise MigrationError(f"The migration {name} was edited after it was applied; add a new one instead.")
    waiting = [migration for migration in available if migration.name not in applied]
    if waiting and applied and waiting[0].name < max(applied):
        raise MigrationError(f"The migration {waiting[0].name} is older than {max(applied)}, which is already applied.")
    return waiting


async def migrate(conn: Connection, folder: Traversable | Path, *, namespace: str) -> list[str]:
    """Bring one schema up to date and return the names of the files applied now.

    Args:
        conn: a connection outside any transaction.
        folder: where the ``NNNN_name.sql`` files lie.
        namespace: the schema that the files fill; made when missing (needs CREATE on the database once).

    Raises:
        MigrationError: see ``pending``, or a file fails; LedgerUnavailable.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise MigrationError(f"{namespace!r} is not a plain lower-case schema name.")
    available = read_folder(folder)
    with translated(f"migrate the schema {namespace}"):
        async with conn.transaction():
            await conn.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))",
                f"pareta migrate {namespace}",
                timeout=MIGRATE_TIMEOUT_S,
            )
            waiting = pending(available, await _applied(conn, namespace))
            for migration in waiting:
                await _apply(conn, migration, namespace)
    return [migration.name for migration in waiting]


async def _applied(conn: Connection, namespace: str) -> dict[str, str]:
    # IF NOT EXISTS would ask for CREATE on the database even where an administrator made the schema for us.
    if not await conn.fetchval("SELECT true FROM pg_namespace WHERE nspname = $1", namespace):
        await conn.execute(f"CREATE SCHEMA {namespace}")
    await conn.execute(
        f"""CREATE TABLE IF NOT EXISTS {namespace}.schema_migration (
                name text PRIMARY KEY, checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"""
    )
    rows = await conn.fetch(f"SELECT name, checksum FROM {namespace}.schema_migration ORDER BY name")  # noqa: S608
    return {row["name"]: row["checksum"] for row in rows}


async def _apply(conn: Connection, migration: Migration, namespace: str) -> None:
    try:
        await conn.execute(migration.text, timeout=MIGRATE_TIMEOUT_S)
    except (asyncpg.SyntaxOrAccessError, asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
        raise MigrationError(f"The migration {migration.name} of {namespace} failed: {error}") from error
    await conn.execute(
        f"INSERT INTO {namespace}.schema_migration (name, checksum) VALUES ($1, $2)",  # noqa: S608
        migration.name,
        migration.checksum,
    )
