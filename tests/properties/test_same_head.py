"""The short road through HTTP understands exactly what the long one does, whatever comes and however it is cut."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.dataplane.same_head import SameHead
from gateway.dataplane.server import Connection, Request, Shared
from gateway.settings import Settings

Seen = tuple[str, str, bytes, dict[bytes, bytes], bool, bool, str | None]


class Wire:
    """A transport that takes everything."""

    closed = False

    def write(self, data: bytes) -> None:
        del data

    def set_write_buffer_limits(self, high: int) -> None:
        del high

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class LongRoad(Connection):
    """Parses every head."""

    def _learn_head(self, data: bytes) -> None:
        del data


class Counted(Connection):
    """Knows how often the short road was taken."""

    taken = 0

    def _take_short_road(self, data: bytes) -> bool:
        took = super()._take_short_road(data)
        self.taken += took
        return took


async def understood(pieces: list[bytes], kind: type[Connection]) -> tuple[list[Seen], Connection, Wire, int]:
    """Feed the pieces, each after what came before was answered; return the requests that came of it."""
    seen: list[Seen] = []

    async def handler(request: Request, reply: Connection) -> None:
        refused = request.refused.code if request.refused is not None else None
        seen.append(
            (
                request.method,
                request.path,
                request.body,
                dict(request.headers),
                request.keep_alive,
                request.is_http10,
                refused,
            )
        )
        reply.send(200, b"{}")

    limits = Settings(max_body_bytes=200, max_header_bytes=4096)
    shared = Shared(settings=limits, handler=handler, loop=asyncio.get_running_loop())
    connection, wire = kind(shared), Wire()
    connection.connection_made(cast(Any, wire))
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
        for _ in range(3):
            await asyncio.sleep(0)
    return seen, connection, wire, shared.buffered_bytes


LINES = st.sampled_from(
    [
        b"Accept: a",
        b"Authorization: Bearer x",
        b"authorization: Bearer y",
        b"X-Request-Id: one",
        b"Connection: keep-alive",
        b"Connection: close",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"X: y\r\n folded",
        b"Content-Length: 3",
        b"Idempotency-Key: k",
        b"X-Long: " + b"z" * 300,
    ]
)
LENGTH_LINE = st.sampled_from(
    [
        b"Content-Length: %d",
        b"content-length:%d",
        b"Content-Length: \t%d",
        b"Content-Length: 0%d",
        b"Content-Length: +%d",
    ]
)
STARTS = st.sampled_from(
    [
        b"POST /v1/chat/completions HTTP/1.1",
        b"POST /x?y=z HTTP/1.1",
        b"GET / HTTP/1.1",
        b"POST / HTTP/1.0",
        b"\r\nPOST / HTTP/1.1",
    ]
)
BODIES = st.one_of(
    st.binary(max_size=40), st.sampled_from([b"", b"\r\n\r\n", b"Content-Length: 4\r\n\r\n", b"{}\r\n", b"x" * 201])
)


@st.composite
def requests(draw: st.DrawFn) -> list[bytes]:
    """Several requests on one connection; their heads are mostly the same, and some lie about their length."""
    start, lines, length_line = draw(STARTS), draw(st.lists(LINES, max_size=4)), draw(LENGTH_LINE)
    place = draw(st.integers(0, len(lines)))
    pieces: list[bytes] = []
    for _ in range(draw(st.integers(2, 5))):
        if draw(st.integers(0, 5)) == 0:
            start = draw(STARTS)
        body = draw(BODIES)
        lie = draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        said = length_line % max(0, len(body) + lie)
        head = b"\r\n".join([start, b"Host: h", *lines[:place], said, *lines[place:]])
        raw = head + b"\r\n\r\n" + body
        cut = draw(st.integers(0, len(raw) * 4))
        pieces += [raw[:cut], raw[cut:]] if 0 < cut < len(raw) else [raw]
    return pieces


@settings(max_examples=600, deadline=None)
@given(requests())
def test_both_roads_understand_the_same(pieces: list[bytes]) -> None:
    """Requests, their bodies, refusals, the end of the connection and the count of bytes in memory."""

    async def compare() -> None:
        short, short_end, short_wire, short_bytes = await understood(pieces, Counted)
        long, long_end, long_wire, long_bytes = await understood(pieces, LongRoad)
        assert short == long
        assert short_wire.closed == long_wire.closed
        assert short_bytes == long_bytes
        for name in ("_in_message", "_in_head", "_discarding", "_bodiless_bytes", "_body_bytes"):
            assert getattr(short_end, name) == getattr(long_end, name), name

    asyncio.run(compare())


async def test_the_short_road_is_taken() -> None:
    """Bodies of different lengths behind the same head; not after a head that differs, and then again."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nAuthorization: Bearer %b\r\n\r\n"
    pieces = [
        head % (size, key) + b"x" * size for size, key in ((1, b"a"), (12, b"a"), (0, b"a"), (3, b"b"), (7, b"b"))
    ]
    seen, connection, _, _ = await understood(pieces, Counted)
    assert [len(one[2]) for one in seen] == [1, 12, 0, 3, 7]
    assert [one[3][b"content-length"] for one in seen] == [b"1", b"12", b"0", b"3", b"7"]
    assert [one[3][b"authorization"][-1:] for one in seen] == [b"a", b"a", b"a", b"b", b"b"]
    assert isinstance(connection, Counted)
    assert connection.taken == 3


async def test_heads_that_always_differ_are_not_remembered_for_ever() -> None:
    """A client that numbers its requests pays for the attempt a few times only."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nX-Number: %d\r\nContent-Length: 1\r\n\r\nx"
    _, connection, _, _ = await understood([head % number for number in range(6)], Counted)
    assert connection._other_heads == 3


def test_a_head_is_learned_only_where_both_see_its_end() -> None:
    """If the body were another one than llhttp took, the head ended elsewhere."""
    head = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n"
    headers = {b"content-length": b"2"}
    assert SameHead.learn(head + b"xx", "/", headers, 2) is not None
    assert SameHead.learn(head + b"xx\r\n", "/", headers, 2) is None
    assert SameHead.learn(head + b"xx", "/", headers, 1) is None
    assert SameHead.learn(head + b"xx", "/", {b"content-length": b"3"}, 2) is None
    assert SameHead.learn(b"POST / HTTP/1.1\r\nX: y\r\n\r\n", "/", {}, 0) is None
