"""How fast the reconciler catches up: events per second from a full Redis stream into Postgres.

    python -m benchmarks.micro.reconcile [--events 100000] [--organizations 1 --organizations 100] [--batch 2000]

Starts a Redis and a durable Postgres of its own (fsync on). Events are settlements as the gateway writes them; they
are put into the stream directly, so that only the road to Postgres is measured. First a quarter of them, one part
after the other (what one event costs to read, to plan and to book), then the reconciler as it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from ledger.books.batches import BatchWriter
from ledger.books.booking import plan
from ledger.books.database import Pool, open_pool, transaction
from ledger.books.grants import grant_slice
from ledger.books.ledger import Ledger
from ledger.books.migrate import ledger_migrations, migrate
from ledger.books.partitions import MonthKeeper
from ledger.books.terms import try_take
from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.counter import CreditCounter
from ledger.proof.audit import audit
from ledger.upkeep.reconcile import BATCH_EVENTS, Reconciler

CHARGE_NANOS = 500_000
ENDPOINT = "ep_aaaaaaaaaaaa"


async def fill(url: str, pool: Pool, ledger: Ledger, counter: CreditCounter, events: int, organizations: int) -> None:
    """Fund the organizations and put settlements into the stream, spread over them."""
    orgs = [f"org_{number:012d}" for number in range(organizations)]
    for org in orgs:
        await ledger.open_accounts(org)
        await ledger.top_up(org, events * CHARGE_NANOS, "bench")
        async with transaction(pool, "grant") as conn:
            await grant_slice(conn, org, shard=0, epoch=counter.epoch_of(0), want_nanos=events * CHARGE_NANOS)
        await ledger.deliver_grants(counter, org)
    card = await ledger.set_price(ENDPOINT, {Meter.REQUEST: CHARGE_NANOS})
    meta = await counter.meta(0)
    assert meta is not None
    now_ms = time.time_ns() // 1_000_000
    granted = dict.fromkeys(orgs, events * CHARGE_NANOS)
    info = (
        f'{{"key":"abcdefghijklmnopqrstuvwx","endpoint":"{ENDPOINT}","card":"{card.id}","route":"chat","stream":true,'
        '"meters":{"prompt":123,"completion":456,"request":1},"source":"reported","outcome":"finished",'
        f'"status":200,"started_ms":{now_ms},"ttft_ms":12.5,"total_ms":345.6}}'
    )
    async with Redis.from_url(url) as client:
        for start in range(0, events, 2000):
            pipe = client.pipeline(transaction=False)
            for number in range(start, min(start + 2000, events)):
                seq = meta.seq + 1 + number
                pipe.xadd(
                    "pareta:{0}:events",
                    {
                        "seq": seq, "epoch": 1, "kind": "settle", "hold": request_id(now_ms, os.urandom(10)),
                        "org": orgs[number % organizations], "amount": CHARGE_NANOS, "held": 1_234_567, "short": 0,
                        "t_ms": now_ms, "info": info,
                    },
                    id=f"1-{seq}",
                )  # fmt: skip
            await pipe.execute()
        await client.hset("pareta:{0}:meta", "seq", meta.seq + events)
        for number in range(events):  # the accounts as the script would have left them
            granted[orgs[number % organizations]] -= CHARGE_NANOS
        for org, left in granted.items():
            spent = events * CHARGE_NANOS - left
            await client.hset(f"pareta:{{0}}:acct:{org}", mapping={"available": left, "spent": spent})


async def parts(pool: Pool, counter: CreditCounter, batch: int, batches: int) -> None:
    """What one event costs in each part, one after the other, in microseconds."""
    spent = {"read": 0.0, "plan": 0.0, "book": 0.0, "trim": 0.0}
    events_done = 0
    async with pool.acquire() as conn:
        term = await try_take(conn, 0, "benchmark")
        assert term is not None
        writer = BatchWriter(conn, term, MonthKeeper())
        await writer.prepare()
        at = term.start
        for _ in range(batches):
            marks = [time.perf_counter()]
            events = await counter.read_events(0, at.stream_id, batch)
            marks.append(time.perf_counter())
            planned = plan(events, at)
            marks.append(time.perf_counter())
            await writer.book(planned)
            marks.append(time.perf_counter())
            await counter.trim(0, planned.end.stream_id)
            marks.append(time.perf_counter())
            at = planned.end
            events_done += len(events)
            for name, begin, end in zip(spent, marks[:-1], marks[1:], strict=True):
                spent[name] += end - begin
    print("  µs per event: " + ", ".join(f"{name} {s / events_done * 1e6:.1f}" for name, s in spent.items()))


async def measure(folder: Path, events: int, organizations: int, batch: int) -> None:
    """One run on fresh servers."""
    redis, postgres = EmbeddedRedis(folder / "redis"), EmbeddedPostgres(folder / "postgres")
    try:
        await redis.start()
        await postgres.start()
        conn = await asyncpg.connect(postgres.url)
        await migrate(conn, ledger_migrations(), namespace="ledger")
        await conn.close()
        pool = await open_pool(postgres.url, size=6, timeout_s=60)
        ledger = Ledger(pool)
        counter = await CreditCounter.connect(redis.url, epoch=await ledger.epochs(1), timeout_s=30)
        await counter.begin_epoch()
        await fill(redis.url, pool, ledger, counter, events, organizations)
        print(f"{organizations} organizations, {events} events, batches of {batch}:")
        await parts(pool, counter, batch, max(1, events // 4 // batch))
        await drain(pool, counter, batch)
        report = await audit(pool, counter)
        assert report.usage_events == events
        assert report.clean, report.differences[:3]
        skipped = report.skipped or "nothing"
        print(f"  audit: {report.seconds:.2f} s, {report.difference_count} differences, skipped: {skipped}")
        await counter.close()
        await pool.close()
    finally:
        await redis.stop()
        await postgres.stop()


async def drain(pool: Pool, counter: CreditCounter, batch: int) -> None:
    """The reconciler as it runs, until the stream is empty."""
    stop = asyncio.Event()
    reconciler = Reconciler(pool, counter, batch_events=batch)
    left = await counter.stream_length(0)  # the last booked one stays, but none was booked yet
    cpu_s, begin_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    task = asyncio.create_task(reconciler.run(stop))
    while not reconciler.leading:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
    backend = await pool.fetchval("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted")
    backend_s = backend_cpu_s(backend)
    while reconciler.shards[0].booked_events < left:  # noqa: ASYNC110 (what is measured must not know of it)
        await asyncio.sleep(0.005)
    wall_s = time.perf_counter() - begin_s
    spent = resource.getrusage(resource.RUSAGE_SELF)
    used_s = spent.ru_utime + spent.ru_stime - cpu_s.ru_utime - cpu_s.ru_stime
    backend_s = backend_cpu_s(backend) - backend_s
    stop.set()
    await task
    print(
        f"  reconciler: {left / wall_s:,.0f} events/s ({left} in {wall_s:.2f} s; CPU for each event: "
        f"{used_s / left * 1e6:.1f} µs here, {backend_s / left * 1e6:.1f} µs in its Postgres backend)"
    )


def backend_cpu_s(pid: int) -> float:
    """CPU that a process has used; it says more than the wall on a machine that others use, too."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--organizations", type=int, action="append")
    parser.add_argument("--batch", type=int, default=BATCH_EVENTS)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for organizations in arguments.organizations or [1, 100]:
        folder = Path(tempfile.mkdtemp(prefix="pareta-bench-"))
        folder.chmod(0o755)
        asyncio.run(measure(folder, arguments.events, organizations, arguments.batch))
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
