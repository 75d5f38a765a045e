"""A lean HTTP client for load: one connection per concurrent request, llhttp, no allocation worth the name.

It counts; it does not parse answers beyond finding their events.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(slots=True)
class Tally:
    """What all connections of a run have seen. Times in seconds."""

    requests: int = 0
    errors: int = 0
    events: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    first_event_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)


class LoadConnection(asyncio.Protocol):
    """Sends the same request again and again (closed loop) until told to stop."""

    def __init__(self, request: bytes, tally: Tally, *, stream: bool) -> None:
        self._request = request
        self._tally = tally
        self._stream = stream
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sent_s = 0.0
        self._first_s = 0.0
        self._done = False
        self.stopping = False
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        """Count."""
        self._parser.feed_data(data)
        if self._done:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        """A connection that ends in the middle of an answer is an error."""
        if self._sent_s and not self._done:
            self._tally.errors += 1
        if not self.closed.done():
            self.closed.set_result(None)

    def on_body(self, data: bytes) -> None:
        """Count events; the first one is the time to first token."""
        if self._stream:
            events = data.count(b"\ndata: ") + data.startswith(b"data: ")
            self._tally.events += events
            if events and not self._first_s:
                self._first_s = time.perf_counter()
                self._tally.first_event_s.append(self._first_s - self._sent_s)

    def on_message_complete(self) -> None:
        """One answer is whole."""
        self._done = True

    def _send(self) -> None:
        self._done = False
        self._first_s = 0.0
        self._sent_s = time.perf_counter()
        assert self._transport is not None
        self._transport.write(self._request)

    def _next(self) -> None:
        tally, status = self._tally, self._parser.get_status_code()
        tally.requests += 1
        tally.statuses[status] = tally.statuses.get(status, 0) + 1
        tally.errors += status != 200
        tally.total_s.append(time.perf_counter() - self._sent_s)
        self._parser = httptools.HttpResponseParser(self)
        if self.stopping:
            assert self._transport is not None
            self._transport.close()
        else:
            self._send()
