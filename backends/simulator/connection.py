"""HTTP/1.1 on one TCP connection: llhttp parses, one answer at a time goes out.

Knows nothing of what is asked. Pipelined requests wait their turn, up to a bound; while the client does not
read, the answer is told to pause; a client that goes away is told to the answer at once.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol, cast

import httptools

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_PIPELINED = 64

_STATUS_LINES = {status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in HTTPStatus}
_HEX = [b"%x\r\n" % size for size in range(4096)]


@dataclass(slots=True)
class Request:
    """One parsed request; header names are lower case."""

    method: str
    path: str
    query: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    keep_alive: bool
    http_11: bool

    def header(self, name: bytes) -> bytes | None:
        """The first header of that name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None


class Answer(Protocol):
    """What a connection tells the answer that is on its way."""

    def disconnected(self) -> None:
        """The client went away before the answer ended."""

    def resumed(self) -> None:
        """The client reads again after a pause."""


class Handler(Protocol):
    """What a connection asks of the engine."""

    def connected(self, connection: "Connection") -> int:
        """A connection was made; returns its number."""

    def lost(self, connection: "Connection") -> None:
        """A connection is gone."""

    def refuses(self, path: str) -> bool:
        """Whether to reset the connection before reading the body."""

    def handle(self, connection: "Connection", request: Request) -> None:
        """Answer a request, now or later."""


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_bodiless",
        "_body",
        "_body_bytes",
        "_dribbler",
        "_handler",
        "_head_bytes",
        "_headers",
        "_idle",
        "_keep_alive",
        "_keep_alive_s",
        "_loop",
        "_parser",
        "_queue",
        "_transport",
        "_url",
        "answer",
        "busy",
        "chunked",
        "number",
        "paused",
        "served",
        "server_headers",
    )

    def __init__(
        self, handler: Handler, loop: asyncio.AbstractEventLoop, server_headers: bytes, keep_alive_s: float = 0.0
    ) -> None:
        self._handler = handler
        self._loop = loop
        self._parser: Any = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request] = deque()
        self._dribbler: Dribbler | None = None
        self._keep_alive = True
        self._keep_alive_s = keep_alive_s
        self._idle: asyncio.TimerHandle | None = None
        self._bodiless = False
        self.server_headers = server_headers
        self.answer: Answer | None = None
        self.busy = False
        self.paused = False
        self.chunked = True
        self.served = 0
        self.number = 0
        self._reset_request()

    # --- what the answers call ---

    @property
    def alive(self) -> bool:
        """Whether anything can still be written."""
        return self._transport is not None and not self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is gone."""
        if self._dribbler is not None:
            self._dribbler.add([bytes((byte,)) for byte in data])
        elif self._transport is not None:
            self._transport.write(data)

    def head(self, status: int, content_type: bytes, length: int | None, extra: bytes = b"") -> bytes:
        """A response head. Without a length the body is chunked, or ends with the connection for HTTP/1.0."""
        if length is not None:
            framing = b"content-length: %d\r\n" % length
        elif self.chunked:
            framing = b"transfer-encoding: chunked\r\n"
        else:
            framing = b""
        if not self._keep_alive:
            framing += b"connection: close\r\n"
        return b"%b%bcontent-type: %b\r\n%b%b\r\n" % (
            _STATUS_LINES[status],
            self.server_headers,
            content_type,
            framing,
            extra,
        )

    def respond(self, status: int, body: bytes, content_type: bytes = b"application/json", extra: bytes = b"") -> None:
        """Send a whole response and be ready for the next request."""
        self.write(self.head(status, content_type, len(body), extra) + (b"" if self._bodiless else body))
        self.done()

    def abandon_answer(self) -> None:
        """Tell the answer that is on its way, if any, that it is not wanted."""
        answer, self.answer = self.answer, None
        if answer is not None:
            answer.disconnected()

    def chunk(self, data: bytes) -> bytes:
        """`data` as one HTTP chunk."""
        if not self.chunked:
            return data
        size = len(data)
        return (_HEX[size] if size < 4096 else b"%x\r\n" % size) + data + b"\r\n"

    def chunks(self, parts: list[bytes]) -> bytes:
        """Each of `parts` as an HTTP chunk, together."""
        if not self.chunked:
            return b"".join(parts)
        if max(map(len, parts), default=0) < len(_HEX):
            return b"".join([_HEX[len(part)] + part + b"\r\n" for part in parts])
        return b"".join(map(self.chunk, parts))

    def last_chunk(self) -> bytes:
        """What ends a chunked body."""
        return b"0\r\n\r\n" if self.chunked else b""

    def done(self) -> None:
        """The response is complete: take the next request, or close."""
        self.answer = None
        self.busy = False
        self.served += 1
        if not self._keep_alive:
            self.close()
        elif self._queue:
            self._next()
        else:
            self._rest()

    def dribble(self, interval_s: float) -> "Dribbler":
        """From now on send single bytes, one each `interval_s`; returns what does it."""
        self._dribbler = Dribbler(self, self._loop, interval_s)
        return self._dribbler

    @property
    def dribbler(self) -> "Dribbler | None":
        """What sends single bytes, if anything does."""
        return self._dribbler

    def undribble(self) -> None:
        """Send normally again."""
        self._dribbler = None

    def write_now(self, data: bytes) -> None:
        """Send bytes past a dribbler."""
        if self._transport is not None:
            self._transport.write(data)

    def close(self) -> None:
        """FIN, after what was written."""
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        """RST: the client sees a connection reset."""
        if self._transport is not None:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = cast(asyncio.Transport, transport)
        self.number = self._handler.connected(self)
        self._rest()

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "Upgrades are not supported.")
        except httptools.HttpParserError:
            self._refuse(400, "Invalid HTTP request received.")

    def eof_received(self) -> bool:
        """A client that stopped writing has gone, as for the servers of real engines."""
        return False

    def pause_writing(self) -> None:
        """The client does not read fast enough."""
        self.paused = True

    def resume_writing(self) -> None:
        """The client reads again."""
        self.paused = False
        if self.answer is not None:
            self.answer.resumed()

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone: stop the answer."""
        self._transport = None
        self._dribbler = None
        if self._idle is not None:
            self._idle.cancel()
        self._queue.clear()
        self.abandon_answer()
        self._handler.lost(self)

    # --- httptools ---

    def on_url(self, url: bytes) -> None:
        """Part of the request target."""
        self._url += url
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers.append((name.lower(), value))
        self._count_head(len(name) + len(value))

    def on_headers_complete(self) -> None:
        """The head has been read."""
        if self._handler.refuses(self._path()[0]):
            self.reset()
            return
        for name, value in self._headers:
            if name == b"expect" and value.lower() == b"100-continue" and not self.busy:
                self.write_now(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Part of the body."""
        self._body_bytes += len(data)
        if self._body_bytes > MAX_BODY_BYTES:
            self._refuse(413, "The body is too large.")
            return
        self._body.append(data)

    def on_message_complete(self) -> None:
        """A request is complete: answer it, or let it wait for the one before."""
        if not self.alive:
            return
        path, query = self._path()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        request = Request(
            self._parser.get_method().decode("latin-1"),
            path,
            query,
            self._headers,
            body,
            self._parser.should_keep_alive(),
            self._parser.get_http_version() != "1.0",
        )
        self._reset_request()
        if len(self._queue) >= MAX_PIPELINED:
            self.reset()
            return
        self._queue.append(request)
        if not self.busy:
            self._next()

    # --- own ---

    def _rest(self) -> None:
        """Nothing is asked: close after a while, as real servers do."""
        if self._keep_alive_s > 0:
            self._idle = self._loop.call_later(self._keep_alive_s, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if not self.busy:
            self.close()

    def _next(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        request = self._queue.popleft()
        self.busy = True
        self._keep_alive = request.keep_alive
        self.chunked = request.http_11
        self._bodiless = request.method == "HEAD"
        self._handler.handle(self, request)

    def _path(self) -> tuple[str, str]:
        path, _, query = self._url.decode("latin-1").partition("?")
        return path, query

    def _reset_request(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._head_bytes = 0

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "The head is too large.")

    def _refuse(self, status: int, sentence: str) -> None:
        """Answer what cannot be parsed, if nothing else is on its way, and close."""
        if not self.alive:
            return
        if not self.busy:
            self._keep_alive = False
            body = sentence.encode()
            self.write(self.head(status, b"text/plain; charset=utf-8", len(body)) + body)
        self.close()


class Dribbler:
    """Sends what it is given bit by bit: each unit is a write of its own, in a pass of the loop of its own."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop, interval_s: float) -> None:
        self._connection = connection
        self._loop = loop
        self._interval_s = interval_s
        self._units: deque[bytes] = deque()
        self._then: Callable[[], None] | None = None
        self._going = False

    def add(self, units: Iterable[bytes]) -> None:
        """Send `units` after what was added before."""
        self._units.extend(units)
        if not self._going:
            self._going = True
            self._step()

    def then(self, callback: Callable[[], None]) -> None:
        """Call back once, when all was sent."""
        self._then = callback
        if not self._going:
            self._finish()

    def _step(self) -> None:
        if not self._connection.alive:
            return
        if not self._units:
            self._going = False
            self._finish()
            return
        self._connection.write_now(self._units.popleft())
        if self._interval_s > 0:
            self._loop.call_later(self._interval_s, self._step)
        else:
            self._loop.call_soon(self._step)

    def _finish(self) -> None:
        callback, self._then = self._then, None
        if callback is not None:
            callback()
