"""Where a command works: which databases, and how it answers.

Floor: cli. :func:`operator` gives every command the same options and runs it; :class:`Place` is what it gets.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from gateway import settings as gateway_settings
from gateway.control.database import NotFound, StoreUnavailable, session
from gateway.settings import Settings
from ledger.books.database import Pool, open_pool
from ledger.books.ledger import Ledger

if TYPE_CHECKING:
    from gateway.control.database import Connection

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Place:
    """The stack a command talks to, and whether it answers as JSON."""

    settings: Settings
    as_json: bool

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Connection]:
        """A connection for the control plane's storage functions."""
        async with session(self.database_url, timeout_s=self.settings.postgres_timeout_s) as connection:
            yield connection

    @asynccontextmanager
    async def ledger(self) -> AsyncIterator[Ledger]:
        """The ledger's books."""
        async with self.pool() as pool:
            yield Ledger(pool)

    @asynccontextmanager
    async def pool(self) -> AsyncIterator[Pool]:
        """The pool that the ledger's functions take."""
        pool = await open_pool(
            self.database_url, size=2, timeout_s=self.settings.postgres_timeout_s, application_name="pareta-cli"
        )
        try:
            yield pool
        finally:
            pool.terminate()  # what was to be committed has been
            await asyncio.sleep(0)

    @property
    def database_url(self) -> str:
        """Where Postgres is. Raises: StoreUnavailable when nothing tells."""
        if not self.settings.database_url:
            raise StoreUnavailable(
                f"No stack is known: {self.settings.data_path} has no run.json (up writes it while it runs). "
                "Start one, or give --data-dir, --database-url or DATABASE_URL."
            )
        return self.settings.database_url


def operator(work: Callable[Concatenate[Place, P], Awaitable[None]]) -> Callable[..., None]:
    """Make a command out of a coroutine function: it gets the :class:`Place` and its own options."""

    @functools.wraps(work)
    def command(
        data_dir: str | None, database_url: str | None, redis_url: str | None, as_json: bool, **own: Any
    ) -> None:
        settings = find_settings(data_dir=data_dir, database_url=database_url, redis_url=redis_url)

        async def body() -> None:
            await work(Place(settings, as_json), **own)  # type: ignore[call-arg]

        asyncio.run(body())

    wrapped: Callable[..., None] = command
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Answer as JSON."),
        click.option("--redis-url", metavar="URL", help="redis:// or rediss:// of the counter."),
        click.option("--database-url", metavar="URL", help="postgres://… of the stack."),
        click.option("--data-dir", metavar="DIR", help="Data folder of a stack that `up` runs."),
    ):
        wrapped = option(wrapped)
    return wrapped


def find_settings(*, data_dir: str | None, database_url: str | None, redis_url: str | None) -> Settings:
    """The settings of the stack that is meant.

    URLs on the command line win; then what ``up`` wrote in the folder of ``--data-dir``; then the environment and the
    settings file; then what ``up`` wrote in the default folder.

    Raises:
        SettingsError: a setting is wrong.
    """
    settings = gateway_settings.load(data_dir=data_dir, database_url=database_url, redis_url=redis_url)
    if settings.database_url and (data_dir is None or database_url is not None):
        return settings
    found = _read_run_file(settings.data_path)
    given = {"database_url": database_url, "redis_url": redis_url}
    return replace(settings, **{**found, **{name: url for name, url in given.items() if url is not None}})


def _read_run_file(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        content = json.loads(path.read_text("utf-8"))
        return {
            "database_url": str(content["database_url"]),
            "redis_url": str(content["redis_url"]),
            "shards": int(content.get("shards", 1)),
            "port": int(content["port"]),
        }
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreUnavailable(f"{path} can't be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError) as error:
        raise NotFound(f"{path} is not what up writes there; restart up.") from error
