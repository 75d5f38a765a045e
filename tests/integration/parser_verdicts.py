"""What two HTTP parsers make of the same bytes: ours, as the listener and the pool of engines use it, and aiohttp's.

aiohttp has two parsers of its own: the one it serves with, which is llhttp under its own rules, and one in Python that
shares no code with llhttp. Both are asked, so that a mistake of llhttp is no secret between its two users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, cast

from aiohttp import http_parser
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError

from backends.connection import EngineConnection
from gateway.dataplane.server import WANTED_HEADERS, Connection, Request, Shared
from gateway.settings import Settings

MOST_HEADERS = 100
MOST_LINE_BYTES = 4096
COMPARED = WANTED_HEADERS - {b"content-type"}
"""It decides nothing here: it is only handed on, and of several the first one."""
LIMITS = Settings(max_header_bytes=MOST_LINE_BYTES, max_headers=MOST_HEADERS, max_body_bytes=10_000)
AIOHTTP = http_parser.HttpRequestParserC
AIOHTTP_IN_PYTHON = http_parser.HttpRequestParserPy
ANSWERS_OF_AIOHTTP = http_parser.HttpResponseParserC
ANSWERS_OF_AIOHTTP_IN_PYTHON = http_parser.HttpResponseParserPy

REFUSED, CLOSED, READS_ON = "refused", "closed", "reads on"


@dataclass(frozen=True, slots=True)
class Understood:
    """One request. The target is without query and fragment; headers are those that the gateway reads, in order."""

    method: str
    target: bytes
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a connection: the requests accepted, and how it stands at the end of all bytes."""

    requests: tuple[Understood, ...]
    end: str

    def is_stricter_than(self, other: Verdict) -> bool:
        """Whether it takes all or a part of what the other takes, nothing else, and hangs up behind it."""
        return self != other and self.end != READS_ON and other.requests[: len(self.requests)] == self.requests


@dataclass(frozen=True, slots=True)
class AnswerVerdict:
    """What became of an answer. ``reusable`` says whether another request may follow on the connection."""

    status: int | None
    content_type: bytes
    body: bytes
    complete: bool
    reusable: bool

    def is_stricter_than(self, other: AnswerVerdict) -> bool:
        """Whether it fails, or gives the connection up, where the other does not; and agrees as far as it goes."""
        if not self.complete:
            return other.complete or other.status is not None
        return other.complete and (self.status, self.body) == (other.status, other.body) and not self.reusable


# -- the listener ----------------------------------------------------------------------------------------------------


class _Wire:
    """A transport that takes everything."""

    closed = False

    def write(self, data: bytes) -> None:
        pass

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def can_write_eof(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


async def listener(pieces: Sequence[bytes]) -> Verdict:
    """Our verdict on the pieces, each read after what came before it was answered."""
    understood: list[Understood] = []
    refused = False

    async def handler(request: Request, reply: Connection) -> None:
        nonlocal refused
        refused = request.refused is not None
        if not refused:
            target = request.path.encode("latin-1")
            read = tuple(one for one in request.headers.items() if one[0] in COMPARED)
            understood.append(Understood(request.method, target, request.body, read))
        reply.send(200, b"{}")

    shared = Shared(settings=LIMITS, handler=handler, loop=asyncio.get_running_loop())
    connection, wire = Connection(shared), _Wire()
    connection.connection_made(cast(Any, wire))
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
        while connection._request is not None:
            await asyncio.sleep(0)
    ended = wire.closed or connection._discarding
    connection.connection_lost(None)
    assert shared.buffered_bytes == 0
    return Verdict(tuple(understood), REFUSED if refused else CLOSED if ended else READS_ON)


def _inner(parser: Any, **more: Any) -> Any:
    loop = asyncio.get_running_loop()
    return parser(
        BaseProtocol(loop),
        loop,
        1 << 20,
        max_line_size=MOST_LINE_BYTES,
        max_field_size=MOST_LINE_BYTES,
        max_headers=MOST_HEADERS,
        auto_decompress=False,
        **more,
    )


def aiohttp_server(raw: bytes, parser: Any = AIOHTTP) -> Verdict:
    """The verdict of aiohttp, whose server hangs up behind a request that says so, and behind an upgrade.

    It is fed byte by byte: an error hides the requests that came in the same read.
    """
    inner = _inner(parser)
    messages: list[Any] = []
    end = READS_ON
    for place in range(len(raw)):
        try:
            found, upgraded, _ = inner.feed_data(raw[place : place + 1])
        except HttpProcessingError as error:
            # A trailer may have asked for the end, too late for the message to say so.
            end = CLOSED if "Data after `Connection: close`" in str(error) else REFUSED
            break
        messages += found
        if messages and messages[-1][1].is_eof() and (upgraded or messages[-1][0].should_close):
            end = CLOSED
            break
    whole = [one for one in messages if one[1].is_eof() and one[1].exception() is None]
    return Verdict(tuple(_understood(message, payload) for message, payload in whole), end)


def _understood(message: Any, payload: Any) -> Understood:
    target = message.path.encode("utf-8", "surrogateescape").partition(b"?")[0].partition(b"#")[0]
    named = [(name.lower(), value) for name, value in message.raw_headers]
    return Understood(message.method, target, _bytes_of(payload), tuple(one for one in named if one[0] in COMPARED))


def _bytes_of(payload: Any) -> bytes:
    return cast(bytes, payload.read_nowait()) if payload.total_bytes else b""


# -- the pool of engines ---------------------------------------------------------------------------------------------


class _Listening:
    """Takes one answer."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.content = b""
        self.complete: bool | None = None

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        assert self.status is None, "one head for one answer"
        self.status, self.headers = status, headers

    def body(self, data: bytes) -> None:
        assert self.status is not None
        assert self.complete is None, "nothing behind the end"
        self.content += data

    def ended(self) -> None:
        assert self.complete is None, "one end"
        self.complete = True

    def lost(self, *, malformed: bool) -> None:
        assert self.complete is None, "one end"
        self.complete = False


def engine_connection(pieces: Sequence[bytes]) -> AnswerVerdict:
    """Our verdict on an answer that an engine sends in these pieces before it closes."""
    connection, wire, heard = EngineConnection(), _Wire(), _Listening()
    connection.connection_made(cast(Any, wire))
    connection.send(b"GET / HTTP/1.1\r\n\r\n", heard)
    for piece in pieces:
        if wire.closed:
            break
        connection.data_received(piece)
    reusable = connection.is_usable
    connection.connection_lost(None)
    assert heard.complete is not None, "the receiver hears an end"
    if not heard.complete or _is_no_status(heard.status):
        return AnswerVerdict(heard.status, b"", b"", False, False)
    kind = heard.headers.get(b"content-type", b"").rstrip(b" \t")  # only its beginning is looked at
    return AnswerVerdict(heard.status, kind, heard.content, True, reusable)


def _is_no_status(status: int | None) -> bool:
    """Neither client can do anything with such an answer, whatever its body."""
    return status is not None and status < 100


def aiohttp_client(raw: bytes, parser: Any = ANSWERS_OF_AIOHTTP) -> AnswerVerdict:
    """The verdict of aiohttp's client on the same; interim answers are passed over as it does."""
    inner = _inner(parser, read_until_eof=True)
    messages: list[Any] = []
    failed = upgraded = False
    try:
        for place in range(len(raw)):
            found, upgraded, _ = inner.feed_data(raw[place : place + 1])
            messages += found
            if upgraded:
                break
    except HttpProcessingError:
        failed = True
    finals = [one for one in messages if not 100 <= one[0].code < 200 or one[0].code == 101]
    if not finals:
        return AnswerVerdict(None, b"", b"", False, False)
    message, payload = finals[0]
    ended_itself = payload.is_eof()
    if not ended_itself and not failed:
        try:
            inner.feed_eof()
        except Exception:
            failed = True
    if not payload.is_eof() or payload.exception() is not None or _is_no_status(message.code):
        return AnswerVerdict(message.code, b"", b"", False, False)
    reusable = ended_itself and not (failed or upgraded or message.should_close or len(finals) > 1)
    kind = message.headers.getall("Content-Type", [""])[-1].encode("utf-8", "surrogateescape")
    return AnswerVerdict(message.code, kind, _bytes_of(payload), True, reusable)


# -- how the network cuts --------------------------------------------------------------------------------------------


def cuts(raw: bytes, random: Random, *, most: int = 120) -> list[list[bytes]]:
    """In one piece, byte by byte, and in two at every place; long ones at random places instead."""
    everywhere = range(1, len(raw))
    if len(raw) <= most:
        return [[raw], [raw[n : n + 1] for n in range(len(raw))], *([raw[:n], raw[n:]] for n in everywhere)]
    ways = [[raw]]
    for _ in range(12):
        at = [0, *sorted(random.sample(everywhere, random.randint(1, 6))), len(raw)]
        ways.append([raw[start:end] for start, end in pairwise(at)])
    return ways
