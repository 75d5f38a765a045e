"""What every test may ask for. See ``tests/services.py`` for the servers."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.services import (
    FreshDatabase,
    FreshRedis,
    PostgresService,
    RedisService,
    folder_in_memory,
    private_folder,
    remove,
    run_here,
)
from tests.stack import Stack, StartStack
from tests.system.fixtures import gateway, session_gateway, session_tenant, tenant
from tests.system.triton import session_triton, start_triton, triton_server

__all__ = [
    "gateway",
    "session_gateway",
    "session_tenant",
    "session_triton",
    "start_triton",
    "tenant",
    "triton_server",
]


if sys.version_info < (3, 12):
    # A server of a test whose handler was cancelled before its first step would leave its connection open, and some
    # later test would be blamed for it. Python 3.12 closes it.
    _connected = asyncio.StreamReaderProtocol.connection_made

    def _connection_made(self: Any, transport: asyncio.BaseTransport) -> None:
        _connected(self, transport)
        if self._task is not None:
            self._task.add_done_callback(lambda task: task.cancelled() and transport.close())

    asyncio.StreamReaderProtocol.connection_made = _connection_made  # type: ignore[method-assign]


# How long an example takes says something of the machine, and nothing of the code.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[PostgresService]:
    """The session's cluster."""
    folder = folder_in_memory("postgres")
    service = PostgresService(folder)
    run_here(service.server.start())
    yield service
    run_here(service.server.stop())
    remove(folder)


@pytest.fixture(scope="session")
def postgres_url(postgres_service: PostgresService) -> str:
    """URL of a database that all tests of the session share."""
    return postgres_service.url


@pytest.fixture
def fresh_database(postgres_service: PostgresService) -> Iterator[FreshDatabase]:
    """``fresh_database()`` -> URL of an empty database of this test alone."""
    made: list[str] = []

    def make() -> str:
        made.append(postgres_service.create_database())
        return made[-1]

    yield make
    for url in made:
        postgres_service.drop_database(url)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a Redis that all tests of the session share."""
    folder = folder_in_memory("redis")
    service = RedisService(folder, durable=False)
    yield service.url
    service.stop()
    remove(folder)


@pytest.fixture
def fresh_redis() -> Iterator[FreshRedis]:
    """``fresh_redis()`` -> a redis-server process of this test alone (``.url``, ``.kill()``, ``.start()``…).

    ``durable=False`` is for tests that never stop it.
    """
    made: list[RedisService] = []

    def make(*, durable: bool = True) -> RedisService:
        made.append(RedisService(private_folder("redis"), durable=durable))
        return made[-1]

    yield make
    for service in made:
        service.stop()
        remove(service.server.folder)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A whole gateway (``make run``) that all system tests share: two workers, 10 USD of demo credit.

    A test that stops or kills a part of it starts its own: ``Stack.start(tmp_path)``.
    """
    folder = private_folder("stack")
    running = Stack.start(folder, workers=2)
    yield running
    running.end()
    remove(folder)


@pytest.fixture
def start_stack() -> Iterator[StartStack]:
    """``start_stack(folder, …)`` -> a stack of this test alone, ended with the test. See ``Stack.start``."""
    started: list[Stack] = []

    def start(folder: Path, *arguments: str, **options: Any) -> Stack:
        started.append(Stack.start(folder, *arguments, **options))
        return started[-1]

    yield start
    for running in started:
        running.end()
