"""The axes: what grows, and what a small request costs at each point.

Every point is the same load on the same kind of gateway: so many customers of those that are there take turns, on 32
connections, metering on. What grows is only how many others there are.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import asyncpg

from benchmarks.growth import population
from benchmarks.load import Distribution, Load, Measurement, Progress, run
from benchmarks.processes import open_many_files
from benchmarks.stack import CREDIT_NANOS, MODEL, RATES, BenchStack
from gateway.stack.prepare import open_ledger

CUSTOMERS = 500
"""Keys that take turns, at every point the same number: a connection that brings another key each time is dearer."""
CONNECTIONS = 32
STREAMS_A_SECOND = 400.0
QUIET_ITL_MS = 60_000.0
SETTLE_S = 1.0
OTHER_FILES = 1000

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a curve.

    Attributes:
        size: how many there are; of uptime, requests that this worker had answered before.
        cpu_us: the worker's CPU time for a small request, microseconds.
        latency_ms, p99_ms: until the whole answer, at 32 connections.
        requests: that were measured.
        start_s: a gateway with so many takes to serve; None where it was not started anew.
        rss_mib: the worker's memory while it was measured.
        extra: what belongs to this axis alone.
    """

    size: int
    cpu_us: float
    latency_ms: float
    p99_ms: float
    requests: int
    rss_mib: float
    start_s: float | None = None
    extra: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "extra"}
        return {**plain, **dict(self.extra)}


@dataclass(frozen=True, slots=True)
class Axis:
    """A curve: where its points are, and how each is made.

    Attributes:
        sizes: of the usual run; ``quick_sizes`` those of a short one.
        points: makes the points, one after the other.
    """

    name: str
    about: str
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, ...]
    points: Callable[[Run], Iterator[Point]]


@dataclass(frozen=True, slots=True)
class Run:
    """What an axis works with."""

    stack: BenchStack
    sizes: tuple[int, ...]
    seconds: float
    say: Say
    progress: Callable[[Progress], None] | None


# ---------------------------------------------------------------------------------------- the curves


def keys(run_: Run) -> Iterator[Point]:
    """Keys of one organization; those that call are drawn from all of them."""
    org_id, endpoint_id = _org_of(run_.stack), run_.stack.target.model
    there = 0
    for size in run_.sizes:
        run_.say(f"minting keys up to {size:,}")
        tokens = _in_postgres(
            run_.stack, partial(population.add_keys, org_id=org_id, wanted=size - there, keep=CUSTOMERS)
        )
        there = size
        yield _fresh_point(run_, size, [(token, endpoint_id) for token in tokens])


def endpoints(run_: Run) -> Iterator[Point]:
    """Endpoints of one organization; those that are called are drawn from all."""
    org_id, there = _org_of(run_.stack), 0
    tokens = _in_postgres(run_.stack, partial(population.add_keys, org_id=org_id, wanted=CUSTOMERS, keep=CUSTOMERS))
    for size in run_.sizes:
        run_.say(f"registering endpoints up to {size:,}")
        ids = _in_postgres(run_.stack, partial(_endpoints, stack=run_.stack, org_ids=[org_id], wanted=size - there))
        there = size
        step = max(1, len(ids) // CUSTOMERS)
        called = ids[::step][:CUSTOMERS]
        yield _fresh_point(run_, size, list(zip(tokens, _repeated(called, len(tokens)), strict=True)))


def organizations(run_: Run) -> Iterator[Point]:
    """Organizations; a hundred of them call, each with an endpoint and keys of its own."""
    there = 0
    for size in run_.sizes:
        run_.say(f"opening accounts of organizations up to {size:,}")
        ids = _in_postgres(run_.stack, partial(population.add_organizations, wanted=size - there))
        there = size
        callers = ids[:: max(1, len(ids) // 100)][:100]
        asyncio.run(_pay_in(run_.stack, callers))

        async def customers(
            conn: asyncpg.Connection[asyncpg.Record], callers: list[str] = callers
        ) -> list[tuple[str, str]]:
            made = await _endpoints(conn, run_.stack, callers, len(callers))
            each = CUSTOMERS // len(callers)
            found: list[tuple[str, str]] = []
            for org_id, endpoint_id in zip(callers, made, strict=True):
                tokens = await population.add_keys(conn, org_id, each, keep=each)
                found += [(token, endpoint_id) for token in tokens]
            return found

        yield _fresh_point(run_, size, _in_postgres(run_.stack, customers))


def streams(run_: Run) -> Iterator[Point]:
    """Open streams that say nothing meanwhile; and what memory each takes."""
    stack = run_.stack
    customers = _some_customers(stack)
    # A worker has two connections for each, and cannot have more than this user may have open files.
    most = (open_many_files() - OTHER_FILES) // 2
    for size in dict.fromkeys(min(size, most) for size in run_.sizes):
        stack.restart_gateway()
        before = _measure(run_, customers, seconds=1.0)
        if not size:
            yield _point(size, _measure(run_, customers))
            continue
        run_.say(f"opening {size:,} streams")
        ramp_s = max(2.0, size / STREAMS_A_SECOND)
        stack.mock.pace(itl_ms=QUIET_ITL_MS)
        quiet = Load(
            name=f"{size:,} streams",
            stream=True,
            connections=size,
            # Connections open during the first half of the warm-up.
            warm_up_s=2 * ramp_s,
            seconds=run_.seconds + 12,
            drain_s=0,
            max_tokens=Distribution.parse(1000),
        )
        background = threading.Thread(
            target=run, args=(stack.target, quiet), kwargs={"cores": stack.cores.others}, daemon=True
        )
        background.start()
        time.sleep(2 * ramp_s + 2)
        stack.mock.pace()
        here = _measure(run_, customers)
        point = _point(size, here)
        gained = point.rss_mib - _rss_mib(before)
        yield replace(point, extra={"kib_a_stream": max(0.0, gained) * 1024 / size})
        background.join()


def uptime(run_: Run) -> Iterator[Point]:
    """One worker that is never restarted: measured, then loaded until it has answered so many, and measured again."""
    stack = run_.stack
    customers = _some_customers(stack)
    stack.restart_gateway()
    _measure(run_, customers, seconds=1.0)
    answered = 0
    for size in run_.sizes:
        while answered < size:
            run_.say(f"{answered:,} of {size:,} requests answered")
            answered += _measure(run_, customers, seconds=min(30.0, max(2.0, (size - answered) / 2500))).requests
        here = _measure(run_, customers)
        yield _point(answered, here)
        answered += here.requests


AXES: Mapping[str, Axis] = {
    axis.name: axis
    for axis in (
        Axis("keys", "API keys in the database", (1_000, 10_000, 100_000, 1_000_000), (500, 1_000), keys),
        Axis("endpoints", "endpoints", (100, 1_000, 10_000), (50, 100), endpoints),
        Axis("organizations", "organizations", (100, 10_000, 100_000), (20, 50), organizations),
        Axis("streams", "open streams that say nothing", (0, 1_000, 5_000, 10_000), (0, 50), streams),
        Axis("uptime", "requests answered since the start", (0, 100_000, 250_000, 500_000), (0, 500), uptime),
    )
}


# ---------------------------------------------------------------------------------------- one measurement


def _fresh_point(run_: Run, size: int, customers: list[tuple[str, str]]) -> Point:
    begin_s = time.monotonic()
    run_.stack.restart_gateway()
    start_s = time.monotonic() - begin_s
    # A key's first use is looked up, and a counter is let in when it was checked: that is not what is compared.
    _measure(run_, customers, seconds=2.0)
    return replace(_point(size, _measure(run_, customers)), start_s=start_s)


def _measure(run_: Run, customers: list[tuple[str, str]], *, seconds: float | None = None) -> Measurement:
    stack = run_.stack
    load = Load(
        name="small",
        connections=CONNECTIONS,
        seconds=run_.seconds if seconds is None else seconds,
        warm_up_s=SETTLE_S,
        max_tokens=Distribution.parse(16),
    )
    target = replace(stack.target, customers=customers)
    found = run(
        target,
        load,
        watch={"gateway": stack.groups()["gateway"]},
        cores=stack.cores.others,
        progress=run_.progress,
    )
    if found.error_count or not (found.requests or seconds):
        raise GrowthFailed(f"{found.error_count} requests went wrong and {found.requests} well: {dict(found.errors)}")
    return found


class GrowthFailed(RuntimeError):
    """A point could not be measured; the text is a sentence."""


def _point(size: int, found: Measurement) -> Point:
    return Point(
        size=size,
        cpu_us=found.cpu_us_per_request("gateway") or 0.0,
        latency_ms=found.latency.percentile_s(50) * 1e3,
        p99_ms=found.latency.percentile_s(99) * 1e3,
        requests=found.requests,
        rss_mib=_rss_mib(found),
        extra={},
    )


def _rss_mib(found: Measurement) -> float:
    return found.groups["gateway"].rss_mean_bytes / 2**20


# ---------------------------------------------------------------------------------------- what is there


def _some_customers(stack: BenchStack) -> list[tuple[str, str]]:
    org_id = _org_of(stack)
    tokens = _in_postgres(stack, partial(population.add_keys, org_id=org_id, wanted=CUSTOMERS, keep=CUSTOMERS))
    return [(token, stack.target.model) for token in tokens]


def _org_of(stack: BenchStack) -> str:
    async def ask(conn: asyncpg.Connection[asyncpg.Record]) -> str:
        found: str = await conn.fetchval("SELECT org_id FROM control.endpoint WHERE id = $1", stack.target.model)
        return found

    return _in_postgres(stack, ask)


async def _endpoints(
    conn: asyncpg.Connection[asyncpg.Record], stack: BenchStack, org_ids: list[str], wanted: int
) -> list[str]:
    return await population.add_endpoints(
        conn, org_ids, wanted, model=MODEL, engine_url=stack.mock.url, rates=dict(RATES)
    )


async def _pay_in(stack: BenchStack, org_ids: list[str]) -> None:
    async with open_ledger(stack.settings) as (ledger, _):
        for org_id in org_ids:
            await ledger.top_up(org_id, CREDIT_NANOS // 1000, f"growth {org_id}")


def _in_postgres(stack: BenchStack, work: Callable[[asyncpg.Connection[asyncpg.Record]], Awaitable[T]]) -> T:
    async def do() -> T:
        conn = await asyncpg.connect(stack.settings.database_url, command_timeout=600)
        try:
            return await work(conn)
        finally:
            await conn.close()

    return asyncio.run(do())


def _repeated(values: list[str], wanted: int) -> list[str]:
    return [values[place % len(values)] for place in range(wanted)]
