"""Endpoints on Triton as an operator registers them and workers read them; a replica's own word on its queue."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from backends.load import MetricsPage
from backends.openai_http import HttpLimits, OpenAIHttpBackend
from backends.replica import Replica
from backends.triton_backend import TritonAddress
from gateway.control import database, endpoints, organizations
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.edges.state_rows import read_endpoints
from ledger.books.database import open_pool
from tests.integration.control_tools import AnyConnection, connected, migrated_database
from tests.services import PostgresService


@pytest.fixture
def database_url(postgres_service: PostgresService) -> Iterator[str]:
    url = migrated_database(postgres_service)
    yield url
    postgres_service.drop_database(url)


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[AnyConnection]:
    async with connected(database_url) as connection:
        yield connection


async def added(conn: AnyConnection, *backends: NewBackend, **more: object) -> endpoints.EndpointRecord:
    org, _ = await organizations.create(conn, "Acme")
    new = NewEndpoint(org_id=org.id, real_model="vendor/real-7b", backends=backends)
    return (await endpoints.add(conn, dataclasses.replace(new, **more)))[0]  # type: ignore[arg-type]


async def test_a_model_on_triton_is_registered_and_read(conn: AnyConnection, database_url: str) -> None:
    """What the operator gave reaches the worker: kind, address, folder, metrics, and the endpoint's own bounds."""
    record = await added(
        conn,
        NewBackend(" triton://gpu-1:8001/ensemble/ ", model_folder="/models/real", metrics_url="http://gpu-1:9002/m"),
        NewBackend("http://gpu-2:8000/v1/"),
        context_tokens=5000,
        deadline_s=77.0,
        name="mixed",
    )
    assert [(b.url, b.kind) for b in record.backends] == [
        ("triton://gpu-1:8001/ensemble", "triton"),
        ("http://gpu-2:8000", "openai"),
    ]
    pool = await open_pool(database_url, size=1, timeout_s=20, application_name="tests")
    try:
        endpoint = (await read_endpoints(pool, None))[record.id].endpoint
    finally:
        await pool.close()
    triton, openai = endpoint.backends
    assert (triton.kind, triton.model_folder, triton.metrics_url) == ("triton", "/models/real", "http://gpu-1:9002/m")
    assert (triton.context_tokens, triton.deadline_s, triton.model) == (5000, 77.0, "vendor/real-7b")
    assert (openai.kind, openai.model_folder, openai.metrics_url) == ("openai", None, None)


@pytest.mark.parametrize(
    ("backend", "more", "sentence"),
    [
        (NewBackend("triton://host:8001/a/b"), {}, "name of one model"),
        (NewBackend("triton:///ensemble"), {}, "triton://host:8001/model"),
        (NewBackend("triton://me:secret@host:8001/x"), {}, "no user or password"),
        (NewBackend("grpc://host:8001/x"), {}, "triton://host:8001/model"),
        (NewBackend("http://host:8000", model_folder="/models/x"), {}, "Only a backend on Triton"),
        (NewBackend("triton://host:8001/x", model_folder="models/x"), {}, "absolute path"),
        (NewBackend("triton://host:8001/x", metrics_url="host:8002"), {}, "http://host:8002/metrics"),
        (NewBackend("triton://host:8001/x"), {"capabilities": ("chat", "embedding")}, "makes no embeddings"),
    ],
)
async def test_a_wrong_backend_is_refused(
    conn: AnyConnection, backend: NewBackend, more: dict[str, object], sentence: str
) -> None:
    """A sentence says what a right one looks like."""
    with pytest.raises(database.Refused, match=sentence):
        await added(conn, backend, **more)


def test_the_model_is_named_by_the_url_or_by_the_endpoint() -> None:
    """A URL alone is enough, and says where the server tells of itself."""
    assert endpoints.model_of("triton://host:8001/ensemble/") == "ensemble"
    assert endpoints.model_of("triton://host:8001") is None
    assert endpoints.model_of("http://host:8001/ensemble") is None
    address = TritonAddress.parse("triton://host/ensemble", model="other")
    assert (address.target, address.model, address.metrics_url) == ("host:8001", "ensemble", "http://host:8002/metrics")
    assert TritonAddress.parse("triton://[::1]:9", model="other") == TritonAddress("[::1]:9", "other")


@asynccontextmanager
async def page(*texts: str) -> AsyncIterator[str]:
    """A healthy server with metrics pages, one after the other; then it has no more of them. Yields its root."""
    waiting = list(texts)
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        asked = await reader.readuntil(b"\r\n\r\n")
        if waiting or b" /health " in asked:
            body = waiting.pop(0).encode() if b" /metrics " in asked else b"well"
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        # One that was opened and never used still waits for its request.
        for writer in writers:
            writer.close()
    await asyncio.sleep(0)


async def test_a_queue_counts_while_its_news_is_fresh() -> None:
    """What a replica says of its queue counts in routing, until it has said nothing for a while."""
    async with page(*["vllm:num_requests_waiting 7\n"] * 3) as url:
        replica = Replica(
            "be_1",
            OpenAIHttpBackend(url, model="m", limits=HttpLimits()),
            interval_s=0.05,
            timeout_s=0.5,
            load=MetricsPage(f"{url}/metrics", model="m"),
        )
        assert replica.waiting == 0
        replica.watch()
        async with asyncio.timeout(30):
            while replica.waiting != 7:
                await asyncio.sleep(0.01)
            while replica.waiting:
                await asyncio.sleep(0.01)
        assert replica.is_up
        await replica.close()
