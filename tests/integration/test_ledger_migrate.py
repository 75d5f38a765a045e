"""Migrations: in order, once, together or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from ledger.books.migrate import ledger_migrations, migrate, read_folder
from ledger.errors import MigrationError
from tests.services import FreshDatabase


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


@pytest.fixture
async def conn(fresh_database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    conn = await asyncpg.connect(fresh_database())
    yield conn
    await conn.close()


async def test_migrations_are_applied_once_and_in_order(conn: asyncpg.Connection, tmp_path: Path) -> None:
    """The second run does nothing, and a file added later is applied alone."""
    write(tmp_path, **{"0001_a": "CREATE TABLE shop.t (x int)", "0002_b": "ALTER TABLE shop.t ADD COLUMN y int"})
    assert await migrate(conn, tmp_path, namespace="shop") == ["0001_a.sql", "0002_b.sql"]
    assert await migrate(conn, tmp_path, namespace="shop") == []
    write(tmp_path, **{"0003_c": "INSERT INTO shop.t VALUES (1, 2)"})
    assert await migrate(conn, tmp_path, namespace="shop") == ["0003_c.sql"]
    assert await conn.fetchval("SELECT y FROM shop.t") == 2


async def test_a_failing_migration_leaves_the_old_schema(conn: asyncpg.Connection, tmp_path: Path) -> None:
    """When the second of two files fails, neither is applied, and the error names the file."""
    write(tmp_path, **{"0001_a": "CREATE TABLE shop.t (x int)", "0002_b": "CREATE TABLE shop.t (x int)"})
    with pytest.raises(MigrationError, match="0002_b"):
        await migrate(conn, tmp_path, namespace="shop")
    assert await conn.fetchval("SELECT to_regclass('shop.t')") is None
    assert await conn.fetchval("SELECT to_regclass('shop.schema_migration')") is None


async def test_an_edited_migration_is_noticed(conn: asyncpg.Connection, tmp_path: Path) -> None:
    """A file that was changed after it was applied stops the upgrade."""
    write(tmp_path, **{"0001_a": "CREATE TABLE shop.t (x int)"})
    await migrate(conn, tmp_path, namespace="shop")
    write(tmp_path, **{"0001_a": "CREATE TABLE shop.t (x bigint)"})
    with pytest.raises(MigrationError, match="edited"):
        await migrate(conn, tmp_path, namespace="shop")


async def test_a_database_newer_than_the_release_is_refused(conn: asyncpg.Connection, tmp_path: Path) -> None:
    """An old release never runs on a schema that it does not know."""
    write(tmp_path, **{"0001_a": "SELECT 1", "0002_b": "SELECT 1"})
    await migrate(conn, tmp_path, namespace="shop")
    (tmp_path / "0002_b.sql").unlink()
    with pytest.raises(MigrationError, match="newer"):
        await migrate(conn, tmp_path, namespace="shop")


async def test_five_processes_that_start_together_migrate_once(fresh_database: FreshDatabase) -> None:
    """Whoever comes second waits for the first and then finds nothing to do."""
    url = fresh_database()

    async def process() -> list[str]:
        conn = await asyncpg.connect(url)
        try:
            return await migrate(conn, ledger_migrations(), namespace="ledger")
        finally:
            await conn.close()

    done = await asyncio.gather(*(process() for _ in range(5)))
    assert sorted(map(len, done)) == [0, 0, 0, 0, len(read_folder(ledger_migrations()))]


@pytest.mark.parametrize("names", [["0001_a", "0003_c"], ["0002_b"], ["0001_a", "0001_b"], ["1_a"], ["notes"]])
def test_a_folder_with_odd_numbers_is_refused(names: list[str], tmp_path: Path) -> None:
    """A gap, a repeat or a misnamed file is an error, never a migration that is silently left out."""
    write(tmp_path, **dict.fromkeys(names, "SELECT 1"))
    with pytest.raises(MigrationError):
        read_folder(tmp_path)
