"""Endpoints that sleep, as Postgres has them: who is put to sleep, who is not, and how each way out of it ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.control import endpoints, organizations
from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.deploys import store
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core.state import EndpointStatus
from tests.integration.control_tools import connected, migrated_database
from tests.seed import demo
from tests.services import PostgresService

MODEL = "orgb/Thicket-14B"


@pytest.fixture
async def conn(postgres_service: PostgresService) -> AsyncIterator[Any]:
    """A connection to a database with the tests' catalogue and an organization."""
    url = migrated_database(postgres_service)
    async with connected(url) as connection:
        await import_catalog(connection, read_catalog(demo.files()))
        yield connection
    postgres_service.drop_database(url)


async def made(conn: Any, *, idle_s: int | None, live_for: str = "1 hour", used: str | None = None) -> str:
    """A live endpoint of the model, as a deploy leaves it."""
    org, _ = await organizations.create(conn, "sleepers")
    record, _ = await endpoints.add(conn, NewEndpoint(org.id, "m", backends=(NewBackend("http://127.0.0.1:9"),)))
    await conn.execute(
        "UPDATE control.endpoint SET model_id = $2, idle_s = $3, status_since = now() - $4::text::interval"
        " WHERE id = $1",
        record.id,
        MODEL,
        idle_s,
        live_for,
    )
    if used is not None:
        await conn.execute(
            "INSERT INTO control.endpoint_use (endpoint_id, used_at) VALUES ($1, now() - $2::text::interval)",
            record.id,
            used,
        )
    return record.id


async def state(conn: Any, endpoint_id: str) -> tuple[str, bool]:
    row = await conn.fetchrow("SELECT status, asleep FROM control.endpoint WHERE id = $1", endpoint_id)
    return row["status"], row["asleep"]


async def test_who_is_put_to_sleep(conn: Any) -> None:
    """What may sleep, is live for long enough, and was not used for as long."""
    sleepers = {
        await made(conn, idle_s=60),
        await made(conn, idle_s=60, used="61 seconds"),
    }
    wakeful = {
        await made(conn, idle_s=None),
        await made(conn, idle_s=60, used="50 seconds"),
        await made(conn, idle_s=60, live_for="50 seconds"),
        await made(conn, idle_s=60, live_for="50 seconds", used="2 hours"),
    }
    assert set(await store.put_to_sleep(conn)) == sleepers
    assert await store.put_to_sleep(conn) == []
    assert {await state(conn, one) for one in sleepers} == {("stopped", True)}
    assert {await state(conn, one) for one in wakeful} == {("live", False)}
    assert MODEL not in {one.model_id for one in await store.wanted_servings(conn)}


async def test_ways_out_of_sleep(conn: Any) -> None:
    """A stop is for good; an operator's start brings engines up first; a wake that fails sleeps on, and says why."""
    one, two, three = [await made(conn, idle_s=60) for _ in range(3)]
    assert len(await store.put_to_sleep(conn)) == 3
    await endpoints.stop(conn, one)
    assert await state(conn, one) == ("stopped", False)
    await endpoints.start(conn, two)
    assert await state(conn, two) == ("starting", False)
    await conn.execute("UPDATE control.endpoint SET status = 'starting' WHERE id = $1", three)
    assert await state(conn, three) == ("starting", False)
    await store.set_failed(conn, three, "There is no room at the moment.")
    assert await state(conn, three) == ("stopped", True)
    assert await conn.fetchval("SELECT status_detail FROM control.endpoint WHERE id = $1", three) == (
        "There is no room at the moment."
    )
    never = await made(conn, idle_s=None)
    await conn.execute("UPDATE control.endpoint SET status = 'starting' WHERE id = $1", never)
    await store.set_failed(conn, never, "No.")
    assert await state(conn, never) == ("failed", False)


async def test_a_setting_counts_for_those_that_are_live(conn: Any) -> None:
    """Their time begins with it; without it nobody sleeps any more; the judge's model is always wanted."""
    one = await made(conn, idle_s=None)
    spec = {"backends": ["http://127.0.0.1:9"]}
    await store.register(conn, MODEL, "static", spec, max_output_tokens=None, idle_s=60)
    assert await store.put_to_sleep(conn) == []
    await conn.execute("UPDATE control.endpoint_use SET used_at = now() - interval '61 seconds'")
    assert await store.put_to_sleep(conn) == [one]
    assert await store.wanted_servings(conn) == []
    assert [found.model_id for found in await store.wanted_servings(conn, [MODEL])] == [MODEL]
    assert await store.change_status(conn, one, EndpointStatus.LIVE, only_from=(EndpointStatus.STOPPED,))
    assert await state(conn, one) == ("live", False)
    await store.register(conn, MODEL, "static", spec, max_output_tokens=None)
    await conn.execute("UPDATE control.endpoint SET status_since = now() - interval '1 hour'")
    assert await store.put_to_sleep(conn) == []
