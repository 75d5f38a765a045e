"""The public listener: HTTP/1.1 by llhttp on an asyncio protocol, bounded in every direction.

Floor: dataplane. A connection parses one request at a time, hands it to the pipeline as a task and gives that task a
`Reply` to answer with. It knows bytes, sizes and times; what a route means stands in ``gateway.dataplane.pipeline``.
Bounds: size of head and body, number of headers, time for head and body, idle time, pipelined requests, open
connections, body bytes in memory. Whoever breaks one gets an error body if HTTP still allows one.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import httptools

from gateway.core import errors
from gateway.core.errors import ApiError
from gateway.dataplane import heads
from gateway.dataplane.same_head import SameHead
from gateway.settings import Settings
from ledger.core.ids import REQUEST_RANDOM_BYTES
from ledger.core.ids import request_id as mint_request_id

MAX_PIPELINED = 32
MAX_LENGTH_DIGITS = 19
IDS_AT_ONCE = 256
MAX_OTHER_HEADS = 3
"""After so many in a row that were not the last head again, no more are remembered: each may bear an id of its own."""
DISCARD_S = 2.0
"""How long the rest of a refused body is read and thrown away, so that the refusal is not lost to a reset."""

WANTED_HEADERS = frozenset(
    {
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"idempotency-key",
        b"transfer-encoding",
        b"x-request-id",
    }
)


_PLAIN_HEADERS = WANTED_HEADERS - {b"expect", b"transfer-encoding"}
"""A request with others of those that are read takes the long road."""


@dataclass(slots=True)
class Request:
    """One parsed request.

    Attributes:
        path: the target without its query.
        query: what follows the path, with its question mark.
        headers: only those that we read, names in lower case.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    request_id: str
    started_s: float
    started_ms: int
    keep_alive: bool
    is_http10: bool
    body: bytes = b""
    query: str = ""
    refused: ApiError | None = None


Handler = Callable[[Request, "Connection"], Coroutine[Any, Any, None]]


class Randomness:
    """Random bytes for request ids, fetched from the system for many of them at once."""

    __slots__ = ("_bytes", "_spent")

    def __init__(self) -> None:
        self._bytes = b""
        self._spent = 0

    def take(self) -> bytes:
        """The next `REQUEST_RANDOM_BYTES`."""
        start = self._spent
        if start >= len(self._bytes):
            self._bytes, start = os.urandom(IDS_AT_ONCE * REQUEST_RANDOM_BYTES), 0
        self._spent = start + REQUEST_RANDOM_BYTES
        return self._bytes[start : self._spent]


@dataclass(slots=True)
class Shared:
    """What all connections of a worker share."""

    settings: Settings
    handler: Handler
    loop: asyncio.AbstractEventLoop
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    buffered_bytes: int = 0
    draining: bool = False
    date: heads.DateHeader = field(default_factory=heads.DateHeader)
    randomness: Randomness = field(default_factory=Randomness)
    now_s: float = 0.0

    def date_line(self) -> bytes:
        """The ``Date`` header now."""
        return self.date.at(time.time())


class Connection(asyncio.Protocol):
    """One client connection; towards the pipeline it is the reply of the request in progress."""

    __slots__ = (
        "_bodiless_bytes",
        "_body",
        "_body_bytes",
        "_chunked",
        "_deadline_s",
        "_discarding",
        "_head_size",
        "_headers",
        "_headers_seen",
        "_held_head",
        "_in_head",
        "_in_message",
        "_other_heads",
        "_parser",
        "_queue",
        "_reading_paused",
        "_refused",
        "_replied",
        "_request",
        "_same_head",
        "_shared",
        "_streaming",
        "_task",
        "_transport",
        "_url",
        "is_paused",
        "on_pause",
        "on_resume",
        "paused_since_s",
    )  # fmt: skip

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self._queue: deque[Request] = deque()
        self._request: Request | None = None
        self._same_head: SameHead | None = None
        self._other_heads = 0
        self._task: asyncio.Task[None] | None = None
        self._deadline_s = 0.0
        self._discarding = False
        self._reading_paused = False
        self._replied = False
        self._streaming = False
        self._held_head = b""
        self._chunked = True
        self._in_message = False
        self._in_head = True
        self._bodiless_bytes = 0
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._headers_seen = 0
        self._head_size = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._refused: ApiError | None = None
        self.is_paused = False
        self.paused_since_s = 0.0
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None

    # -- asyncio.Protocol ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection, unless too many are open."""
        # Not an isinstance check: uvloop's transports are none of asyncio's classes.
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=256 * 1024)
        shared = self._shared
        shared.connections.add(self)
        self._deadline_s = shared.loop.time() + shared.settings.head_timeout_s
        if len(shared.connections) > shared.settings.max_connections:
            self._refuse(errors.overloaded())

    def data_received(self, data: bytes) -> None:
        """Parse; requests are handed on by `on_message_complete`."""
        if self._discarding:
            return
        is_fresh = self._in_head and not self._in_message and self._request is None
        if is_fresh:
            if self._same_head is not None:
                if self._take_short_road(data):
                    self._other_heads = 0
                    return
                self._other_heads += 1
                if self._other_heads >= MAX_OTHER_HEADS:
                    self._same_head = None
            # The first byte of a request starts its clock.
            self._in_message = True
            self._deadline_s = self._shared.loop.time() + self._shared.settings.head_timeout_s
        self._bodiless_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Raised behind a request that offers another protocol. It is answered in this one; what follows is lost.
            self._discarding = True
        except httptools.HttpParserCallbackError:
            self._refuse(errors.internal())
            raise
        except httptools.HttpParserError:
            self._refuse(errors.malformed_http())
        else:
            if self._bodiless_bytes > self._shared.settings.max_header_bytes:
                self._refuse(errors.head_too_large())
            elif is_fresh and not self._in_message and self._other_heads < MAX_OTHER_HEADS:
                self._learn_head(data)

    def eof_received(self) -> bool:
        """A client that closes its side is gone."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request in progress: whoever runs it settles for what was delivered."""
        del exc
        shared = self._shared
        shared.connections.discard(self)
        shared.buffered_bytes -= self._body_bytes
        self._body_bytes = 0
        self._drop_queue()
        self._transport = None
        # It holds this connection's methods: in that circle both would lie until the collector looks at what is old.
        del self._parser
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client reads too slowly: hold back the backend."""
        self.is_paused = True
        self.paused_since_s = time.monotonic()
        if self.on_pause is not None:
            self.on_pause()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.is_paused = False
        if self.on_resume is not None:
            self.on_resume()

    # -- llhttp ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A new request starts, maybe behind one that is still answered."""
        if self._discarding:
            return
        self._in_message = self._in_head = True
        self._url = b""
        self._headers = {}
        self._headers_seen = self._head_size = 0
        self._refused = None

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep what is read later; count the rest. A repeated one that decides something is refused."""
        if not self._in_head:
            return  # a trailer: nothing that stands behind a body may change how its request is understood
        self._headers_seen += 1
        self._head_size += len(name) + len(value) + 4
        name = name.lower()
        if name in WANTED_HEADERS:
            if name not in self._headers:
                # llhttp takes the blanks before a value off, not those behind.
                self._headers[name] = value.rstrip(b" \t")
            elif name != b"content-type":  # which decides nothing here: the first one counts
                self._refused = errors.malformed_http()

    def on_headers_complete(self) -> None:
        """Refuse what is too large before it is read; answer an expectation."""
        settings = self._shared.settings
        if self._discarding:
            return
        self._in_head = False
        self._bodiless_bytes = 0
        if self._headers_seen > settings.max_headers or self._head_size > settings.max_header_bytes:
            self._refused = errors.head_too_large()
        self._deadline_s = self._shared.loop.time() + settings.body_timeout_s
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > MAX_LENGTH_DIGITS:
            self._refused = self._refused or errors.malformed_http()
        elif int(length) > settings.max_body_bytes:
            self._refused = self._refused or errors.body_too_large(settings.max_body_bytes)
        if self._parser.should_upgrade() and (length.strip(b"0") or b"transfer-encoding" in self._headers):
            self._refused = self._refused or errors.malformed_http()  # llhttp would take the body for the new protocol
        if b"transfer-encoding" in self._headers and self._headers[b"transfer-encoding"].lower() != b"chunked":
            self._refused = self._refused or errors.malformed_http()  # nobody here takes another coding off
        if b"host" not in self._headers and self._parser.get_http_version() == "1.1":
            self._refused = self._refused or errors.malformed_http()  # RFC 9112 3.2
        expect = self._headers.get(b"expect")
        if expect is not None and self._refused is None:
            if expect.lower() != b"100-continue":
                self._refused = errors.expectation_failed()
            elif self._request is None and self._transport is not None:
                self._transport.write(heads.CONTINUE)
        if self._refused is not None:
            self._complete(cut_short=True)

    def on_body(self, data: bytes) -> None:
        """Collect the body within its bounds."""
        if self._discarding or self._refused is not None:
            return
        settings, shared = self._shared.settings, self._shared
        self._bodiless_bytes = 0
        self._body_bytes += len(data)
        shared.buffered_bytes += len(data)
        if self._body_bytes > settings.max_body_bytes:
            self._refused = errors.body_too_large(settings.max_body_bytes)
        elif shared.buffered_bytes > settings.max_buffered_bytes:
            self._refused = errors.overloaded()
        if self._refused is not None:
            self._complete(cut_short=True)
        else:
            self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self._discarding and self._refused is None:
            self._complete(cut_short=False)

    # -- from bytes to requests ------------------------------------------------------------------------------

    def _complete(self, *, cut_short: bool) -> None:
        """Make a `Request` of what was parsed; one that was cut short is answered and the connection closed."""
        request = self._make_request()
        if cut_short:
            self._discarding = True
            request.body = b""
        self._shared.buffered_bytes += len(request.body) - self._body_bytes
        self._in_message = False
        self._in_head = True
        self._bodiless_bytes = 0
        self._body_bytes = 0
        self._body = []
        self._queue.append(request)
        if self._request is None:
            self._next()
        elif len(self._queue) > MAX_PIPELINED:
            self.abort()
        elif not self._reading_paused and self._transport is not None:
            # A pipelining client waits its turn. Its hang-up is noticed when the turn comes.
            self._reading_paused = True
            self._transport.pause_reading()

    def _make_request(self) -> Request:
        parser, shared = self._parser, self._shared
        now_ms = time.time_ns() // 1_000_000
        target, query = self._url, b""
        if b"?" in target or b"#" in target:
            target, mark, query = target.partition(b"#")[0].partition(b"?")
            query = mark + query
        refused = self._refused
        version = parser.get_http_version()
        if refused is None and (not target.startswith(b"/") or version not in ("1.0", "1.1")):
            refused = errors.malformed_http()
        return Request(
            method=parser.get_method().decode("latin-1"),
            path=target.decode("latin-1"),
            headers=self._headers,
            request_id=mint_request_id(now_ms, shared.randomness.take()),
            started_s=time.monotonic(),
            started_ms=now_ms,
            keep_alive=(
                parser.should_keep_alive() and not parser.should_upgrade() and refused is None and not shared.draining
            ),
            is_http10=version == "1.0",
            body=self._body[0] if len(self._body) == 1 else b"".join(self._body),
            query=query.decode("latin-1"),
            refused=refused,
        )

    def _take_short_road(self, data: bytes) -> bool:
        """Take a request whose head was parsed before; see ``gateway.dataplane.same_head``."""
        shared, settings = self._shared, self._shared.settings
        assert self._same_head is not None
        found = self._same_head.read(data)
        if found is None:
            return False
        headers, body = found
        size = len(body)
        if size > settings.max_body_bytes or shared.buffered_bytes + size > settings.max_buffered_bytes:
            return False  # the long road says why
        now_ms = time.time_ns() // 1_000_000
        request = Request(
            "POST",
            self._same_head.path,
            headers,
            mint_request_id(now_ms, shared.randomness.take()),
            time.monotonic(),
            now_ms,
            not shared.draining,
            False,
            body,
        )
        shared.buffered_bytes += size
        self._queue.append(request)
        self._next()
        return True

    def _learn_head(self, data: bytes) -> None:
        """A whole request came in one read: perhaps the next one has the same head."""
        request = self._request
        self._same_head = None
        if (
            request is None
            or self._queue
            or request.method != "POST"
            or request.query
            or request.refused is not None
            or not request.keep_alive
            or request.is_http10
            or not _PLAIN_HEADERS.issuperset(request.headers)
        ):
            return
        self._same_head = SameHead.learn(data, request.path, request.headers, len(request.body))

    def _next(self) -> None:
        if not self._queue or self._transport is None:
            return
        request = self._request = self._queue.popleft()
        self._replied = self._streaming = False
        self._held_head = b""
        self._deadline_s = 0.0  # the pipeline has deadlines of its own
        task = self._shared.loop.create_task(self._shared.handler(request, self))
        self._task = task
        self._shared.tasks.add(task)
        # Not a `finally` in the task: one that is cancelled before its first step never runs at all.
        task.add_done_callback(partial(self._served, request))

    def _served(self, request: Request, task: asyncio.Task[None]) -> None:
        self._shared.tasks.discard(task)
        self._shared.buffered_bytes -= len(request.body)
        self._task = None
        self._request = None
        self.on_pause = self.on_resume = None
        self._after(request)

    def _after(self, request: Request) -> None:
        transport = self._transport
        if transport is None:
            return
        if not self._replied:
            transport.abort()  # the handler broke off: nothing half-said may look complete
        elif transport.is_closing() or not request.keep_alive or self._shared.draining:
            self._close_politely()
        else:
            settings = self._shared.settings
            wait_s = settings.head_timeout_s if self._in_message else settings.keepalive_timeout_s
            self._deadline_s = self._shared.loop.time() + wait_s
            if self._queue:
                self._next()
            elif self._reading_paused:
                self._reading_paused = False
                transport.resume_reading()

    # -- the reply -------------------------------------------------------------------------------------------

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""
        return self._transport is None or self._transport.is_closing()

    @property
    def has_begun(self) -> bool:
        """Whether a response head was written for the current request."""
        return self._streaming or self._replied

    def send(self, status: int, body: bytes, *, extra: bytes = b"", content_type: bytes = heads.JSON) -> None:
        """Answer with a whole body. ``extra`` is encoded header lines."""
        request, transport = self._request, self._transport
        if transport is None or request is None:
            return
        close = not request.keep_alive or self._shared.draining
        head = heads.whole(
            status,
            request.request_id,
            self._shared.date_line(),
            len(body),
            content_type=content_type,
            extra=extra,
            close=close,
        )
        transport.write(head if request.method == "HEAD" else head + body)
        self._replied = True

    def begin_stream(self, *, extra: bytes = b"") -> None:
        """Write the head of an event stream."""
        request, transport = self._request, self._transport
        if transport is None or request is None:
            return
        self._streaming = True
        self._chunked = not request.is_http10
        if request.is_http10:
            request.keep_alive = False
        close = not request.keep_alive or self._shared.draining
        date = self._shared.date_line()
        self._held_head = heads.stream(request.request_id, date, extra=extra, chunked=self._chunked, close=close)
        # An engine that answers at once brings events in the same breath: one write for both.
        self._shared.loop.call_soon(self._send_head)

    def write(self, data: bytes) -> None:
        """Write whole events of the stream."""
        if self._transport is None:
            return
        # `heads.chunk` without its call, once a token.
        piece = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data
        if self._held_head:
            piece, self._held_head = self._held_head + piece, b""
        self._transport.write(piece)

    def end_stream(self, data: bytes) -> None:
        """Write the last events and end the body properly."""
        self._send_head()
        if self._transport is not None:
            last = heads.chunk(data) + heads.LAST_CHUNK if data else heads.LAST_CHUNK
            self._transport.write(last if self._chunked else data)
        self._replied = True

    def break_stream(self, data: bytes) -> None:
        """Write the last event and close without ending the body, so that no client takes it for complete."""
        self._send_head()
        if self._transport is not None:
            self._transport.write(heads.chunk(data) if self._chunked else data)
            self._transport.close()
        self._replied = True

    def _send_head(self) -> None:
        head, self._held_head = self._held_head, b""
        if head and self._transport is not None:
            self._transport.write(head)

    def abort(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Enforce the deadline that is running, if any."""
        if self._transport is None or self._request is not None:
            return
        if not self._deadline_s or now_s < self._deadline_s:
            return
        if self._discarding or self._transport.is_closing():
            self.abort()
        elif self._in_message:
            self._refuse(errors.request_timeout())
        else:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close a connection that answers nothing at the moment."""
        if self._request is None and not self._in_message:
            self._close()

    def _refuse(self, error: ApiError) -> None:
        """Answer a request that never became one, then close. The parser is not fed again."""
        if self._discarding or self._transport is None:
            return
        self._refused = error
        self._complete(cut_short=True)

    def _close_politely(self) -> None:
        transport = self._transport
        if transport is None:
            return
        if self._discarding and not transport.is_closing():
            # Bytes are still coming: a close now would send a reset that can overtake the answer.
            self._deadline_s = self._shared.loop.time() + DISCARD_S
            if transport.can_write_eof():
                transport.write_eof()
        else:
            self._close()

    def _close(self) -> None:
        """Close when the client has taken all that was written; one that takes nothing is dropped by the clock."""
        if self._transport is not None:
            self._deadline_s = self._shared.loop.time() + self._shared.settings.write_timeout_s
            self._drop_queue()
            self._transport.close()

    def _drop_queue(self) -> None:
        for request in self._queue:
            self._shared.buffered_bytes -= len(request.body)
        self._queue.clear()
