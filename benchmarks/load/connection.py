"""One HTTP/1.1 connection of a load: sends requests one after the other, follows each answer to its end.

It parses as little as it may: heads by their few needed lines, streams by counting the marks of events in what a read
brought, with one look at the clock for each read. A whole answer, or the last read of a stream, is looked at closely,
so that an error is never counted as an answer.
"""

from __future__ import annotations

import errno
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from benchmarks.load.tally import Tally

EVENT = b"data: {"
_EVENT_END = b"}\n\n\r\n"
_DONE = b"[DONE]"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_TAIL_BYTES = 32
_MOST_HEAD_BYTES = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens"\s*:\s*(\d+)')
_BUFFER = bytearray(256 * 1024)
"""All connections of a process read into this one: what a read brought is used before the next one."""
_VIEW = memoryview(_BUFFER)

_now_s = time.monotonic


class _Body(Enum):
    """What tells where the answer ends."""

    NONE_YET = 0
    LENGTH = 1
    CHUNKED = 2
    CLOSE = 3


class Owner(Protocol):
    """What a connection asks of the worker that it belongs to."""

    epoll: select.epoll
    by_number: dict[int, Connection]
    address: tuple[int, tuple[object, ...]]
    tls: ssl.SSLContext | None
    tls_name: str
    stream: bool
    expect_status: int
    tokens_known: bool
    counting: Tally
    """What events and the gaps between them are added to."""

    def first_event(self, connection: Connection, now_s: float) -> None:
        """The first event of an answer was read."""

    def ended(self, connection: Connection, now_s: float, error: str | None) -> None:
        """An answer ended; `error` says what was wrong with it."""

    def later(self, connection: Connection, error: str) -> None:
        """A request could not even be sent: `ended`, but not from within `Connection.send`."""


class Connection:
    """One connection, opened when there is something to send.

    Attributes:
        due_s: when the running request was due, `sent_s`: when it was sent (of the monotonic clock).
        status: of the answer; 0 before its head.
        is_busy: whether a request is under way.
    """

    __slots__ = (
        "_body", "_closes", "_data", "_event_s", "_events", "_is_done", "_is_reused", "_is_stream", "_is_waiting",
        "_left", "_out", "_owner", "_recv_into", "_request", "_socket", "_tail", "_tokens", "due_s", "is_busy",
        "sent_s", "status",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._socket: socket.socket | None = None
        self._recv_into: Callable[[bytearray], int] = _unconnected
        self._out: memoryview | None = None
        self._request = b""
        self._tokens = 0
        self._is_waiting = False
        self.is_busy = False
        self.due_s = self.sent_s = 0.0
        # The answer that is under way.
        self.status = 0
        self._body = _Body.NONE_YET
        self._data = self._tail = b""
        self._is_stream = self._is_done = self._closes = self._is_reused = False
        self._event_s = 0.0
        self._events = self._left = 0

    def send(self, request: bytes, tokens: int, *, due_s: float) -> None:
        """Send a request; the answer before must have ended.

        Args:
            tokens: its ``max_tokens``, to check the answer with.
            due_s: when it should have been sent.
        """
        self._forget()
        self._request, self._tokens = request, tokens
        self.is_busy = True
        self.due_s, self.sent_s = due_s, _now_s()
        self._out = memoryview(request)
        if self._socket is None:
            self._open()
        else:
            self._write()

    @property
    def is_open(self) -> bool:
        """Whether there is a socket to use again."""
        return self._socket is not None

    @property
    def is_silent(self) -> bool:
        """Whether nothing of the answer has come: no event of a stream, no head of a whole one."""
        return not self._events if self._owner.stream else not self.status

    def close(self) -> None:
        """Hang up, whatever is under way."""
        if self._socket is not None:
            self._owner.by_number.pop(self._socket.fileno(), None)
            self._socket.close()
            self._socket = None
        self.is_busy = False

    def ready(self, mask: int) -> None:
        """The socket can be read or written."""
        if self._out is not None:
            self._write()
            if self._socket is None or not mask & ~select.EPOLLOUT:
                return
        try:
            size = self._recv_into(_BUFFER)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._broke(_words(error))
            return
        if not size:
            self._ended_by_peer()
        elif self._is_stream:
            self._read_events(size)
        else:
            self._read(bytes(_VIEW[:size]))
        if self._owner.tls is not None and isinstance(self._socket, ssl.SSLSocket) and self._socket.pending():
            self.ready(select.EPOLLIN)

    # -- reading ---------------------------------------------------------------------------------------------

    def _read_events(self, size: int) -> None:
        """Part of a stream is in the buffer. This is what runs for each chunk."""
        events = _BUFFER.count(EVENT, 0, size)
        if self._tail or not _BUFFER.endswith(_EVENT_END, 0, size):
            # Cut somewhere else than between two events, or the end: a few bytes of the read before matter.
            data = self._tail + bytes(_VIEW[:size])
            if self._tail:
                events = data[max(0, len(self._tail) - len(EVENT) + 1) :].count(EVENT)
            self._tail = b"" if data.endswith(_EVENT_END) else data[-_TAIL_BYTES:]
            self._is_done = self._is_done or _DONE in data
            self._count(events)
            if data.endswith(_LAST_CHUNK) and self._body is _Body.CHUNKED:
                self._complete()
            return
        self._count(events)

    def _count(self, events: int) -> None:
        if not events:
            return
        now_s, tally = _now_s(), self._owner.counting
        tally.events += events
        if self._event_s:
            tally.gaps.append(now_s - self._event_s)
            tally.together += events - 1
        else:
            self._owner.first_event(self, now_s)
        self._event_s = now_s
        self._events += events

    def _read(self, data: bytes) -> None:
        """A head, or a body that is no stream."""
        if self._body is not _Body.NONE_YET:
            self._data += data
            self._left -= len(data)
        elif not self._read_head(data):
            return
        if (self._body is _Body.LENGTH and self._left <= 0) or (
            self._body is _Body.CHUNKED and not self._is_stream and self._data.endswith(_LAST_CHUNK)
        ):
            self._complete()

    def _read_head(self, data: bytes) -> bool:
        """Take in a head; answers whether it is whole."""
        self._data += data
        head, end, body = self._data.partition(b"\r\n\r\n")
        if not end:
            if len(self._data) > _MOST_HEAD_BYTES or not self.is_busy:
                self._broke("not HTTP")
            return False
        if not head.startswith(b"HTTP/1.") or not head[9:12].isdigit():
            self._broke("not HTTP")
            return False
        self.status = int(head[9:12])
        if self.status == 100:
            self._data = b""
            return self._read_head(body) if body else False
        if found := _LENGTH.search(head):
            self._body, self._left = _Body.LENGTH, int(found[1]) - len(body)
        else:
            self._body = _Body.CHUNKED if _CHUNKED.search(head) else _Body.CLOSE
        self._closes = self._body is _Body.CLOSE or head.startswith(b"HTTP/1.0") or _CLOSE.search(head) is not None
        self._is_stream = self._owner.stream and self.status == 200 and self._body is not _Body.LENGTH
        if not self._is_stream:
            # So that a chunked body of nothing ends as any other.
            self._data = b"\r\n" + body if self._body is _Body.CHUNKED else body
            return True
        self._data = b""
        if body:
            _VIEW[: len(body) + 2] = b"\r\n" + body
            self._read_events(len(body) + 2)
        return False

    # -- endings ---------------------------------------------------------------------------------------------

    def _complete(self) -> None:
        """The answer is whole: check it, and say so."""
        error = self._fault()
        if self._closes:
            self.close()
        self.is_busy = False
        self._owner.ended(self, _now_s(), error)

    def _fault(self) -> str | None:
        """What is wrong with a whole answer."""
        owner = self._owner
        if self.status != owner.expect_status:
            return f"status {self.status}"
        if self.status != 200:
            return None
        if owner.stream:
            if self._body is _Body.LENGTH:  # it came as a whole
                self._is_done = _DONE in self._data
                self._count(self._data.count(EVENT))
            if not self._is_done:
                return "a stream without [DONE]"
            if owner.tokens_known and self._events < self._tokens:
                return "a stream with too few events"
            return None
        if owner.tokens_known:
            found = _COMPLETION_TOKENS.search(self._data)
            if found is None or int(found[1]) != self._tokens:
                return "an answer with another number of tokens"
        return None

    def _ended_by_peer(self) -> None:
        if not self.is_busy:
            self.close()  # an idle connection may be closed at any time
        elif self._body is _Body.CLOSE:
            self._complete()
        else:
            self._broke("closed before the end")

    def _broke(self, error: str) -> None:
        """The connection cannot be used any more."""
        if self.is_busy and self._is_reused and not self.status and not self._data:
            # The server had closed it when the request was on its way: every client tries again.
            self.close()
            self.is_busy, self._is_reused, self._data = True, False, b""
            self._out = memoryview(self._request)
            self._open()
            return
        was_busy = self.is_busy
        self.close()
        if was_busy:
            self._owner.ended(self, _now_s(), error)

    # -- sending ---------------------------------------------------------------------------------------------

    def _open(self) -> None:
        family, address = self._owner.address
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.setblocking(False)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._is_reused = False
        try:
            error = plain.connect_ex(address)
            if error not in (0, errno.EINPROGRESS):
                raise OSError(error, os.strerror(error))
            tls = self._owner.tls
            self._socket = (
                plain
                if tls is None
                else tls.wrap_socket(plain, server_hostname=self._owner.tls_name, do_handshake_on_connect=False)
            )
        except OSError as failure:
            plain.close()
            self.is_busy = False
            self._owner.later(self, _words(failure))
            return
        self._recv_into = self._socket.recv_into
        self._owner.by_number[self._socket.fileno()] = self
        self._owner.epoll.register(self._socket, select.EPOLLIN | select.EPOLLOUT)
        self._is_waiting = True

    def _write(self) -> None:
        """Send as much as goes."""
        assert self._socket is not None
        assert self._out is not None
        try:
            if self._owner.tls is not None and self._is_waiting and isinstance(self._socket, ssl.SSLSocket):
                self._socket.do_handshake()
            sent = self._socket.send(self._out)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as stop:
            # Level-triggered: waiting for room while only an answer of the handshake is due would spin.
            self._listen(select.EPOLLIN if isinstance(stop, ssl.SSLWantReadError) else select.EPOLLIN | select.EPOLLOUT)
            return
        except OSError as error:
            self._broke(_words(error))
            return
        self._out = self._out[sent:] if sent < len(self._out) else None
        if self._out is not None:
            self._listen(select.EPOLLIN | select.EPOLLOUT)
        elif self._is_waiting:
            self._listen(select.EPOLLIN)
            self._is_waiting = False

    def _listen(self, mask: int) -> None:
        assert self._socket is not None
        self._owner.epoll.modify(self._socket, mask)
        self._is_waiting = True

    def _forget(self) -> None:
        """Nothing of the answer before."""
        self.status = 0
        self._body = _Body.NONE_YET
        self._data = self._tail = b""
        self._is_stream = self._is_done = self._closes = False
        self._is_reused = self._socket is not None
        self._event_s = 0.0
        self._events = self._left = 0


def _unconnected(_: bytearray) -> int:
    raise AssertionError("nothing is read before there is a connection")


def _words(error: OSError) -> str:
    """What an error is called in the table of errors."""
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    return (error.strerror or type(error).__name__).lower()
