"""One call of gRPC with one request and many responses: messages out of data frames, a status out of trailers.

Floor: wire (pure). Knows gRPC's framing, nothing of what a message holds.
Source: gRPC over HTTP2 (PROTOCOL-HTTP2.md); statuscodes.md.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Protocol
from urllib.parse import unquote_to_bytes

from backends.wire.triton.http2 import CANCEL, ENHANCE_YOUR_CALM, REFUSED_STREAM, Headers

STATUSES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""By their numbers."""

_OF_RESET = {REFUSED_STREAM: "UNAVAILABLE", CANCEL: "CANCELLED", ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED"}
_OF_HTTP = {
    b"400": "INTERNAL", b"401": "UNAUTHENTICATED", b"403": "PERMISSION_DENIED", b"404": "UNIMPLEMENTED",
    b"429": "UNAVAILABLE", b"502": "UNAVAILABLE", b"503": "UNAVAILABLE", b"504": "UNAVAILABLE",
}  # fmt: skip
"""What answers that are not gRPC's mean, from a proxy for example."""
_PREFIX = struct.Struct(">BI")
"""Whether a message is compressed, and its length."""
_PREFIX_BYTES = 5


class MessageReceiver(Protocol):
    """Who listens to a call."""

    def message(self, data: bytes) -> None:
        """The next response."""

    def settled(self) -> None:
        """All that came at once was told."""

    def ended(self, status: str, details: str) -> None:
        """The last word: the name of gRPC's status, and its text, which may be the server's."""


class CallStream:
    """The receiver of a call's stream.

    While it is held, what comes waits here, the end included. How much that can be is for the connection to bound.

    Args:
        receiver: hears of messages.
        most_bytes: of a message.
    """

    __slots__ = (
        "_buffer", "_content_type", "_end", "_http", "_is_held", "_is_over", "_most_bytes", "_receiver", "_waiting",
    )  # fmt: skip

    def __init__(self, receiver: MessageReceiver, *, most_bytes: int) -> None:
        self._receiver = receiver
        self._most_bytes = most_bytes
        self._buffer = bytearray()  # of a message that is not complete
        self._waiting: deque[bytes] = deque()
        self._end: tuple[str, str] | None = None  # which waits, too
        self._is_held = False
        self._is_over = False
        self._http = b""
        self._content_type = b""

    @property
    def is_over(self) -> bool:
        """Whether the end has come from the wire, be it told yet or not."""
        return self._is_over

    def hold(self) -> None:
        """Tell nothing until `release`."""
        self._is_held = True

    def release(self) -> None:
        """Tell what waits, as far as the receiver does not hold it again. It hears `settled` itself."""
        self._is_held = False
        while self._waiting and not self._is_held:
            self._receiver.message(self._waiting.popleft())
        if self._end is not None and not self._is_held:
            end, self._end = self._end, None
            self._receiver.ended(*end)

    def silence(self) -> None:
        """Forget what waits, and tell nothing more of it."""
        self._waiting.clear()
        self._is_held = False

    # -- backends.wire.triton.http2.StreamReceiver ---------------------------------------------------------------------

    def headers(self, headers: Headers, *, ends: bool) -> None:
        """The head, or the trailers with the status."""
        found = dict(headers)
        if self._http and not ends:
            self._tell_end("INTERNAL", "a second head")
            return
        if b":status" in found:
            if found[b":status"].startswith(b"1"):
                return  # an interim head
            self._http = found[b":status"]
            self._content_type = found.get(b"content-type", b"")
        if b"grpc-status" in found:
            if ends:
                self._tell_end(_status_of(found[b"grpc-status"]), _text_of(found.get(b"grpc-message", b"")))
        elif self._http != b"200":
            self._tell_end(_OF_HTTP.get(self._http, "UNKNOWN"), f"HTTP {self._http.decode('ascii', 'replace')}")
        elif ends:
            self._tell_end("UNKNOWN", "an end without a status")
        elif not self._content_type.startswith(b"application/grpc"):
            self._tell_end("UNKNOWN", "an answer that is not gRPC's")

    def data(self, data: bytes, *, ends: bool) -> None:
        """Part of messages; nearly always exactly one."""
        if self._is_over:
            return
        buffer = self._buffer
        if not buffer and len(data) >= _PREFIX_BYTES:
            is_compressed, length = _PREFIX.unpack_from(data)
            if length == len(data) - _PREFIX_BYTES and not is_compressed and length <= self._most_bytes:
                self._tell(data[_PREFIX_BYTES:])
                if ends:
                    self._tell_end("UNKNOWN", "an end without a status")
                return
        buffer += data
        self._cut()
        if ends:
            self._tell_end("UNKNOWN", "an end without a status")

    def settled(self) -> None:
        """Hand it on."""
        self._receiver.settled()

    def reset(self, code: int) -> None:
        """The stream broke off."""
        self._tell_end(_OF_RESET.get(code, "INTERNAL"), f"the stream was reset with code {code}")

    # -- inside --------------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        """Tell the messages that are complete."""
        buffer = self._buffer
        while len(buffer) >= _PREFIX_BYTES and not self._is_over:
            is_compressed, length = _PREFIX.unpack_from(buffer)
            if is_compressed:
                self._tell_end("INTERNAL", "a message is compressed, which was not asked for")
            elif length > self._most_bytes:
                self._tell_end("RESOURCE_EXHAUSTED", f"a message is larger than max ({length})")
            elif len(buffer) < _PREFIX_BYTES + length:
                return
            else:
                message = bytes(buffer[_PREFIX_BYTES : _PREFIX_BYTES + length])
                del buffer[: _PREFIX_BYTES + length]
                self._tell(message)

    def _tell(self, message: bytes) -> None:
        if self._is_held:
            self._waiting.append(message)
        else:
            self._receiver.message(message)

    def _tell_end(self, status: str, details: str) -> None:
        if self._is_over:
            return
        self._is_over = True
        if status == "OK" and self._buffer:
            status, details = "INTERNAL", "the last message was cut off"
        self._buffer = bytearray()
        if self._is_held:
            self._end = status, details
        else:
            self._receiver.ended(status, details)


def frame_message(message: bytes) -> bytes:
    """A message as it goes into data frames."""
    return _PREFIX.pack(0, len(message)) + message


def timeout_header(seconds: float) -> str:
    """``grpc-timeout``: at most eight digits and a unit."""
    millis = max(1, round(seconds * 1000))
    return f"{millis}m" if millis < 10**8 else f"{min(millis // 1000, 10**8 - 1)}S"


def _status_of(said: bytes) -> str:
    try:
        return STATUSES[int(said)] if said.isdigit() else "UNKNOWN"
    except IndexError:
        return "UNKNOWN"


def _text_of(said: bytes) -> str:
    return unquote_to_bytes(said).decode("utf-8", "replace")
