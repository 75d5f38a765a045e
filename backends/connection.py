"""One HTTP/1.1 connection to an engine: llhttp on an asyncio protocol, pushing body bytes as they arrive.

Floor: edge. A connection serves one exchange at a time. It says itself whether it may be used again: only when
the answer ended cleanly, the engine keeps the connection and no stray byte followed.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools

MAX_HEAD_BYTES = 64 * 1024
WANTED_HEADERS = frozenset({b"content-length", b"content-type", b"retry-after", b"transfer-encoding"})


class AnswerReceiver(Protocol):
    """Who listens to one answer. After `ended` or `lost` the connection forgets it."""

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Status and headers are complete: those of `WANTED_HEADERS`, names in lower case."""

    def body(self, data: bytes) -> None:
        """Some body bytes, transfer coding removed."""

    def ended(self) -> None:
        """The answer is complete as HTTP counts it."""

    def lost(self, *, malformed: bool) -> None:
        """The connection broke before that."""


class EngineConnection(asyncio.Protocol):
    """The protocol object of one connection."""

    __slots__ = (
        "_head_bytes", "_headers", "_in_head", "_parser", "_pieces", "_receiver",
        "idle_since_s", "last_byte_s", "reused", "transport",
    )  # fmt: skip

    def __init__(self) -> None:
        self._receiver: AnswerReceiver | None = None
        # One parser for all answers of a connection: it is only used again when the last answer ended cleanly.
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._in_head = True
        self._pieces: list[bytes] = []
        self.transport: asyncio.Transport | None = None
        self.last_byte_s = 0.0
        self.idle_since_s = 0.0
        self.reused = False

    @property
    def is_usable(self) -> bool:
        """Whether another request may be sent on it."""
        return self.transport is not None and not self.transport.is_closing() and self._receiver is None

    def send(self, request: bytes, receiver: AnswerReceiver) -> None:
        """Write one request and hand its answer to ``receiver``."""
        assert self.transport is not None
        assert self._receiver is None
        self._receiver = receiver
        self._headers = {}
        self._head_bytes = 0
        self._in_head = True
        self.last_byte_s = time.monotonic()
        self.transport.write(request)

    def abort(self) -> None:
        """Close at once; the receiver hears nothing more. This is how a generation is cancelled."""
        self._receiver = None
        if self.transport is not None:
            self.transport.abort()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        # Not an isinstance check: uvloop's transports are none of asyncio's classes.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse; everything else happens in the parser's callbacks."""
        if self._receiver is None:
            self.abort()  # nobody asked: a stray byte makes the connection unusable
            return
        self.last_byte_s = time.monotonic()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + len(data):
                self._break(malformed=True)
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            self._break(malformed=True)
            raise  # not the engine's fault but a bug of ours: the loop's handler shall show it
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # the latter for a 101 that nobody asked for
            self._break(malformed=True)
        else:
            if self._pieces:
                self._hand_on()

    def eof_received(self) -> bool:
        """A body without length ends here; anything else was cut off."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the receiver, if one still listens."""
        if self._receiver is not None:
            if exc is None and not self._in_head and self._ends_with_connection():
                self.on_message_complete()
            else:
                self._break(malformed=False)
        self.transport = None
        # It holds this connection's methods: in that circle both would lie until the collector looks at what is old.
        del self._parser

    # -- llhttp --------------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer that nobody asked for makes the connection unusable."""
        if self._receiver is None and self.transport is not None:
            self.transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect a header that somebody reads."""
        name = name.lower()
        if name in WANTED_HEADERS:
            self._headers[name] = value

    def on_headers_complete(self) -> None:
        """Hand the head on; an interim 1xx is skipped."""
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._headers = {}
            return
        self._in_head = False
        if self._receiver is not None:
            self._receiver.head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        """Collect a piece: what one read brought in many chunks is handed on, and written to the client, at once."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """The answer is whole: free the connection, or close it when it can't serve another."""
        if self._pieces:
            self._hand_on()
        receiver = self._receiver
        if receiver is None or self._in_head:
            return
        self._receiver = None
        if self.transport is not None:
            if self._parser.should_keep_alive():
                self.transport.resume_reading()  # the receiver may have paused it at the last byte
            else:
                self.transport.close()
        receiver.ended()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _hand_on(self) -> None:
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._receiver is not None:
            self._receiver.body(data)

    def _ends_with_connection(self) -> bool:
        return (
            b"content-length" not in self._headers
            and b"chunked" not in self._headers.get(b"transfer-encoding", b"").lower()
        )

    def _break(self, *, malformed: bool) -> None:
        receiver, self._receiver = self._receiver, None
        self._pieces.clear()
        if self.transport is not None:
            self.transport.abort()
        if receiver is not None:
            receiver.lost(malformed=malformed)
