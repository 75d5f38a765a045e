"""What admit and settle cost a worker: client CPU per request, at several numbers of requests in flight.

    python -m benchmarks.micro.counter [--requests 20000] [--outbox] [--redis-url redis://…] [--no-uvloop]

Starts a redis-server of its own (``appendonly yes``, ``appendfsync always``) unless a URL is given. CPU is that of
this process alone (``time.process_time``), minting ids and making values included; wall time and Redis's own CPU are
printed beside it. With ``--outbox`` settlements go through the journal (one fdatasync per group), as in a worker.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import platform
import secrets
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from gateway.stack.embedded_redis import EmbeddedRedis
from ledger.core.ids import request_id
from ledger.core.pricing import Quote
from ledger.counter import Admission, CreditCounter, Held, RateLimit, Settlement
from ledger.counter.link import RedisLink, pack
from ledger.outbox import SettlementOutbox
from ledger.outbox.journal import Journal

ORG = "org_benchmarking"
INFO = (
    b'{"key":"abcdefghijklmnopqrstuvwx","endpoint":"ep_aaaaaaaaaaaa","card":"pc_aaaaaaaaaaaa","route":"chat",'
    b'"stream":true,"meters":{"prompt":123,"completion":456},"source":"reported","outcome":"finished",'
    b'"status":200,"started_ms":1790000000000,"ttft_ms":12.5,"total_ms":345.6}'
)
ROUNDS = 3


Settle = Callable[[Settlement], Awaitable[object]]


async def one_request(counter: CreditCounter, settle: Settle, limits: tuple[RateLimit, ...]) -> None:
    """Take a hold and settle it, as the hot path does."""
    hold_id = request_id(time.time_ns() // 1_000_000, secrets.token_bytes(10))
    held = await counter.admit(
        Admission(hold_id, ORG, "fingerprint", Quote(123_000, 2_000_000_000), 512, 30.0, limits, (), INFO)
    )
    assert isinstance(held, Held), held
    await settle(Settlement(hold_id, ORG, 500_000, (), (), INFO))


async def client(counter: CreditCounter, settle: Settle, requests: int, limits: tuple[RateLimit, ...]) -> None:
    """One client: its requests one after the other."""
    for _ in range(requests):
        await one_request(counter, settle, limits)


async def redis_cpu_s(link: RedisLink) -> float:
    """CPU that Redis has used."""
    text: bytes = await link.call(pack("INFO", "cpu"), 5.0)
    rows = dict(row.split(":", 1) for row in text.decode().splitlines() if ":" in row)
    return float(rows["used_cpu_user"]) + float(rows["used_cpu_sys"])


async def measure(url: str, requests: int, journal_folder: Path | None) -> None:
    """Print a line per number in flight."""
    counter = await CreditCounter.connect(url, epoch=1)
    outbox = SettlementOutbox(await Journal.open(journal_folder), counter) if journal_folder else None
    settle: Settle = outbox.record if outbox else counter.settle
    link = RedisLink(url)
    await counter.begin_epoch()
    await counter.grant(ORG, (await counter.account(ORG)).grant_seq + 1, 2**49)
    limits = (RateLimit("bench:requests", 10**9, 1), RateLimit("bench:tokens", 10**9, 600))
    print("in flight | limits | client CPU us/request | wall us/request | Redis CPU us/request | operations/call")
    for in_flight in (1, 8, 64, 256):
        for chosen in ((), limits):
            each = max(1, requests // in_flight // (4 if in_flight == 1 else 1))
            await asyncio.gather(*(client(counter, settle, 5, chosen) for _ in range(in_flight)))
            rows = []
            for _ in range(ROUNDS):
                gc.collect()
                calls, done = counter.counts.calls, counter.counts.operations
                redis_before, cpu, wall = await redis_cpu_s(link), time.process_time(), time.perf_counter()
                await asyncio.gather(*(client(counter, settle, each, chosen) for _ in range(in_flight)))
                if outbox:
                    await outbox.drain(60)
                cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
                n = each * in_flight / 1e6
                rows.append(
                    (
                        cpu / n,
                        wall / n,
                        (await redis_cpu_s(link) - redis_before) / n,
                        (counter.counts.operations - done) / (counter.counts.calls - calls),
                    )
                )
            a, b, c, d = (statistics.median(column) for column in zip(*rows, strict=True))
            print(f"{in_flight:9} | {len(chosen):6} | {a:21.1f} | {b:15.1f} | {c:20.1f} | {d:15.1f}")
            await counter.trim(0, "9-0")
    if outbox:
        await outbox.close()
    await link.close()
    await counter.close()


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="per line")
    parser.add_argument("--redis-url", default="")
    parser.add_argument("--outbox", action="store_true", help="settle through the journal")
    parser.add_argument("--no-uvloop", action="store_true")
    options = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    loop = "asyncio" if options.no_uvloop else "uvloop"
    print(f"commit {commit}, Python {platform.python_version()}, {loop}, {platform.machine()}")

    async def run() -> None:
        folder = Path(tempfile.mkdtemp(prefix="pareta-bench-"))
        journal = folder / "journal" if options.outbox else None
        if options.redis_url:
            await measure(options.redis_url, options.requests, journal)
            return
        server = EmbeddedRedis(folder)
        await server.start()
        try:
            await measure(server.url, options.requests, journal)
        finally:
            await server.stop()
            shutil.rmtree(folder, ignore_errors=True)

    with asyncio.Runner(loop_factory=None if options.no_uvloop else uvloop.new_event_loop) as runner:
        runner.run(run())


if __name__ == "__main__":
    main()
