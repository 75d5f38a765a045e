"""Response heads, written once and filled in.

Floor: dataplane (pure but for the clock that is handed in). The heads of the hot path are encoded when the module
is loaded; a response adds only its id, its length and what is its own.
"""

from __future__ import annotations

from email.utils import formatdate
from http import HTTPStatus

_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

JSON = b"Content-Type: application/json\r\n"
TEXT = b"Content-Type: text/plain; charset=utf-8\r\n"
EVENT_STREAM = b"Content-Type: text/event-stream\r\nCache-Control: no-cache\r\nX-Accel-Buffering: no\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"


class DateHeader:
    """The ``Date`` header, encoded again only when the second has changed."""

    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def at(self, unix_s: float) -> bytes:
        """The header line for a moment."""
        second = int(unix_s)
        if second != self._second:
            self._second = second
            self._line = f"Date: {formatdate(second, usegmt=True)}\r\n".encode()
        return self._line


def whole(
    status: int, request_id: str, date: bytes, length: int, *, content_type: bytes = JSON, extra: bytes, close: bool
) -> bytes:
    """The head of a response whose length is known."""
    return b"".join(
        (
            _STATUS_LINES[status],
            content_type,
            # RFC 9110 8.6: an answer without content has no length either.
            b"" if status == 204 else b"Content-Length: %d\r\n" % length,
            b"x-request-id: ",
            request_id.encode(),
            b"\r\n",
            date,
            extra,
            b"Connection: close\r\n\r\n" if close else b"\r\n",
        )
    )


def stream(request_id: str, date: bytes, *, extra: bytes, chunked: bool, close: bool) -> bytes:
    """The head of an event stream; HTTP/1.0 has no chunks, its body ends with the connection."""
    return b"".join(
        (
            _STATUS_LINES[200],
            EVENT_STREAM,
            b"Transfer-Encoding: chunked\r\n" if chunked else b"",
            b"x-request-id: ",
            request_id.encode(),
            b"\r\n",
            date,
            extra,
            b"Connection: close\r\n\r\n" if close or not chunked else b"\r\n",
        )
    )


def chunk(data: bytes) -> bytes:
    """One chunk of the chunked transfer coding (RFC 9112 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)
