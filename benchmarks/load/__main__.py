"""Closed-loop load against an OpenAI-compatible server.

``python -m benchmarks.load --base-url http://127.0.0.1:8080 --api-key … --model ep_… --connections 64 --stream``

Prints requests/s, events/s, time to first event and the CPU time of the processes named by ``--pid``. The client runs
in one process on one core; when its own CPU share (last row) nears 100 %, it and not the server is what was measured.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import click
import orjson
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks.load.client import LoadConnection, Tally

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@click.command(help=__doc__)
@click.option("--base-url", required=True)
@click.option("--api-key", required=True)
@click.option("--model", required=True)
@click.option("--connections", default=64, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--stream/--no-stream", default=False)
@click.option("--max-tokens", default=16, show_default=True)
@click.option("--body", default="{}", help="JSON members to add to the body.")
@click.option("--pid", multiple=True, type=int, help="Processes whose CPU time is reported.")
@click.option("--json", "as_json", is_flag=True)
def main(
    base_url: str,
    api_key: str,
    model: str,
    connections: int,
    seconds: float,
    stream: bool,
    max_tokens: int,
    body: str,
    pid: tuple[int, ...],
    as_json: bool,
) -> None:
    """Run and print."""
    fields = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": max_tokens}
    request = _request(base_url, api_key, {**fields, "stream": stream, **orjson.loads(body)})
    figures = uvloop.run(_run(base_url, request, connections, seconds, stream, pid))
    if as_json:
        print(orjson.dumps(figures).decode())
        return
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.2f}" if isinstance(value, float) else str(value))
    Console().print(table)


def _request(base_url: str, api_key: str, fields: dict[str, object]) -> bytes:
    body = orjson.dumps(fields)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {urlsplit(base_url).netloc}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _run(
    base_url: str, request: bytes, connections: int, seconds: float, stream: bool, pids: tuple[int, ...]
) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    parts = urlsplit(base_url)
    warm, tally = Tally(), Tally()
    opened: list[LoadConnection] = []
    for _ in range(connections):
        _, connection = await loop.create_connection(
            lambda: LoadConnection(request, warm, stream=stream), parts.hostname or "127.0.0.1", parts.port or 80
        )
        opened.append(connection)
    await asyncio.sleep(min(2.0, seconds / 4))
    for connection in opened:
        connection._tally = tally
    start_s, own_s = time.perf_counter(), time.process_time()
    before = {pid: _cpu_s(pid) for pid in pids}
    await asyncio.sleep(seconds)
    spent_s = time.perf_counter() - start_s
    own_share = (time.process_time() - own_s) / spent_s
    cpu_s = sum(_cpu_s(pid) - before[pid] for pid in pids)
    counted = (tally.requests, tally.events)
    for connection in opened:
        connection.stopping = True
    await asyncio.wait([connection.closed for connection in opened], timeout=30)
    requests, events = counted
    figures: dict[str, object] = {
        "requests": requests,
        "errors": tally.errors,
        "statuses": {str(status): count for status, count in tally.statuses.items()},
        "requests/s": requests / spent_s,
        "events/s": events / spent_s,
        "latency p50, ms": _percentile(tally.total_s, 50) * 1e3,
        "latency p99, ms": _percentile(tally.total_s, 99) * 1e3,
        "first event p50, ms": _percentile(tally.first_event_s, 50) * 1e3,
        "first event p99, ms": _percentile(tally.first_event_s, 99) * 1e3,
    }
    if pids:
        figures["server CPU, % of a core"] = cpu_s / spent_s * 100
        figures["server CPU per request, µs"] = cpu_s / max(1, requests) * 1e6
        figures["server CPU per event, µs"] = cpu_s / max(1, events) * 1e6
    figures["client CPU, % of a core"] = own_share * 100
    return figures


def _percentile(values: list[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else float("nan")


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


if __name__ == "__main__":
    main()
