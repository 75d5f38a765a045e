"""The canonical line of a request, and what happens to it when nobody reads."""

from __future__ import annotations

import json
import os

from gateway.core.exchange import Exchange
from gateway.edges.request_log import MAX_BUFFERED, RequestLog


def closed(log: RequestLog, count: int, *, start: int = 0) -> None:
    for number in range(start, start + count):
        log.closed(Exchange(f"req_{number:026d}", "unknown", 0.0, 1_700_000_000_000, status=404), 0.5)


def drained(descriptor: int) -> bytes:
    os.set_blocking(descriptor, False)
    data = b""
    while True:
        try:
            data += os.read(descriptor, 1 << 20)
        except BlockingIOError:
            return data


def test_a_reader_that_stops_reading_blocks_nobody() -> None:
    """A full pipe costs lines and never the loop: flush returns; later lines arrive whole, and the lost are counted."""
    reader, writer = os.pipe()
    log = RequestLog(writer)
    closed(log, MAX_BUFFERED + 10)
    log.flush()  # far more than a pipe holds: a write that waits would hang here
    closed(log, 10, start=20_000)
    seen = []
    for _ in range(1000):
        if not (data := drained(reader)):
            break
        seen += [json.loads(line) for line in data.splitlines()]
        log.flush()
    os.close(reader)
    os.close(writer)
    lost = sum(line["count"] for line in seen if line["event"] == "log_lines_dropped")
    requests = [line["request_id"] for line in seen if line["event"] == "request"]
    assert lost >= 10
    assert len(requests) + lost == MAX_BUFFERED + 20
    assert len(set(requests)) == len(requests)


def test_a_reader_that_is_gone_costs_lines_only() -> None:
    """A closed pipe is no error of a request, and the buffer is not kept for it."""
    reader, writer = os.pipe()
    os.close(reader)
    log = RequestLog(writer)
    closed(log, 5)
    log.flush()
    log.flush()
    os.close(writer)
