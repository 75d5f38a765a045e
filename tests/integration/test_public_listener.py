"""The public listener under odd, broken and hostile input, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.core import errors
from gateway.dataplane.server import Connection, Request, Shared
from gateway.settings import Settings

LIMITS = replace(
    Settings(),
    max_body_bytes=100_000,
    max_header_bytes=8_000,
    head_timeout_s=0.6,
    body_timeout_s=0.6,
    max_connections=50,
)


LARGE_BYTES = 16 * 1024 * 1024
"""More than the sockets on both sides buffer."""


async def echo(request: Request, reply: Connection) -> None:
    """Stand in for the pipeline: say what was understood."""
    if request.refused is not None:
        reply.send(request.refused.status, errors.encode(request.refused, request.request_id))
        return
    if request.path == "/slow":
        await asyncio.sleep(0.2)
    if request.path == "/large":
        reply.send(200, b'"' + b"x" * LARGE_BYTES + b'"')
        return
    if request.path == "/broken":
        reply.begin_stream()
        reply.write(b"x" * LARGE_BYTES)
        reply.break_stream(b"data: {}\n\n")
        return
    said = {
        "method": request.method,
        "path": request.path,
        "body_bytes": len(request.body),
        "id": request.request_id,
        "key": request.headers.get(b"authorization", b"").decode(),
    }
    reply.send(200, json.dumps(said).encode())


@asynccontextmanager
async def listening(settings: Settings = LIMITS) -> AsyncIterator[tuple[int, Shared]]:
    loop = asyncio.get_running_loop()
    shared = Shared(settings=settings, handler=echo, loop=loop)
    server = await loop.create_server(lambda: Connection(shared), "127.0.0.1", 0)

    async def clock() -> None:
        while True:
            await asyncio.sleep(0.05)
            for connection in list(shared.connections):
                connection.tick(loop.time())

    ticking = asyncio.create_task(clock())
    try:
        yield server.sockets[0].getsockname()[1], shared
    finally:
        ticking.cancel()
        server.close()
        for connection in list(shared.connections):
            connection.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    async with listening() as (number, _):
        yield number


async def talk(port: int, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send pieces, then read until the server closes or is silent for a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        answer = b""
        while True:
            try:
                more = await asyncio.wait_for(reader.read(65536), 0.5 if answer else 5)
            except TimeoutError:
                return answer
            if not more:
                return answer
            answer += more
    except (ConnectionResetError, BrokenPipeError):
        pytest.fail("the answer was lost to a reset")
    finally:
        writer.close()


@asynccontextmanager
async def silent_reader(port: int) -> AsyncIterator[asyncio.StreamWriter]:
    """A client that sends, and reads no more than asyncio does by itself."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield writer
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


def answers(raw: bytes) -> list[tuple[int, dict[str, Any]]]:
    """Split pipelined responses by their lengths."""
    found = []
    while raw:
        head, _, rest = raw.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        length = next(int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
        found.append((int(lines[0].split()[1]), json.loads(rest[:length])))
        raw = rest[length:]
    return found


BAD = {
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 nonsense\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "bad method": b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n",
    "space in name": b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n",
    "both lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "endless length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"0" * 5000 + b"3\r\n\r\nabc",
    "negative length": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -3\r\n\r\n",
    "bad chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "two keys": b"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: a\r\nAuthorization: b\r\n\r\n",
    "absolute form": b"GET http://evil/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "upgrade": b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("name", BAD)
async def test_garbage_gets_a_clear_400(port: int, name: str) -> None:
    """What is no HTTP request is told so, with the error body and a request id, and the connection is closed."""
    ((status, body),) = answers(await talk(port, BAD[name]))
    assert status == 400
    assert body["error"]["code"] == "http_invalid"
    assert body["detail"] == body["error"]["message"]
    assert body["request_id"].startswith("req_")


async def test_requests_may_be_cut_at_every_byte(port: int) -> None:
    """A request is understood however the network cuts it."""
    raw = b"POST /a?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
    for cut in range(1, len(raw)):
        ((status, body),) = answers(await talk(port, raw[:cut], raw[cut:] + b"GET /bye HTTP/1.0\r\n\r\n"))[:1]
        assert (status, body["path"], body["body_bytes"]) == (200, "/a", 5)


async def test_chunked_bodies_are_read(port: int) -> None:
    """A chunked body with an extension and a trailer is the same as one of known length."""
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = head + b"5;a=b\r\nhello\r\n3\r\n...\r\n0\r\nT: v\r\n\r\n"
    ((status, body),) = answers(await talk(port, raw))
    assert (status, body["body_bytes"]) == (200, 8)


@pytest.mark.parametrize("trailers", [b"X-Request-Id: a\r\nX-Request-Id: b\r\n", b"Authorization: evil\r\n"])
async def test_trailers_change_nothing(port: int, trailers: bytes) -> None:
    """What stands behind a chunked body is no header: the request is answered as it was, and in its turn."""
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nAuthorization: good\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw = head + b"5\r\nhello\r\n0\r\n" + trailers + b"\r\n" + b"GET /next HTTP/1.1\r\nHost: x\r\n\r\n"
    (first, one), (second, two) = answers(await talk(port, raw))
    assert (first, one["path"], one["body_bytes"], one["key"]) == (200, "/c", 5, "good")
    assert (second, two["path"]) == (200, "/next")


@pytest.mark.parametrize(
    "flood", [b"0\r\nT: " + b"a" * 200_000, b"1;e=" + b"a" * 200_000], ids=["trailer", "extension"]
)
async def test_a_flood_between_chunks_is_cut_off(port: int, flood: bytes) -> None:
    """Trailers and chunk extensions are bounded like a head: they are read, but no body."""
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    ((status, _),) = answers(await talk(port, head, flood))
    assert status == 431


async def test_many_small_chunks_are_no_flood(port: int) -> None:
    """A body in one-byte chunks has more framing than content, and that is fine."""
    head = b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    ((status, body),) = answers(await talk(port, head, *[b"1;e=f\r\nx\r\n" * 1000] * 5, b"0\r\n\r\n"))
    assert (status, body["body_bytes"]) == (200, 5000)


async def test_an_offered_upgrade_is_ignored(port: int) -> None:
    """A client that would rather speak another protocol gets one answer in this one (RFC 9110 7.8).

    One that sends a body with its offer gets one refusal: where the body ends depends on the protocol.
    """
    offer = b"HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    ((status, body),) = answers(await talk(port, b"GET /up " + offer + b"\r\n"))
    assert (status, body["path"]) == (200, "/up")
    ((status, _),) = answers(await talk(port, b"POST /up " + offer + b"Content-Length: 5\r\n\r\nhello"))
    assert status == 400


async def test_pipelined_requests_are_answered_in_order(port: int) -> None:
    """Requests sent at once are answered one by one, each with an id of its own."""
    raw = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" + b"".join(
        b"GET /%d HTTP/1.1\r\nHost: x\r\n\r\n" % number for number in range(10)
    )
    found = answers(await talk(port, raw))
    assert [body["path"] for _, body in found] == ["/slow", *(f"/{number}" for number in range(10))]
    assert len({body["id"] for _, body in found}) == 11


async def test_a_flood_of_pipelined_requests_is_cut_off(port: int) -> None:
    """More requests than the bound on one connection end it instead of filling the memory."""
    answer = await talk(port, b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n" * 2000)
    assert len(answers(answer)) < 50


async def test_a_body_over_the_limit_is_refused_while_it_is_sent(port: int) -> None:
    """A body that announces too much gets 413 and the client can read it, although it keeps sending."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"
    ((status, body),) = answers(await talk(port, head, b"x" * 500_000))
    assert status == 413
    assert body["error"]["code"] == "body_too_large"


async def test_a_chunked_body_over_the_limit_is_refused(port: int) -> None:
    """A body without a length is counted while it comes."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    ((status, _),) = answers(await talk(port, head, *[b"2710\r\n" + b"x" * 10_000 + b"\r\n"] * 20))
    assert status == 413


@pytest.mark.parametrize("bomb", [b"X: " + b"a" * 20_000 + b"\r\n\r\n", b"X: y\r\n" * 500 + b"\r\n", b"X" * 20_000])
async def test_header_bombs_get_431(port: int, bomb: bytes) -> None:
    """One huge header, very many small ones, or one that never ends: 431."""
    ((status, body),) = answers(await talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n" + bomb))
    assert status == 431
    assert body["error"]["code"] == "headers_too_large"


async def test_a_slow_head_is_timed_out(port: int) -> None:
    """A client that drips its headers gets 408 when its time is up, however busy it looks."""
    drip = [b"GET / HTTP/1.1\r\n", *(b"X-%d: y\r\n" % number for number in range(8))]
    ((status, body),) = answers(await talk(port, *drip, pause_s=0.1))
    assert status == 408
    assert body["error"]["code"] == "request_timeout"


async def test_a_slow_body_is_timed_out(port: int) -> None:
    """The same for the body."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    ((status, _),) = answers(await talk(port, head, *[b"x"] * 8, pause_s=0.1))
    assert status == 408


async def test_a_silent_connection_is_closed() -> None:
    """A connection that never says anything does not stay."""
    async with listening() as (port, shared):
        assert await talk(port) == b""
        assert not shared.connections


async def test_expect_100_continue(port: int) -> None:
    """A client that asks first is told to go on; another expectation is 417; a body too large is refused at once."""
    head = b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    assert (await talk(port, head, b"abc")).startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    odd = head.replace(b"100-continue", b"tea")
    assert (await talk(port, odd)).startswith(b"HTTP/1.1 417")
    large = head.replace(b"Length: 3", b"Length: 99999999")
    assert (await talk(port, large)).startswith(b"HTTP/1.1 413")


async def test_http_10_and_close_are_honoured(port: int) -> None:
    """An HTTP/1.0 client, or one that says close, sees the connection end behind the answer."""
    for raw in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(raw)
        answer = await asyncio.wait_for(reader.read(), 2)
        assert b"Connection: close" in answer
        writer.close()


async def test_too_many_connections_get_503() -> None:
    """The connection past the bound is told so; the others work on."""
    async with listening(replace(LIMITS, max_connections=2)) as (port, _):
        first = await asyncio.open_connection("127.0.0.1", port)
        second = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(0.05)
        assert (await talk(port)).startswith(b"HTTP/1.1 503")
        first[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await first[0].read(100)).startswith(b"HTTP/1.1 200")
        for _, writer in (first, second):
            writer.close()


async def test_memory_of_bodies_is_given_back() -> None:
    """Whatever happens to requests, the count of buffered body bytes returns to zero."""
    async with listening() as (port, shared):
        await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\nhello")
        await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz")
        await talk(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n", b"x" * 50_000)
        await asyncio.sleep(0.1)
        assert shared.buffered_bytes == 0


@pytest.mark.parametrize("path", ["/large", "/broken"])
async def test_an_answer_that_nobody_reads_is_given_up(path: str) -> None:
    """A client that never reads what it asked for does not keep its answer in our memory for ever."""
    settings = replace(LIMITS, keepalive_timeout_s=0.2, write_timeout_s=0.3)
    async with listening(settings) as (port, shared), silent_reader(port) as writer:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.sleep(0.1)
        assert shared.connections
        async with asyncio.timeout(5):
            while shared.connections:
                await asyncio.sleep(0.05)


async def test_nothing_runs_behind_a_broken_stream() -> None:
    """Requests pipelined behind an answer that broke off are dropped: nobody could read their answers."""
    async with listening(replace(LIMITS, write_timeout_s=5)) as (port, shared), silent_reader(port) as writer:
        writer.write(b"GET /broken HTTP/1.1\r\nHost: x\r\n\r\nGET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.sleep(0.1)
        assert shared.connections, "the broken answer is still being written"
        assert not shared.tasks
