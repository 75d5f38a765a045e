"""What metering costs a worker: CPU of its process for a request's hold, settlement, journal record and booking.

    python -m benchmarks.micro.money [--requests 20000] [--in-flight 64] [--upstream-ms 2] [--only STEP]

Starts a Redis (``appendfsync always``) and a Postgres (fsync on) of its own, and the reconciler as the process that it
is in production, which opens the epoch, books the events and so lets the journal forget. What is measured is this
process: ``time.process_time``, its journal thread and the kernel's part included. Each request does what
`gateway.dataplane` does around the work itself: bound, hold, wait for an upstream, charge, settlement, and the wait
until that is on the disk. Minting ids, making exchanges and waiting for the upstream are the empty loop, and taken off.

Steps, each with all before it:

* ``empty``: the loop alone.
* ``words``: the bound, the admission, the charge and the settlement, as values; nobody is told.
* ``hold``: and Redis takes the hold. (It is given back outside of the measurement.)
* ``journal``: and the settlement becomes durable, goes to Redis and ends there; nobody waits for the books.
* ``books``: and stays in the journal until the reconciler has booked it, as in a worker.

A machine that others use, too, makes the same work cost up to twice the CPU. So a ruler is laid beside each round: what
a turn of a plain loop costs; the last column is the CPU above the empty loop at a ruler of ``QUIET_RULER_NS``.

``--alone`` measures latency instead: one request at a time, what its hold and its durable end take of the wall clock.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import os
import platform
import random
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import asyncpg
import uvloop

from backends.wire.request import Kind
from backends.wire.usage import Observed, TokenUsage
from gateway.core.estimate import plan
from gateway.core.exchange import Ending, Exchange
from gateway.core.openai import Ask, read_ask
from gateway.core.state import Endpoint, EndpointStatus, Key, Limits, Scope
from gateway.dataplane.admit import admit, build_admission
from gateway.dataplane.settle import Settler, build_settlement, charge_of
from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from ledger.books.database import Pool, open_pool
from ledger.books.epochs import current_epochs
from ledger.books.ledger import Ledger
from ledger.books.migrate import ledger_migrations, migrate
from ledger.books.partitions import MonthKeeper
from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_MICRO
from ledger.counter import CounterUnavailable, CreditCounter, Settlement
from ledger.cover import Cover
from ledger.outbox import SettlementOutbox
from ledger.outbox import segment_files as files
from ledger.outbox.books import LedgerBooks
from ledger.outbox.journal import Journal

STEPS = ("empty", "words", "hold", "journal", "books")
ROUNDS = 5
RULER_TURNS = 200_000
QUIET_RULER_NS = 50.0
GC_THRESHOLDS = (20_000, 50, 50)
"""As in a worker."""

SLICE_MICROS = 1_000_000_000
"""Credit comes to Redis in slices so large that no request comes short: that is another path."""

TOP_UP_NANOS = 10**15
ORGANIZATIONS = 8
PRICES = {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000}
BODY = json.dumps(
    {
        "model": "ep_benchmarking1",
        "messages": [
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "Which of the planets has the most moons, and since when is that known?"},
        ],
        "max_tokens": 64,
        "temperature": 0.7,
    }
).encode()
EXPIRES_IN_S = 30.0
NO_LIMITS = Limits()
LIMITS = Limits(requests_per_minute=10**8, tokens_per_minute=10**10, concurrent=10**6)


@dataclass(slots=True)
class Syncs:
    """How often the journal's thread has written a group and waited for the disk."""

    groups: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """One step: CPU and wall in microseconds a request, the ruler in ns, script calls and syncs a request."""

    step: str
    cpu_us: float
    least_cpu_us: float
    wall_us: float
    scaled_us: float
    ruler_ns: float
    calls: float
    syncs: float


class Bench:
    """The parts of a worker that deal with money, and clients that use them as the pipeline does."""

    def __init__(self, counter: CreditCounter, cover: Cover, key_limits: Limits, upstream_s: float) -> None:
        self.counter = counter
        self.cover = cover
        self.upstream_s = upstream_s
        self.settler: Settler | None = None
        self.to_void: list[Settlement] = []
        self.keys: list[Key] = []
        self.endpoint: Endpoint | None = None
        self.ask: Ask = read_ask(Kind.CHAT, BODY)
        self.limits = key_limits
        self._loop = asyncio.get_running_loop()
        self._random = random.Random(1)

    async def fund(self, pool: Pool, ledger: Ledger) -> None:
        """Organizations with credit, a key of each, and an endpoint with a price."""
        endpoint_id = "ep_benchmarking1"
        card = await ledger.set_price(endpoint_id, PRICES)
        for number in range(ORGANIZATIONS):
            org = f"org_bench{number:07d}"
            await ledger.open_accounts(org)
            await ledger.top_up(org, TOP_UP_NANOS, f"bench {number}")
            key_id = f"key{number:021d}"
            self.keys.append(Key(key_id, org, b"", Scope.FULL, None, False, self.limits, NO_LIMITS))
        self.endpoint = Endpoint(
            id=endpoint_id,
            org_id=self.keys[0].org_id,
            name="bench",
            alias=None,
            status=EndpointStatus.LIVE,
            context_tokens=8192,
            max_output_tokens=4096,
            deadline_s=60.0,
            created_s=0,
            capabilities=frozenset({"chat"}),
            backends=(),
            cards=(replace(card, effective_from_ms=0),),
        )

    def exchange(self) -> Exchange:
        """A request that was let in so far."""
        now_ms = time.time_ns() // 1_000_000
        assert self.endpoint is not None
        return Exchange(
            request_id=request_id(now_ms, secrets.token_bytes(10)),
            route="/v1/chat/completions",
            started_s=time.monotonic(),
            started_ms=now_ms,
            kind=Kind.CHAT,
            key=self.keys[now_ms % ORGANIZATIONS],
            ask=self.ask,
            endpoint=self.endpoint,
            card=self.endpoint.card_at(now_ms),
        )

    async def upstream(self, exchange: Exchange) -> Observed:
        """The work: nothing but a wait of a length of its own."""
        if self.upstream_s:
            done = self._loop.create_future()
            self._loop.call_later(self._random.uniform(0.5, 1.5) * self.upstream_s, done.set_result, None)
            await done
        exchange.first_byte_s = exchange.upstream_done_s = time.monotonic()
        exchange.status = 200
        return Observed(TokenUsage(48, 64), 64)

    async def empty(self) -> None:
        """A request of which only the loop's own part is there: three waits."""
        exchange = self.exchange()
        for _ in range(2):
            done = self._loop.create_future()
            self._loop.call_soon(done.set_result, None)
            await done
        await self.upstream(exchange)

    async def words(self) -> None:
        """All that is computed, and nobody is told."""
        exchange = self.exchange()
        assert exchange.ask is not None
        assert exchange.endpoint is not None
        assert exchange.card is not None
        planned = plan(exchange.ask, exchange.endpoint, exchange.card, discount_bps=exchange.discount_bps)
        build_admission(exchange, planned, BODY, defaults=NO_LIMITS, expires_in_s=EXPIRES_IN_S)
        for _ in range(2):
            done = self._loop.create_future()
            self._loop.call_soon(done.set_result, None)
            await done
        observed = await self.upstream(exchange)
        exchange.ending = Ending.FINISHED
        charge = charge_of(Ending.FINISHED, observed, exchange.card, exchange.ask, context_tokens=8192)
        build_settlement(exchange, charge)

    async def hold(self) -> None:
        """A hold is taken; it is given back when nobody measures."""
        exchange = self.exchange()
        await self._admit(exchange)
        await self.upstream(exchange)
        assert exchange.key is not None
        opens = exchange.open_places
        self.to_void.append(Settlement(exchange.request_id, exchange.key.org_id, 0, opens=opens))

    async def whole(self) -> None:
        """All of it."""
        exchange = self.exchange()
        await self._admit(exchange)
        observed = await self.upstream(exchange)
        await self._settle(exchange, observed)

    async def alone(self) -> tuple[float, float]:
        """All of it; seconds until the hold was there, and from the end of the work until the charge was durable."""
        exchange = self.exchange()
        begin = time.perf_counter()
        await self._admit(exchange)
        held = time.perf_counter()
        observed = await self.upstream(exchange)
        done = time.perf_counter()
        await self._settle(exchange, observed)
        return held - begin, time.perf_counter() - done

    async def _admit(self, exchange: Exchange) -> None:
        assert exchange.ask is not None
        assert exchange.endpoint is not None
        assert exchange.card is not None
        planned = plan(exchange.ask, exchange.endpoint, exchange.card, discount_bps=exchange.discount_bps)
        held = await admit(
            self.counter, self.cover, exchange, planned, BODY, defaults=NO_LIMITS, expires_in_s=EXPIRES_IN_S
        )
        exchange.held_nanos, exchange.held_epoch = held.amount_nanos, held.epoch

    async def _settle(self, exchange: Exchange, observed: Observed) -> None:
        assert self.settler is not None
        await self.settler.post(exchange, Ending.FINISHED, observed)

    async def give_back(self) -> None:
        """Void what ``hold`` took."""
        holds, self.to_void = self.to_void, []
        for start in range(0, len(holds), 200):
            await self.counter.close_holds(holds[start : start + 200])


@contextmanager
def counted_syncs() -> Iterator[Syncs]:
    """Count the groups that the journal's thread writes; each is one fdatasync."""
    syncs = Syncs()
    put = files.put

    def counting(segment: files.Segment, data: bytes) -> None:
        syncs.groups += 1
        put(segment, data)

    files.put = counting
    try:
        yield syncs
    finally:
        files.put = put


def ruler_ns() -> float:
    """CPU of a turn of a plain loop, now."""
    table = {"a": 1}
    begin = time.process_time()
    for number in range(RULER_TURNS):
        table["a"] += number
    return (time.process_time() - begin) / RULER_TURNS * 1e9


async def drained(outbox: SettlementOutbox, *, booked: bool) -> None:
    """Until Redis, and if so Postgres, has all of it."""
    await outbox.drain(60)
    while booked and outbox.unbooked:  # noqa: ASYNC110 (what is measured must not know of it)
        await asyncio.sleep(0.02)


async def measure_step(
    bench: Bench, step: str, request: Callable[[], Awaitable[None]], outbox: SettlementOutbox | None, n: int, width: int
) -> Row:
    """Run a step some times."""

    async def client(requests: int) -> None:
        for _ in range(requests):
            await request()

    each = max(1, n // width)
    cpus, walls, calls, sync_counts, rulers = [], [], [], [], []
    with counted_syncs() as syncs:
        for number in range(ROUNDS + 1):
            gc.collect()
            gc.freeze()
            ruler = ruler_ns()
            calls_before, syncs_before = bench.counter.counts.calls, syncs.groups
            cpu, wall = time.process_time(), time.perf_counter()
            rounds = max(5, each // 10) if number == 0 else each  # the first one warms up
            await asyncio.gather(*(client(rounds) for _ in range(width)))
            wall = time.perf_counter() - wall
            if outbox is not None:
                await drained(outbox, booked=outbox.books is not None)
            cpu = time.process_time() - cpu
            done = rounds * width
            if number:
                rulers.append((ruler + ruler_ns()) / 2)
                cpus.append(cpu / done * 1e6)
                walls.append(wall / done * 1e6)
                calls.append((bench.counter.counts.calls - calls_before) / done)
                sync_counts.append((syncs.groups - syncs_before) / done)
            await bench.give_back()
    return Row(
        step,
        statistics.median(cpus),
        min(cpus),
        statistics.median(walls),
        statistics.median(cpu * QUIET_RULER_NS / ruler for cpu, ruler in zip(cpus, rulers, strict=True)),
        statistics.median(rulers),
        statistics.median(calls),
        statistics.median(sync_counts),
    )


async def measure(folder: Path, options: argparse.Namespace) -> list[Row]:
    """All steps on fresh servers."""
    gc.set_threshold(*GC_THRESHOLDS)
    async with AsyncExitStack() as stack:
        redis, postgres = EmbeddedRedis(folder / "redis"), EmbeddedPostgres(folder / "postgres")
        await redis.start()
        stack.push_async_callback(redis.stop)
        await postgres.start()
        stack.push_async_callback(postgres.stop)
        conn = await asyncpg.connect(postgres.url)
        await migrate(conn, ledger_migrations(), namespace="ledger")
        await conn.close()
        pool = await open_pool(postgres.url, size=4, timeout_s=30)
        stack.push_async_callback(pool.close)
        await Ledger(pool).epochs(1)
        stack.push_async_callback(_end, _reconciler(redis.url, postgres.url, folder))
        counter = await CreditCounter.connect(redis.url, epoch=await current_epochs(pool, 1), timeout_s=10.0)
        stack.push_async_callback(counter.close)
        await _let_in(counter)
        cover = Cover(pool, counter, slice_nanos=SLICE_MICROS * NANOS_PER_MICRO, timeout_s=10.0)
        bench = Bench(counter, cover, LIMITS if options.limits else NO_LIMITS, options.upstream_ms / 1000)
        await bench.fund(pool, Ledger(pool))
        rows = []
        for step in options.only or STEPS:
            outbox = None
            if step in ("journal", "books"):
                journal = await Journal.open(folder / f"journal-{step}")
                books = LedgerBooks(pool, MonthKeeper(), counter) if step == "books" else None
                outbox = SettlementOutbox(journal, counter, books, cover)
                bench.settler = Settler(outbox)
            request = {"empty": bench.empty, "words": bench.words, "hold": bench.hold}.get(step, bench.whole)
            if options.alone and step == "books":
                await _alone(bench, options.requests)
            else:
                with _profiled(options.profile):
                    rows.append(await measure_step(bench, step, request, outbox, options.requests, options.in_flight))
            if outbox is not None:
                await drained(outbox, booked=outbox.books is not None)
                await outbox.close()
        return rows


@contextmanager
def _profiled(path: str) -> Iterator[None]:
    if not path:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        profile.dump_stats(path)


async def _alone(bench: Bench, requests: int) -> None:
    spans = [await bench.alone() for _ in range(requests)]
    for name, column in zip(("hold", "durable end"), zip(*spans, strict=True), strict=True):
        cuts = statistics.quantiles(column, n=100)
        print(f"one at a time, {name}: p50 {cuts[49] * 1e6:.0f} µs, p99 {cuts[98] * 1e6:.0f} µs")


async def _let_in(counter: CreditCounter) -> None:
    """Until the guardian has opened the epoch."""
    for _ in range(600):
        try:
            await counter.ping()
        except CounterUnavailable:
            await asyncio.sleep(0.05)
        else:
            return
    raise RuntimeError("The reconciler has not let this process in; see its log.")


def _reconciler(redis_url: str, postgres_url: str, folder: Path) -> subprocess.Popen[bytes]:
    with (folder / "reconciler.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gateway", "reconcile", "--data-dir", str(folder / "data")],
            env={
                **os.environ,
                "REDIS_URL": redis_url,
                "DATABASE_URL": postgres_url,
                "PARETA_ESCROW_SLICE_MICROS": str(SLICE_MICROS),
            },
            stdout=log,
            stderr=log,
        )


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    await asyncio.to_thread(process.wait, 60)


def report(rows: Sequence[Row], width: int) -> None:
    """Print a table; each step also as what it adds to the empty loop."""
    bases = next(
        ((row.least_cpu_us, row.cpu_us, row.scaled_us) for row in rows if row.step == "empty"), (0.0, 0.0, 0.0)
    )
    print(f"{width} in flight; µs and counts a request; CPU of this process, least and median of {ROUNDS} rounds")
    print(
        "step    | CPU least | median | above empty, least | median | ruler, ns | scaled | "
        "wall | script calls | fdatasyncs"
    )
    for row in rows:
        print(
            f"{row.step:7} | {row.least_cpu_us:9.1f} | {row.cpu_us:6.1f} | {row.least_cpu_us - bases[0]:18.1f} | "
            f"{row.cpu_us - bases[1]:6.1f} | {row.ruler_ns:9.0f} | {row.scaled_us - bases[2]:6.1f} | "
            f"{row.wall_us:4.0f} | {row.calls:12.3f} | {row.syncs:10.3f}"
        )


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000, help="a round")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--upstream-ms", type=float, default=2.0, help="how long the work takes; 0: no time at all")
    parser.add_argument("--limits", action="store_true", help="keys with limits on requests, tokens and open requests")
    parser.add_argument("--only", action="append", choices=STEPS)
    parser.add_argument("--alone", action="store_true", help="latency, one request at a time")
    parser.add_argument("--profile", default="", metavar="FILE", help="write cProfile's statistics of the last step")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-uvloop", action="store_true")
    options = parser.parse_args()
    if options.alone:
        options.only = ["books"]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    loop = "asyncio" if options.no_uvloop else "uvloop"
    if not options.json:
        print(f"commit {commit}, Python {platform.python_version()}, {loop}, {platform.machine()}")
    folder = Path(tempfile.mkdtemp(prefix="pareta-bench-"))
    folder.chmod(0o755)
    try:
        with asyncio.Runner(loop_factory=None if options.no_uvloop else uvloop.new_event_loop) as runner:
            rows = runner.run(measure(folder, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps({"commit": commit, "in_flight": options.in_flight, "rows": [asdict(row) for row in rows]}))
    elif rows:
        report(rows, options.in_flight)


if __name__ == "__main__":
    main()
