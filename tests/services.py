"""Real Postgres and Redis servers for tests: the embedded ones of ``gateway.stack``, fast where that is harmless.

The cluster is created once per session and forgets everything in a crash (fsync off); a test about durability starts
its own with ``durable=True``. Everything here may be called from plain and from async tests.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg

from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis

T = TypeVar("T")

ROOM_IN_MEMORY_BYTES = 4 << 30


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in a thread with its own loop, whatever loop the caller is in.

    Never start a child process in here: the kernel ends it with the thread (see ``gateway.stack.launch``).
    """
    result: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


def run_here(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end in this thread, without touching the loop that pytest has set."""
    running = asyncio._get_running_loop()
    asyncio._set_running_loop(None)  # a test's own loop stands still meanwhile
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        loop.close()
        asyncio._set_running_loop(running)


class PostgresService:
    """One cluster; makes empty databases in it."""

    def __init__(self, folder: Path) -> None:
        self.server = EmbeddedPostgres(folder, database="tests", durable=False)
        self._numbers = itertools.count(1)

    @property
    def url(self) -> str:
        return self.server.url

    def create_database(self, *, template: str = "template1") -> str:
        """A new database; returns its URL."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.run_sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.server.url_of(name)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is still connected."""
        self.run_sql(f'DROP DATABASE IF EXISTS "{urlsplit(url).path[1:]}" WITH (FORCE)')

    def run_sql(self, sql: str) -> None:
        async def work() -> None:
            connection = await asyncpg.connect(self.server.url)
            try:
                await connection.execute(sql)
            finally:
                await connection.close()

        run_apart(work())


class RedisService:
    """One redis-server process of a test, which may stop, kill and start it again on the same data."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self.server = EmbeddedRedis(folder, durable=durable)
        run_here(self.server.start())

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def pid(self) -> int:
        return self.server.child.pid

    def stop(self) -> None:
        """SIGTERM: a clean shutdown."""
        run_here(self.server.stop())

    def kill(self) -> None:
        """SIGKILL: a crash. The port stays the same after :meth:`start`."""
        run_here(self.server.child.kill())

    def start(self) -> None:
        """Start it again on the data it left."""
        run_here(self.server.start())


def private_folder(prefix: str) -> Path:
    """A fresh folder under the system's temporary one, which also the user ``nobody`` may enter."""
    folder = Path(tempfile.mkdtemp(prefix=f"pareta {prefix} "))
    folder.chmod(0o755)
    return folder


def folder_in_memory(prefix: str) -> Path:
    """The same, in memory where the system has such a place and room in it: for servers whose data is worth nothing.

    Files of a database that is made for one test and dropped are most of what a disk would do here.
    """
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < ROOM_IN_MEMORY_BYTES:
        return private_folder(prefix)
    folder = Path(tempfile.mkdtemp(prefix=f"pareta {prefix} ", dir=memory))
    folder.chmod(0o755)
    return folder


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


FreshDatabase = Callable[[], str]
FreshRedis = Callable[..., RedisService]
