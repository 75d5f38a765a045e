"""One canonical structured line per request, on standard output.

Floor: edge. Lines are collected and written together a few times a second: a write per request would be the dearest
thing on the hot path. Never a prompt, an answer or a key's secret; the key's id is no secret.
"""

from __future__ import annotations

import os
from typing import Any

import orjson

from gateway.core.exchange import Exchange

MAX_BUFFERED = 10_000


class RequestLog:
    """Collects lines; `flush` is called by the worker's clock.

    Args:
        descriptor: the open file the lines go to.
        enabled: false drops them.
    """

    def __init__(self, descriptor: int = 1, *, enabled: bool = True) -> None:
        self._descriptor = descriptor
        self._enabled = enabled
        self._lines: list[bytes] = []
        self._dropped = 0

    def closed(self, exchange: Exchange, now_s: float) -> None:
        """Take note of an exchange."""
        if not self._enabled:
            return
        if len(self._lines) >= MAX_BUFFERED:
            self._dropped += 1
            return
        self._lines.append(orjson.dumps(line_of(exchange, now_s), option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        """Write what was collected. A reader that is gone or slow costs lines, never requests."""
        if not self._lines:
            return
        if self._dropped:
            self._lines.append(b'{"event":"log_lines_dropped","count":%d}\n' % self._dropped)
            self._dropped = 0
        data = b"".join(self._lines)
        self._lines.clear()
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            self._dropped += 1


def line_of(exchange: Exchange, now_s: float) -> dict[str, Any]:
    """The stable keys of the line; absent facts are left out."""
    usage = exchange.observed.usage if exchange.observed is not None else None
    key, endpoint = exchange.key, exchange.endpoint
    line: dict[str, Any] = {
        "event": "request",
        "at_ms": exchange.started_ms,
        "request_id": exchange.request_id,
        "client_request_id": exchange.client_request_id,
        "route": exchange.route,
        "status": exchange.status,
        "error": exchange.error_code,
        "org": key.org_id if key else None,
        "key": key.id if key else None,
        "endpoint": endpoint.id if endpoint else None,
        "backend": exchange.backend_id,
        "attempts": exchange.attempts or None,
        "stream": exchange.ask.stream if exchange.ask else None,
        "ending": exchange.ending,
        "replayed": exchange.replayed or None,
        "prompt_tokens": usage.prompt if usage else None,
        "completion_tokens": usage.completion if usage else None,
        "held_nanos": exchange.held_nanos,
        "billed_nanos": exchange.billed_nanos,
        "ttft_ms": _ms(exchange.started_s, exchange.first_byte_s),
        "upstream_ms": _ms(exchange.upstream_sent_s, exchange.upstream_done_s),
        "total_ms": _ms(exchange.started_s, now_s),
    }
    return {name: value for name, value in line.items() if value is not None}


def _ms(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else round((end_s - start_s) * 1000, 3)
