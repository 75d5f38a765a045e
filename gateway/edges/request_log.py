"""One canonical structured line per request, on standard output.

Floor: edge. Lines are collected and written together a few times a second: a write per request would be the dearest
thing on the hot path. Never a prompt, an answer or a key's secret; the key's id is no secret.
"""

from __future__ import annotations

import os
import select
from collections import deque
from typing import Any

import orjson

from gateway.core.exchange import Exchange

MAX_BUFFERED = 10_000
PROBES = frozenset({"/healthz", "/readyz"})
"""A balancer asks every second; only an answer that is not 200 is worth a line."""
PIECE_BYTES = select.PIPE_BUF
"""A pipe that is writable takes this much without waiting, and in one piece beside the lines of other workers."""


class RequestLog:
    """Collects lines; `flush` is called by the worker's clock.

    Args:
        descriptor: the open file the lines go to.
        enabled: false drops them.
    """

    def __init__(self, descriptor: int = 1, *, enabled: bool = True) -> None:
        self._descriptor = descriptor
        self._enabled = enabled
        self._lines: deque[bytes] = deque()
        self._writable = select.poll()
        self._writable.register(descriptor, select.POLLOUT)
        self._dropped = 0

    def closed(self, exchange: Exchange, now_s: float) -> None:
        """Take note of an exchange."""
        if not self._enabled or (exchange.status == 200 and exchange.route in PROBES):
            return
        if len(self._lines) >= MAX_BUFFERED:
            self._dropped += 1
            return
        self._lines.append(orjson.dumps(line_of(exchange, now_s), option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Write what was collected, as far as it can be without waiting. A reader that is gone or slow costs lines."""
        if self._dropped and len(self._lines) < MAX_BUFFERED:
            self._lines.append(b'{"event":"log_lines_dropped","count":%d}\n' % self._dropped)
            self._dropped = 0
        while self._lines and self._writable.poll(0):
            piece = self._take_piece()
            try:
                written = os.write(self._descriptor, piece)
            except OSError:
                self._dropped += piece.count(b"\n")
                return
            if written < len(piece):
                self._lines.appendleft(piece[written:])

    def _take_piece(self) -> bytes:
        lines = [self._lines.popleft()]
        size = len(lines[0])
        while self._lines and size + len(self._lines[0]) <= PIECE_BYTES:
            lines.append(self._lines.popleft())
            size += len(lines[-1])
        return b"".join(lines)


def line_of(exchange: Exchange, now_s: float) -> dict[str, Any]:
    """The stable keys of the line; absent facts are left out."""
    started_s, endpoint, ask = exchange.started_s, exchange.endpoint, exchange.ask
    line: dict[str, Any] = {
        "event": "request",
        "at_ms": exchange.started_ms,
        "request_id": exchange.request_id,
        "route": exchange.route,
        "status": exchange.status,
        "total_ms": round((now_s - started_s) * 1000, 3),
    }
    if exchange.client_request_id is not None:
        line["client_request_id"] = exchange.client_request_id
    if exchange.error_code is not None:
        line["error"] = exchange.error_code
    if exchange.key is not None:
        line["org"] = exchange.key.org_id
        line["key"] = exchange.key.id
    if endpoint is not None:
        line["endpoint"] = endpoint.id
    if exchange.attempts:
        line["backend"] = exchange.backend_id
        line["attempts"] = exchange.attempts
    if ask is not None:
        line["stream"] = ask.stream
    if exchange.ending is not None:
        line["ending"] = exchange.ending
    if exchange.prompt_of_record is not None:
        line["prompt_of_record"] = "put_before" if exchange.prompt_of_record else "overridden"
    if exchange.replayed:
        line["replayed"] = True
    if exchange.observed is not None and exchange.observed.usage is not None:
        line["prompt_tokens"] = exchange.observed.usage.prompt
        line["completion_tokens"] = exchange.observed.usage.completion
    if exchange.held_nanos is not None:
        line["held_nanos"] = exchange.held_nanos
    if exchange.billed_nanos is not None:
        line["billed_nanos"] = exchange.billed_nanos
    if exchange.first_byte_s is not None:
        line["ttft_ms"] = round((exchange.first_byte_s - started_s) * 1000, 3)
    if exchange.upstream_sent_s is not None and exchange.upstream_done_s is not None:
        line["upstream_ms"] = round((exchange.upstream_done_s - exchange.upstream_sent_s) * 1000, 3)
    return line
