"""Promises of the outbox with real books: what a worker recorded is charged once in Postgres, whatever is lost."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ledger.books.database import open_pool
from ledger.books.partitions import MonthKeeper
from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from ledger.counter import CounterUnavailable, CreditCounter, Settlement
from ledger.follow import EpochFollower
from ledger.outbox import SettlementOutbox
from ledger.outbox.books import LedgerBooks
from ledger.outbox.journal import Journal
from ledger.proof.audit import audit
from tests.integration.ledger_world import ORG, USD, World, new_request_id, opened_world, reconciling
from tests.integration.outbox_worker import STEPS
from tests.integration.tcp_proxy import TcpProxy
from tests.services import FreshDatabase, FreshRedis, RedisService

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}
Opener = Callable[..., Awaitable[SettlementOutbox]]


@pytest.fixture
def redis(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
def database_url(fresh_database: FreshDatabase) -> str:
    return fresh_database()


@pytest.fixture
async def world(database_url: str, redis: RedisService) -> AsyncIterator[World]:
    async with opened_world(database_url, redis.url) as made:
        await made.fund()
        yield made


@pytest.fixture
async def open_outbox(world: World, tmp_path: Path) -> AsyncIterator[Opener]:
    made: list[SettlementOutbox] = []

    async def make(slot: int = 0, *, counter: CreditCounter | None = None, **more: object) -> SettlementOutbox:
        journal = await Journal.open(tmp_path / f"worker-{slot}", wait_s=2)
        books = LedgerBooks(world.pool, MonthKeeper(), world.counter)
        options = {"ask_every_s": 0.02, "redeliver_after_s": 60.0, "books": books, **more}
        made.append(SettlementOutbox(journal, counter or world.counter, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for outbox in made:
        await outbox.close()


async def until(check: Callable[[], bool], within_s: float = 60.0) -> None:
    async with asyncio.timeout(within_s):
        while not check():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def following(world: World) -> AsyncIterator[None]:
    """The counter reports what it saw and follows the ledger's epochs, as in a worker."""
    task = asyncio.create_task(EpochFollower(world.pool, world.counter).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def hold(world: World) -> Settlement:
    """Take a hold; its settlement."""
    epoch = world.counter.epoch_of(0)
    given = world.settlement(await world.hold(), METERS)
    return Settlement(given.hold_id, ORG, given.amount_nanos, info=given.info, epoch=epoch)


async def charges(world: World) -> dict[str, int]:
    """What the books charged for each hold, over all revisions."""
    rows = await world.pool.fetch("SELECT hold_id, sum(amount_nanos)::bigint AS sum FROM ledger.usage_event GROUP BY 1")
    return {row["hold_id"]: row["sum"] for row in rows}


async def until_released(world: World) -> None:
    """Wait until no credit is frozen any more."""
    async with asyncio.timeout(60):
        while await world.pool.fetchval("SELECT sum(frozen_nanos) FROM ledger.balance"):
            await asyncio.sleep(0.05)


async def assert_clean(world: World) -> None:
    report = await audit(world.pool, world.counter)
    assert (report.differences, report.skipped) == ([], [])


def disk_of(redis: RedisService) -> list[Path]:
    return list(redis.server.folder.glob("appendonly*"))


def copy_disk(redis: RedisService, to: Path) -> None:
    """Copy the append-only file of a Redis that may be running."""
    to.mkdir()
    for path in disk_of(redis):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, to / path.name)


def put_back_disk(redis: RedisService, kept: Path) -> None:
    """Make it a Redis that lost all that came after the copy."""
    for path in disk_of(redis):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in kept.iterdir():
        (shutil.copytree if path.is_dir() else shutil.copy)(path, redis.server.folder / path.name)


async def test_a_settlement_is_booked_and_forgotten(world: World, open_outbox: Opener) -> None:
    """In the usual case a settlement is charged, found in the books soon, and its journal is empty again."""
    outbox = await open_outbox()
    async with reconciling(world):
        given = [await hold(world) for _ in range(50)]
        await asyncio.gather(*(outbox.record(settlement) for settlement in given))
        assert await outbox.drain(5) == 0
        await until(lambda: outbox.unbooked == 0)
    assert outbox.journal.unconfirmed == 0
    assert (outbox.counts.booked, outbox.counts.redelivered, outbox.counts.recovered_charges) == (50, 0, 0)
    assert await charges(world) == {settlement.hold_id: settlement.amount_nanos for settlement in given}
    await assert_clean(world)


async def test_what_redis_confirmed_and_lost_is_settled_again(
    world: World, redis: RedisService, open_outbox: Opener, tmp_path: Path
) -> None:
    """Redis comes back from a disk on which the settlements are missing but the holds are there, nothing of it was
    booked, and nobody is left who saw more: it is trusted, and the worker's next start charges each once."""
    outbox = await open_outbox()
    given = [await hold(world) for _ in range(20)]
    await asyncio.to_thread(copy_disk, redis, tmp_path / "kept")
    await asyncio.gather(*(outbox.record(settlement) for settlement in given))
    assert await outbox.drain(5) == 0
    await outbox.close()
    await asyncio.to_thread(redis.kill)
    put_back_disk(redis, tmp_path / "kept")
    await asyncio.to_thread(redis.start)
    counter = await CreditCounter.connect(redis.url, epoch=1, timeout_s=2)  # a new process: it has seen nothing
    world.counter, old = counter, world.counter
    await old.close()
    async with reconciling(world) as reconciler:
        again = await open_outbox(counter=counter)
        assert await again.recover() == 20
        assert await again.drain(15) == 0
        await until(lambda: again.unbooked == 0)
        await world.booked(reconciler)
    assert reconciler.renewals == 0
    assert again.counts.charged_nanos == 20 * given[0].amount_nanos
    assert await charges(world) == {settlement.hold_id: settlement.amount_nanos for settlement in given}
    await assert_clean(world)
    await counter.close()


async def test_what_redis_confirmed_and_lost_is_charged_from_a_lost_epoch(
    world: World, redis: RedisService, open_outbox: Opener, tmp_path: Path
) -> None:
    """Redis comes back from an older disk and a worker has seen more: a new epoch begins, and each settlement that
    Redis had confirmed, or gets only now, is charged once by Postgres."""
    outbox = await open_outbox(redeliver_after_s=0.5)
    async with following(world):
        async with reconciling(world):
            booked = [await hold(world) for _ in range(5)]
            await asyncio.gather(*(outbox.record(settlement) for settlement in booked))
            await until(lambda: outbox.unbooked == 0)
        late, *held = [await hold(world) for _ in range(21)]
        await asyncio.to_thread(copy_disk, redis, tmp_path / "kept")
        unheld = [await hold(world) for _ in range(5)]
        await asyncio.gather(*(outbox.record(settlement) for settlement in (*held, *unheld)))
        assert await outbox.drain(5) == 0
        await asyncio.to_thread(redis.kill)
        put_back_disk(redis, tmp_path / "kept")
        await asyncio.to_thread(redis.start)
        async with reconciling(world, grace_s=1.0) as reconciler:
            await until(lambda: world.counter.epoch_of(0) == 2)
            await outbox.record(late)
            assert await outbox.drain(20) == 0
            await until(lambda: outbox.unbooked == 0)
            assert outbox.counts.recovered_charges == 26
            await until_released(world)
            await world.grant()
            await world.booked(reconciler)
    given = [*booked, late, *held, *unheld]
    assert await charges(world) == {settlement.hold_id: settlement.amount_nanos for settlement in given}
    paid = sum(settlement.amount_nanos for settlement in given)
    assert outbox.counts.charged_nanos == paid
    assert (await world.ledger.balance(ORG)).total_nanos == 100 * USD - paid
    await assert_clean(world)


async def test_an_empty_redis_charges_what_was_confirmed_and_not_booked(
    world: World, redis: RedisService, open_outbox: Opener
) -> None:
    """Redis confirms, is wiped before anything was booked, and a new epoch begins: the journal has it all."""
    outbox = await open_outbox(redeliver_after_s=0.5)
    given = [await hold(world) for _ in range(20)]
    await asyncio.gather(*(outbox.record(settlement) for settlement in given))
    assert await outbox.drain(5) == 0
    await world.counter._read(0, "FLUSHALL")
    async with following(world), reconciling(world):
        await until(lambda: world.counter.epoch_of(0) == 2)
        await until(lambda: outbox.unbooked == 0)
    assert outbox.counts.recovered_charges == 20
    assert outbox.counts.charged_nanos == 20 * given[0].amount_nanos
    assert await charges(world) == {settlement.hold_id: settlement.amount_nanos for settlement in given}
    await assert_clean(world)


async def test_an_unknown_hold_is_charged_by_postgres(world: World, open_outbox: Opener) -> None:
    """A hold that Redis never heard of is charged once from what the organization has, with its description."""
    outbox = await open_outbox()
    settlement = world.settlement(new_request_id(), METERS)
    await outbox.record(settlement)
    assert await outbox.drain(10) == 0
    row = await world.pool.fetchrow("SELECT recovered, amount_nanos, completion_tokens FROM ledger.usage_event")
    # All credit is in Redis, and none was frozen: it is the platform's loss, and shown as such.
    assert tuple(row) == (True, 0, 345)
    assert outbox.counts.shortfall_nanos == charge_nanos(world.card, METERS)
    assert outbox.journal.unconfirmed == 0


async def test_what_has_no_place_in_the_books_ends_as_an_anomaly(world: World, open_outbox: Opener) -> None:
    """A settlement with an id that no request has is refused, kept as an anomaly, and not tried for ever."""
    outbox = await open_outbox()
    await outbox.record(Settlement("no-request-id", ORG, 5))
    await outbox.record(Settlement(new_request_id(), "org_nobodynobody", 5))
    assert await outbox.drain(10) == 0
    assert outbox.counts.refused == 2
    assert await world.open_anomalies() == ["unrecoverable", "unrecoverable"]


async def test_a_late_settlement_stays_until_its_correction_is_booked(world: World, open_outbox: Opener) -> None:
    """A reap in the books is no settlement: the record stays until the late charge is there too."""
    outbox = await open_outbox()
    settlement = world.settlement(await world.hold(expires_in_s=0.05), METERS)
    await asyncio.sleep(0.1)
    while not await world.counter.reap():
        await asyncio.sleep(0.02)
    await world.booked()
    assert await charges(world) == {settlement.hold_id: 0}
    await outbox.record(settlement)
    assert await outbox.drain(5) == 0
    await asyncio.sleep(0.3)
    assert outbox.unbooked == 1
    async with reconciling(world):
        await until(lambda: outbox.unbooked == 0)
    assert await charges(world) == {settlement.hold_id: settlement.amount_nanos}
    await assert_clean(world)


async def test_postgres_away_and_back(world: World, database_url: str, open_outbox: Opener) -> None:
    """While Postgres can't be reached settlements go to Redis and stay in the journal; then all are booked once."""
    async with TcpProxy(database_url) as proxy:
        pool = await open_pool(proxy.url, size=2, timeout_s=1)
        outbox = await open_outbox(books=LedgerBooks(pool, MonthKeeper(), world.counter))
        await proxy.refuse()
        given = [await hold(world) for _ in range(30)]
        unknown = world.settlement(new_request_id(), METERS)
        await asyncio.gather(*(outbox.record(settlement) for settlement in (*given, unknown)))
        assert await outbox.drain(1.0) == 1
        async with reconciling(world) as reconciler:
            await world.booked(reconciler)
            assert (outbox.unbooked, outbox.journal.unconfirmed, outbox.counts.redelivered) == (30, 31, 0)
            proxy.mend()
            await until(lambda: outbox.unbooked == 0 and outbox.pending == 0)
        assert (outbox.counts.booked, outbox.journal.unconfirmed) == (30, 0)
        pool.terminate()
    expected = {settlement.hold_id: settlement.amount_nanos for settlement in given}
    assert await charges(world) == {**expected, unknown.hold_id: 0}


@pytest.mark.timeout(300)
async def test_a_worker_killed_at_each_step_charges_each_promise_once(
    world: World, database_url: str, redis: RedisService, open_outbox: Opener, tmp_path: Path
) -> None:
    """kill -9 at each step of a settlement's life, each time another process goes on with the journal, and the last
    one is adopted: all that ``record`` promised is in the books once, with its amount, and the audit is clean."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    steps = list(STEPS)
    dice.shuffle(steps)
    told = tmp_path / "told"
    await world.ledger.top_up(ORG, USD, "second")  # what Redis does not know is charged from here
    command = [sys.executable, "-m", "tests.integration.outbox_worker", database_url, redis.url, world.card.id]
    async with reconciling(world) as reconciler:
        for step in steps:
            worker = subprocess.Popen(
                [*command, str(tmp_path / "worker-0"), str(told), step, str(dice.randrange(1, 4))],
                stdout=subprocess.PIPE,
            )
            assert worker.stdout is not None
            try:
                # Or nothing: its step may come while it recovers, before it is ready.
                assert await asyncio.to_thread(worker.stdout.readline) in (b"ready\n", b""), step
                assert await asyncio.to_thread(worker.wait, 60) == -signal.SIGKILL, step
            finally:
                worker.kill()
                worker.wait()
                worker.stdout.close()
        outbox = await open_outbox(5)
        await outbox.adopt_orphans(tmp_path)
        assert await outbox.drain(60) == 0
        await until(lambda: outbox.unbooked == 0)
        await world.booked(reconciler)
    promised = dict(line.split() for line in told.read_text().splitlines())
    booked = {
        row["hold_id"]: row["amount_nanos"]
        for row in await world.pool.fetch("SELECT hold_id, amount_nanos FROM ledger.usage_event")
    }
    assert len(promised) > 100
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event WHERE recovered") > 20
    assert {hold_id: booked.get(hold_id) for hold_id in promised} == {h: int(amount) for h, amount in promised.items()}
    # A worker may have died before it said what it had recorded, and each had at most eight requests.
    assert len(booked) - len(promised) <= 8 * len(steps)
    await assert_clean(world)


async def test_a_counter_that_cannot_answer_keeps_all(world: World, open_outbox: Opener) -> None:
    """A worker that is fenced delivers nothing, confirms nothing and asks nobody to book in its place."""
    outbox = await open_outbox()
    settlement = await hold(world)
    world.counter.set_epoch(0, 9)
    await outbox.record(settlement)
    assert await outbox.drain(0.5) == 1
    with pytest.raises(CounterUnavailable):
        await world.counter.settle(settlement)
    world.counter.set_epoch(0, 1)
    assert await outbox.drain(5) == 0
    assert outbox.counts.recovered_charges == 0
