"""A migrated database for tests of the control plane and its feed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from ledger.books.migrate import ledger_migrations, migrate
from tests.services import PostgresService, run_apart

AnyConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[AnyConnection]:
    """A plain connection, closed at the end."""
    connection = await asyncpg.connect(url, ssl=False)
    try:
        yield connection
    finally:
        await connection.close()


async def migrate_all(url: str) -> None:
    """Bring both schemas of an empty database up to date."""
    async with connected(url) as connection:
        await migrate(connection, resources.files("gateway.control.sql"), namespace="control")
        await migrate(connection, ledger_migrations(), namespace="ledger")


_templates: dict[int, str] = {}


def migrated_database(service: PostgresService) -> str:
    """A new database with both schemas, copied from one that was migrated once; returns its URL."""
    template = _templates.get(id(service))
    if template is None:
        template = service.create_database()
        run_apart(migrate_all(template))
        _templates[id(service)] = template
    return service.create_database(template=urlsplit(template).path.strip("/"))


class Listener:
    """Collects what is announced on the channel ``pareta_state``."""

    def __init__(self, connection: AnyConnection) -> None:
        self.connection = connection
        self.heard: list[dict[str, Any]] = []

    async def start(self) -> None:
        await self.connection.add_listener("pareta_state", self._hear)

    async def settle(self) -> list[dict[str, Any]]:
        """Everything announced until now, then forget it."""
        await self.connection.execute("SELECT 1")  # notifications come before the answer
        heard, self.heard = self.heard, []
        return heard

    def _hear(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        self.heard.append(json.loads(str(payload)))
