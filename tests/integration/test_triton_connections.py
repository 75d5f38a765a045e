"""Streams over real sockets: with gRPC's own server on the other side, and with servers that are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from backends.triton_connection import InferStream, TritonConnections
from backends.triton_limits import TritonLimits

SERVICE = "inference.GRPCInferenceService"
Answer = Callable[[bytes, grpc.aio.ServicerContext], AsyncIterator[bytes]]


class Heard:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.end: tuple[str, str] | None = None
        self.over = asyncio.Event()
        self.stream: InferStream | None = None

    def message(self, data: bytes) -> None:
        assert self.end is None
        self.messages.append(data)

    def settled(self) -> None:
        """Nothing."""

    def ended(self, status: str, details: str) -> None:
        assert self.end is None
        self.end = status, details
        self.over.set()
        assert self.stream is not None
        self.stream.cancel()  # as whoever is done with a call does

    async def status(self) -> str:
        async with asyncio.timeout(20):
            await self.over.wait()
        assert self.end is not None
        return self.end[0]


@asynccontextmanager
async def serving(answer: Answer, *options: tuple[str, int], port: int = 0) -> AsyncIterator[int]:
    """gRPC's server, with answers that are bytes."""

    async def infer(incoming: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        async for asked in incoming:
            async for message in answer(asked, context):
                yield message

    server = grpc.aio.server(options=options)
    handlers = {"ModelStreamInfer": grpc.stream_stream_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


@asynccontextmanager
async def connections_to(port: int, **limits: Any) -> AsyncIterator[TritonConnections]:
    connections = TritonConnections(f"127.0.0.1:{port}", TritonLimits(**limits))
    try:
        yield connections
    finally:
        await connections.close()


def ask(connections: TritonConnections, request: bytes = b"x") -> Heard:
    heard = Heard()
    heard.stream = connections.infer(request, heard)
    return heard


async def three(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    for number in range(3):
        yield asked + b"%d" % number


async def endless(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    while True:
        yield asked
        await asyncio.sleep(0.01)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_many_streams_share_a_connection() -> None:
    """Each gets its own messages, in order, and its own end."""
    async with serving(three) as port, connections_to(port) as connections:
        heard = [ask(connections, b"%d:" % number) for number in range(200)]
        assert {await one.status() for one in heard} == {"OK"}
        assert len(connections._open) == 1
    for number, one in enumerate(heard):
        assert one.messages == [b"%d:%d" % (number, place) for place in range(3)]


async def test_a_server_that_allows_few_streams_gets_more_connections() -> None:
    """Nobody waits for somebody else's answer to end; connections of no more use are closed."""
    async with serving(endless, ("grpc.max_concurrent_streams", 10)) as port, connections_to(port) as connections:
        heard = [ask(connections) for _ in range(35)]
        await until(lambda: all(one.messages for one in heard))
        assert len(connections._open) == 4
        for one in heard:
            assert one.stream is not None
            one.stream.cancel()
        await until(lambda: len(connections._open) == 1)


@pytest.mark.parametrize("size", [0, 65_535, 65_536, 3_000_000])
async def test_messages_of_any_size_come_and_go(size: int) -> None:
    """Both windows are given back on both sides."""

    async def echo(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for _ in range(3):
            yield asked

    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    async with serving(echo) as port, connections_to(port) as connections:
        heard = [ask(connections, data), ask(connections, data)]
        for one in heard:
            assert await one.status() == "OK"
            assert one.messages == [data] * 3


async def test_who_holds_a_stream_holds_its_server() -> None:
    """What waits is bounded by a window, other streams go on, and nothing is lost."""
    sent = 0

    async def answer(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        nonlocal sent
        if asked == b"quick":
            yield b"here"
            return
        for number in range(3_000):
            sent = number
            yield b"%1000d" % number

    async with serving(answer) as port, connections_to(port) as connections:
        held = ask(connections)
        await until(lambda: bool(held.messages))
        assert held.stream is not None
        held.stream.hold()
        before = len(held.messages)
        await asyncio.sleep(0.5)
        assert len(held.messages) == before
        assert sent < 2_000, "the server was not held back"
        assert await ask(connections, b"quick").status() == "OK"
        held.stream.release()
        assert await held.status() == "OK"
        assert held.messages == [b"%1000d" % number for number in range(3_000)]


async def test_a_cancel_reaches_the_server() -> None:
    """And nothing is told after it."""
    cancelled = asyncio.Event()

    async def answer(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        try:
            async for message in endless(asked, context):
                yield message
        finally:
            cancelled.set()

    async with serving(answer) as port, connections_to(port) as connections:
        heard = ask(connections)
        await until(lambda: bool(heard.messages))
        assert heard.stream is not None
        heard.stream.cancel()
        count = len(heard.messages)
        async with asyncio.timeout(10):
            await cancelled.wait()
        assert len(heard.messages) == count
        assert heard.end is None


async def test_the_deadline_is_the_servers_too() -> None:
    """It hears of it with the request."""
    async with serving(endless) as port, connections_to(port, deadline_s=0.3) as connections:
        assert await ask(connections).status() in ("DEADLINE_EXCEEDED", "CANCELLED")


async def test_a_message_beyond_the_bound_ends_its_call_only() -> None:
    """Before it is in memory; the connection is the others'."""

    async def answer(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        yield b"x" * int(asked)

    async with serving(answer) as port, connections_to(port, max_answer_bytes=1000) as connections:
        other = ask(connections, b"10")
        assert await ask(connections, b"1000000").status() == "RESOURCE_EXHAUSTED"
        assert await other.status() == "OK"
        assert await ask(connections, b"1000").status() == "OK"
        assert len(connections._open) == 1


async def test_a_server_that_comes_back_is_found() -> None:
    """Streams of the lost connection are told; the next request makes another one."""
    async with serving(endless) as port:
        connections = TritonConnections(f"127.0.0.1:{port}", TritonLimits())
        heard = ask(connections)
        await until(lambda: bool(heard.messages))
    assert await heard.status() in ("UNAVAILABLE", "CANCELLED")
    assert await ask(connections).status() == "UNAVAILABLE"
    async with serving(three, port=port):
        assert await ask(connections).status() == "OK"
        await connections.close()


async def test_a_farewell_moves_new_streams_elsewhere() -> None:
    """A server that limits the age of connections says so: what runs goes on, what comes goes by another."""
    options = (("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 60_000))

    async def slow(asked: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        for _ in range(100):
            yield asked
            await asyncio.sleep(0.02)

    async with serving(slow, *options) as port, connections_to(port) as connections:
        heard = []
        for _ in range(8):
            heard.append(ask(connections))
            await asyncio.sleep(0.2)
        assert {await one.status() for one in heard} == {"OK"}
        assert {len(one.messages) for one in heard} == {100}
        await until(lambda: not connections._open)  # an idle one that was told to go is not kept


async def test_nobody_is_there() -> None:
    """A refused connection is one that failed; so is one that is cut at once."""
    gone = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = gone.sockets[0].getsockname()[1]
    async with connections_to(port) as connections:
        assert await ask(connections).status() == "UNAVAILABLE"
        gone.close()
        await gone.wait_closed()
        assert await ask(connections).status() == "UNAVAILABLE"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n" + b" " * 100])
async def test_what_is_there_speaks_something_else(said: bytes) -> None:
    """Or nothing at all, until the time for connecting is over."""

    hung_up = asyncio.Event()

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        try:
            await reader.read()
        finally:
            writer.close()
            hung_up.set()

    server = await asyncio.start_server(odd, "127.0.0.1", 0)
    async with server, connections_to(server.sockets[0].getsockname()[1], connect_timeout_s=0.3) as connections:
        heard = ask(connections)
        given_up = ask(connections)
        assert given_up.stream is not None
        given_up.stream.cancel()
        assert await heard.status() == "UNAVAILABLE"
        assert given_up.end is None
        await hung_up.wait()
        await asyncio.sleep(0)


async def test_a_close_before_the_server_spoke_leaves_no_connection() -> None:
    """It is made and nobody knows of it yet: the server must see its end all the same."""
    made, ended = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        made.set()
        try:
            await reader.read()
        except ConnectionError:
            pass  # cut off, which is an end, too
        finally:
            writer.close()
            ended.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        connections = TritonConnections(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", TritonLimits())
        heard = ask(connections)
        async with asyncio.timeout(10):
            await made.wait()
            await connections.close()
            assert await heard.status() == "UNAVAILABLE"
            await ended.wait()


async def test_a_close_ends_what_runs() -> None:
    """Also what waits for a connection."""
    async with serving(endless) as port:
        connections = TritonConnections(f"127.0.0.1:{port}", TritonLimits())
        running = ask(connections)
        await until(lambda: bool(running.messages))
        await connections.close()
        assert await running.status() == "UNAVAILABLE"
        waiting = TritonConnections(f"127.0.0.1:{port}", TritonLimits())
        heard = ask(waiting)
        await waiting.close()
        assert await heard.status() == "UNAVAILABLE"
