"""Kill anything at any moment: every charge is booked once, and the audit finds nothing."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from gateway.stack.embedded_postgres import EmbeddedPostgres
from ledger.core.meters import Meter
from ledger.core.pricing import Quote, charge_nanos
from ledger.counter import Admission, CounterUnavailable, Held
from ledger.proof.audit import audit
from tests.integration.ledger_process import STEPS
from tests.integration.ledger_world import ORG, USD, World, new_request_id, opened_world, reconciling
from tests.services import FreshDatabase, FreshRedis, RedisService, private_folder, remove

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}


@dataclass
class Load:
    """Clients that spend without pause; what they were told is compared with the books."""

    world: World
    settled: list[str] = field(default_factory=list)
    unavailable: int = 0
    stopping: bool = False

    async def client(self) -> None:
        while not self.stopping:
            hold_id = new_request_id()
            try:
                held = await self.world.counter.admit(
                    Admission(hold_id, ORG, "f", Quote(10_000_000, 0), 0, 30.0, info=self.world.info({}, "reaped"))
                )
            except CounterUnavailable:
                self.unavailable += 1
                await asyncio.sleep(0.05)
                continue
            assert isinstance(held, Held)
            while True:
                try:
                    await self.world.counter.settle(self.world.settlement(hold_id, METERS))
                    break
                except CounterUnavailable:
                    self.unavailable += 1
                    await asyncio.sleep(0.05)
            self.settled.append(hold_id)
            await asyncio.sleep(0.004)


@asynccontextmanager
async def load(world: World, clients: int = 8) -> AsyncIterator[Load]:
    running = Load(world)
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(running.client())
        yield running
        running.stopping = True


async def everything_is_right(world: World, running: Load) -> None:
    """Drain, then: each settled request is charged once, and the audit is clean and complete."""
    async with reconciling(world) as reconciler:
        await world.booked(reconciler, within_s=60)
    booked = await world.pool.fetch("SELECT event_id FROM ledger.transfer WHERE kind = 'charge'")
    assert sorted(row["event_id"] for row in booked) == sorted(running.settled)
    spent = len(running.settled) * charge_nanos(world.card, METERS)
    assert (await world.ledger.balance(ORG)).total_nanos == 1000 * USD - spent
    report = await audit(world.pool, world.counter)
    assert report.differences == []
    assert report.skipped == []
    assert report.usage_events >= len(running.settled) > 0


class Process:
    """A reconciler process of this test."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def leads(self) -> None:
        assert self.process.stdout is not None
        assert await asyncio.wait_for(self.process.stdout.readline(), 60) == b"leading\n"

    async def kill(self) -> None:
        self.process.kill()
        assert await self.process.wait() == -signal.SIGKILL


@asynccontextmanager
async def process(urls: tuple[str, str], *step: str, **environment: str) -> AsyncIterator[Process]:
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.integration.ledger_process", *urls, *step),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | environment,
    )
    try:
        yield Process(started)
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()
        started._transport.close()  # type: ignore[attr-defined]


@pytest.fixture
def redis_service(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
def urls(fresh_database: FreshDatabase, redis_service: RedisService) -> tuple[str, str]:
    return fresh_database(), redis_service.url


@pytest.fixture
async def world(urls: tuple[str, str]) -> AsyncIterator[World]:
    async with opened_world(*urls) as world:
        await world.fund(1000 * USD)
        yield world


@pytest.mark.parametrize("step", STEPS)
async def test_a_reconciler_killed_before_any_step_loses_and_repeats_nothing(
    world: World, urls: tuple[str, str], step: str
) -> None:
    """kill -9 right before the copy, the commit, the trim…: the next one goes on from where the books stand."""
    async with load(world) as running, process(urls, step, "3") as doomed:
        assert await asyncio.wait_for(doomed.process.wait(), 60) == -signal.SIGKILL
        async with process(urls) as second:
            await second.leads()
            await asyncio.sleep(0.3)
    await everything_is_right(world, running)


async def test_reconcilers_killed_at_random_moments(world: World, urls: tuple[str, str]) -> None:
    """Killed again and again under load, whatever they are doing."""
    seed = time.time_ns()
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with load(world) as running:
        for _ in range(5):
            async with process(urls) as doomed:
                await doomed.leads()
                await asyncio.sleep(chance.uniform(0, 0.4))
                await doomed.kill()
    await everything_is_right(world, running)


async def test_a_reconciler_paused_past_its_term_cannot_write_when_it_wakes(
    world: World, urls: tuple[str, str]
) -> None:
    """Two run; the first sleeps (SIGSTOP) until the second has taken over, then wakes in the middle of its work."""
    async with load(world) as running, process(urls, TEST_LEASE_S="1") as first:
        await first.leads()
        first.process.send_signal(signal.SIGSTOP)
        async with process(urls, TEST_LEASE_S="1") as second:
            await second.leads()
            first.process.send_signal(signal.SIGCONT)
            await asyncio.sleep(1)
            assert second.process.returncode is None
            assert first.process.returncode is None
    fence = await world.pool.fetchval("SELECT fence FROM ledger.reconcile_checkpoint")
    assert fence >= 2
    await everything_is_right(world, running)


async def test_postgres_killed_under_the_reconciler(redis_service: RedisService) -> None:
    """kill -9 of a durable Postgres, three times: nothing that was committed is lost or booked again."""
    folder = private_folder("postgres")
    server = EmbeddedPostgres(folder, database="ledger", durable=True)
    await server.start()
    try:
        async with opened_world(server.url, redis_service.url) as world:
            await world.fund(1000 * USD)
            async with reconciling(world, batch_events=20) as reconciler, load(world) as running:
                for _ in range(3):
                    await asyncio.sleep(0.5)
                    await server.child.kill()
                    booked = reconciler.shards[0].booked_events
                    await asyncio.sleep(0.3)
                    assert not reconciler.leading
                    assert reconciler.last_error
                    await server.start()
                    async with asyncio.timeout(30):
                        while reconciler.shards[0].booked_events == booked:
                            await asyncio.sleep(0.02)
            await everything_is_right(world, running)
    finally:
        await server.stop()
        remove(folder)


async def test_redis_killed_under_load(world: World, redis_service: RedisService) -> None:
    """kill -9 of a durable Redis, three times: what it answered is booked, what it did not is not charged twice."""
    async with reconciling(world, batch_events=20), load(world) as running:  # clients end first: they wait for it
        for _ in range(3):
            await asyncio.sleep(0.4)
            redis_service.kill()
            await asyncio.sleep(0.2)
            redis_service.start()
    assert running.unavailable > 0
    await everything_is_right(world, running)
