"""What a closed connection leaves behind is freed at once, without the collector of garbage.

A connection that lives for a while survives collections and is then old, and the collector hardly ever looks at what is
old. Left in a circle, every stream that its client leaves would cost some KiB until then.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator

import pytest

from backends.connection import EngineConnection
from backends.openai_http import HttpLimits, OpenAIHttpBackend
from backends.wire.allowance import UNBOUNDED
from backends.wire.failure import BackendFailure
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed
from gateway.dataplane.server import Connection
from tests.integration.test_public_listener import listening

TIMES = 20


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only counts of references free anything here."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def living(kind: type) -> int:
    return sum(type(one) is kind for one in gc.get_objects())


async def until_gone(kind: type, *, at_most: int) -> None:
    """Until no more of a kind are left than there were."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while living(kind) > at_most:
                await asyncio.sleep(0.05)
    assert living(kind) <= at_most


@pytest.mark.usefixtures("no_collector")
async def test_a_client_connection_is_freed_when_it_closes() -> None:
    """After an answer, in the middle of one, and before a request."""
    async with listening() as (port, _):
        before = living(Connection)
        for sent in (b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n", b""):
            for _ in range(TIMES):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent)
                await writer.drain()
                await asyncio.sleep(0.005)
                writer.transport.abort()
            # The clock of these tests may still hold the one that it has looked at last.
            await until_gone(Connection, at_most=before + 1)


class _Sink:
    """Waits for the first event."""

    def __init__(self) -> None:
        self.first = asyncio.Event()

    def accepted(self) -> None:
        """Nothing."""

    def events(self, data: bytes) -> None:
        self.first.set()

    def allowance(self, seen: Observed) -> int:
        return UNBOUNDED

    def finished(self, body: bytes, observed: Observed) -> None:
        """Nothing."""

    def failed(self, failure: BackendFailure) -> None:
        """Nothing."""


@pytest.mark.usefixtures("no_collector")
async def test_an_engine_connection_is_freed_when_its_stream_is_left() -> None:
    """Cancelled in the middle of a stream that would go on for ever."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
            event = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
            writer.write(b"%x\r\n%b\r\n" % (len(event), event))
            await reader.read()
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        backend = OpenAIHttpBackend(f"http://127.0.0.1:{port}", model="m", limits=HttpLimits())
        before = living(EngineConnection)
        for number in range(TIMES):
            sink = _Sink()
            body = {"messages": [{"role": "user", "content": "x"}]}
            request = InferenceRequest(Kind.CHAT, body, True, False, f"chatcmpl-{number}", 1, "public")
            call = await backend.open(request, sink)
            async with asyncio.timeout(5):
                await sink.first.wait()
            call.cancel()
            del call, sink, request
        await until_gone(EngineConnection, at_most=before)
        await backend.close()
        await asyncio.sleep(0.05)
