"""The gateway of these tests has a catalogue."""

from __future__ import annotations

import asyncio

import pytest

from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from tests.seed import demo
from tests.services import run_apart
from tests.system.harness import Gateway


@pytest.fixture(scope="session")
def catalog(session_gateway: Gateway) -> None:
    """The tests' catalogue is in the database."""

    async def bring() -> None:
        async with session(session_gateway.settings.database_url) as conn:
            await import_catalog(conn, read_catalog(demo.files()))

    run_apart(bring())
    run_apart(until_the_platform_answers(session_gateway))


async def until_the_platform_answers(gateway: Gateway) -> None:
    """Until the control process, which starts beside the workers, answers through one."""
    tenant = await gateway.tenant()
    async with asyncio.timeout(30):
        while (await gateway.get("/v1/tasks", tenant.key)).status == 503:
            await asyncio.sleep(0.05)


@pytest.fixture(params=["0.1.0", "0.3.1"])
def version(request: pytest.FixtureRequest) -> str:
    """Both published SDKs."""
    return str(request.param)
