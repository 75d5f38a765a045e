"""The guardian at work: a Redis that lost something is noticed, and nobody spends before it was judged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from redis.asyncio import Redis

from ledger.books.recovery import Recovered, book_recovered
from ledger.core.meters import Meter
from ledger.core.pricing import Quote, charge_nanos
from ledger.counter import (
    Admission,
    CounterUnavailable,
    CreditCounter,
    OutOfCredit,
    Settled,
    Settlement,
    UnknownHold,
)
from ledger.cover import Answer, Cover
from ledger.follow import EpochFollower
from ledger.proof.audit import audit
from tests.integration.ledger_world import ORG, USD, World, new_request_id, opened_world, reconciling
from tests.services import FreshDatabase, FreshRedis, RedisService

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}


@pytest.fixture
def redis_service(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
async def world(fresh_database: FreshDatabase, redis_service: RedisService) -> AsyncIterator[World]:
    async with opened_world(fresh_database(), redis_service.url) as made:
        await made.fund()
        yield made


async def until(condition: Callable[[], bool], *, within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.02)


async def kinds(world: World) -> list[str]:
    """What the guardian did, oldest first."""
    rows = await world.pool.fetch("SELECT kind FROM ledger.guardian_event ORDER BY id")
    return [row["kind"] for row in rows]


async def assert_clean(world: World) -> None:
    report = await audit(world.pool, world.counter)
    assert (report.differences, report.skipped) == ([], [])


async def test_a_redis_that_was_killed_goes_on_in_its_epoch(world: World, redis_service: RedisService) -> None:
    """After a crash that lost nothing the same epoch goes on, and callers only waited."""
    async with reconciling(world) as reconciler:
        await world.spend(METERS)
        for _ in range(2):
            await asyncio.to_thread(redis_service.kill)
            await asyncio.to_thread(redis_service.start)
            async with asyncio.timeout(15):
                while True:
                    try:
                        await world.spend(METERS)
                        break
                    except CounterUnavailable:
                        await asyncio.sleep(0.05)
        await world.booked(reconciler)
    assert await kinds(world) == ["same_epoch", "same_epoch"]
    assert reconciler.renewals == 0
    await assert_clean(world)


async def test_a_flushed_script_costs_only_a_moment(world: World, redis_service: RedisService) -> None:
    """SCRIPT FLUSH is answered by a look at the books; nobody gets an error."""
    async with reconciling(world) as reconciler, Redis.from_url(redis_service.url) as client:
        await until(lambda: reconciler.leading)
        for _ in range(3):
            await client.script_flush()
            await asyncio.gather(*(world.spend(METERS) for _ in range(10)))
    assert await kinds(world) == ["same_epoch"] * 3


async def lose_everything(client: Redis) -> None:
    await client.flushall()


async def lose_the_counter(client: Redis) -> None:
    await client.delete("pareta:{0}:meta")


async def go_back(client: Redis) -> None:
    await client.hset("pareta:{0}:meta", "seq", 1)


async def forge_the_past(client: Redis) -> None:
    """The number is right, but another event stands there, as on the other side of a split network."""
    (entry, fields) = (await client.xrevrange("pareta:{0}:events", count=1))[0]
    await client.xdel("pareta:{0}:events", entry)
    fields[b"hold"] = b"req_00000000000000000000000000"
    # An id cannot be used again, so the whole stream is made anew.
    await client.delete("pareta:{0}:events")
    await client.xadd("pareta:{0}:events", fields, id=entry)
    await client.script_flush()


@pytest.mark.parametrize("lose", [lose_everything, lose_the_counter, go_back, forge_the_past])
async def test_what_redis_lost_is_frozen_and_released(
    world: World, redis_service: RedisService, lose: Callable[[Redis], object]
) -> None:
    """A loss opens a new epoch: credit is frozen, late settlements are charged from it, the rest is released."""
    charge = charge_nanos(world.card, METERS)
    async with Redis.from_url(redis_service.url) as client, reconciling(world, grace_s=1.5) as reconciler:
        await world.spend(METERS)
        running = await world.hold(fixed=charge)
        await world.booked(reconciler)
        await lose(client)  # type: ignore[misc]
        await until(lambda: world.counter.epoch_of(0) == 2)
        assert isinstance(await world.counter.settle(world.settlement(running, METERS)), UnknownHold)
        balance = await world.ledger.balance(ORG)
        assert (balance.available_nanos, balance.escrow_nanos) == (0, 0)
        assert balance.frozen_nanos == 100 * USD - charge
        item = Recovered(running, ORG, 0, 1, charge, world.info(METERS), "settle")
        (outcome,) = await book_recovered(world.pool, reconciler.chores._months, [item])
        assert (outcome.verdict, outcome.charged_nanos) == ("booked", charge)
        async with asyncio.timeout(15):
            while (await world.ledger.balance(ORG)).available_nanos == 0:
                await asyncio.sleep(0.05)
        assert await world.grant() is not None
        await world.spend(METERS)
        await world.booked(reconciler)
    balance = await world.ledger.balance(ORG)
    assert balance.total_nanos == 100 * USD - 3 * charge
    assert (await kinds(world)).count("new_epoch") == 1
    assert "released" in await kinds(world)
    await assert_clean(world)


async def test_what_only_a_worker_saw_counts(world: World, redis_service: RedisService) -> None:
    """A Redis that goes back behind what a worker saw has lost something, also if nobody booked that yet."""
    worker = await CreditCounter.connect(redis_service.url, epoch=1, timeout_s=5.0)
    follower = EpochFollower(world.pool, worker)
    following = asyncio.create_task(follower.run())
    try:
        async with Redis.from_url(redis_service.url) as client:
            first, second = await world.hold(), await world.hold()
            await worker.settle(world.settlement(first, METERS))
            before = await client.dump("pareta:{0}:events"), await client.hgetall("pareta:{0}:meta")
            assert await worker.settle(world.settlement(second, METERS)) == Settled(
                charge_nanos(world.card, METERS), 0, "fresh"
            )
            await client.restore("pareta:{0}:events", 0, before[0], replace=True)
            await client.hset("pareta:{0}:meta", mapping=before[1])
            complaint = asyncio.create_task(worker.settle(world.settlement(second, METERS)))
            async with asyncio.timeout(5):
                while not await world.pool.fetchval("SELECT EXISTS (SELECT 1 FROM ledger.witness)"):
                    await asyncio.sleep(0.02)
            async with reconciling(world, grace_s=0.5) as reconciler:
                assert isinstance(await complaint, UnknownHold)
                assert worker.epoch_of(0) == 2
                await world.booked(reconciler)
        rows = await world.pool.fetch("SELECT hold_id, epoch FROM ledger.usage_event")
        assert [tuple(row) for row in rows] == [(first, 1)]
        epoch = await world.pool.fetchrow("SELECT * FROM ledger.epoch WHERE number = 2")
        assert epoch is not None
        assert (epoch["lost_redis_seq"], epoch["lost_witnessed_seq"]) == (2, 3)
    finally:
        following.cancel()
        await asyncio.wait([following])
        await worker.close()


async def test_a_beginning_is_not_a_loss(fresh_database: FreshDatabase, redis_service: RedisService) -> None:
    """A Redis that is emptied before any credit was sent to it is only begun again; paying in is not sending."""
    async with opened_world(fresh_database(), redis_service.url, shards=2) as world:
        await world.ledger.open_accounts(ORG)
        await world.ledger.top_up(ORG, USD, "first")
        async with Redis.from_url(redis_service.url) as client:
            await client.flushall()
        async with reconciling(world) as reconciler:
            await until(lambda: all(status.leading for status in reconciler.shards))
            await world.grant()
            await world.spend(METERS)
            await world.booked(reconciler)
        assert reconciler.renewals == 0
        await assert_clean(world)


async def test_a_grant_that_was_only_tried_makes_an_empty_redis_a_loss(
    world: World, redis_service: RedisService
) -> None:
    """The ledger remembers that it was about to send credit before it sends it."""
    async with Redis.from_url(redis_service.url) as client:
        await client.flushall()
    async with reconciling(world) as reconciler:
        await until(lambda: reconciler.renewals == 1)
    assert (await world.ledger.balance(ORG)).frozen_nanos == 100 * USD


async def test_a_foreign_redis_is_refused(
    world: World, fresh_database: FreshDatabase, redis_service: RedisService
) -> None:
    """A new ledger never adopts the counter of another one; a person is told, and nothing is touched."""
    await world.spend(METERS)
    before = await world.counter.account(ORG)
    async with Redis.from_url(redis_service.url) as client:
        await client.script_flush()
        async with opened_world(fresh_database(), redis_service.url) as other:
            await client.script_flush()
            async with reconciling(other) as reconciler:
                await until(lambda: "another ledger" in reconciler.last_error)
                assert not reconciler.leading
            assert await kinds(other) != []
            assert set(await kinds(other)) == {"refused"}
    assert await world.counter.account(ORG) == before


async def test_a_new_epoch_that_was_cut_off_is_finished(world: World, redis_service: RedisService) -> None:
    """Between the transaction and Redis's new number anything may die: the next guardian goes on from there."""
    async with Redis.from_url(redis_service.url) as client:
        await world.spend(METERS)
        async with reconciling(world) as reconciler:
            await world.booked(reconciler)
            await client.hset("pareta:{0}:meta", "epoch", 0)
            await until(lambda: reconciler.renewals == 1)
        await client.hset("pareta:{0}:meta", "epoch", 0)
        await client.hset(f"pareta:{{0}}:acct:{ORG}", mapping={"available": 5, "granted": 5})
        async with reconciling(world) as reconciler:
            await until(lambda: reconciler.leading)
            assert (await world.counter.account(ORG)).granted_nanos == 0
            assert await world.pool.fetchval("SELECT max(number) FROM ledger.epoch") == 2
    assert await kinds(world) == ["new_epoch", "begun"]


async def test_frozen_credit_is_no_402(world: World, redis_service: RedisService) -> None:
    """While all credit is frozen the answer is "ask later", with the time; once released it is granted."""
    cover = Cover(world.pool, world.counter, slice_nanos=USD, timeout_s=5.0)
    async with Redis.from_url(redis_service.url) as client, reconciling(world, grace_s=2.0) as reconciler:
        await until(lambda: reconciler.leading)
        await client.flushall()
        await until(lambda: reconciler.renewals == 1)
        covered = await cover.cover(ORG, 5, await short(world))
        assert (covered.answer, 1.0 <= covered.retry_after_s <= 2.0) == (Answer.FROZEN, True)
        async with asyncio.timeout(15):
            while (await cover.cover(ORG, 5, await short(world))).answer is Answer.FROZEN:
                await asyncio.sleep(0.1)
    assert (await world.counter.account(ORG)).available_nanos == USD


async def short(world: World) -> OutOfCredit:
    verdict = await world.counter.admit(Admission("req_x", ORG, "f", Quote(5, 0), 0, 1.0, clamp=False))
    assert isinstance(verdict, OutOfCredit)
    return verdict


async def test_a_grant_that_redis_lost_unnoticed_is_a_loss(world: World, redis_service: RedisService) -> None:
    """A replica that lacks a grant is promoted, and others count past it: the gap in the grants gives it away."""
    async with Redis.from_url(redis_service.url) as client:
        async with reconciling(world) as reconciler:
            await world.booked(reconciler)
        keys = [f"pareta:{{0}}:acct:{ORG}", "pareta:{0}:meta"]
        before = {key: await client.hgetall(key) for key in keys}
        events = await client.dump("pareta:{0}:events")
        await world.ledger.top_up(ORG, 5 * USD, "second")
        await world.grant(want_nanos=2 * USD)
        for key, value in before.items():
            await client.delete(key)
            await client.hset(key, mapping=value)
        await client.restore("pareta:{0}:events", 0, events, replace=True)
        # A worker that never saw the lost event drives the numbers past it.
        worker = await CreditCounter.connect(redis_service.url, epoch=1)
        hold_id = new_request_id()
        await worker.admit(Admission(hold_id, ORG, "f", Quote(1000, 0), 0, 30.0))
        await worker.settle(Settlement(hold_id, ORG, 0))
        await worker.close()
        await world.pool.execute("TRUNCATE ledger.witness")  # whoever saw it died
        fresh = await CreditCounter.connect(redis_service.url, epoch=1)
        follower = asyncio.create_task(EpochFollower(world.pool, fresh).run())
        try:
            async with reconciling(world, grace_s=0.5) as reconciler:
                await until(lambda: reconciler.leading)
                cover = Cover(world.pool, fresh, slice_nanos=USD // 10, timeout_s=5)
                async with asyncio.timeout(20):
                    while (await cover.cover(ORG, 3 * USD, OutOfCredit())).answer is not Answer.GRANTED:
                        await asyncio.sleep(0.1)
                assert reconciler.renewals == 1
                async with asyncio.timeout(20):
                    while (await world.ledger.balance(ORG)).frozen_nanos:
                        await asyncio.sleep(0.05)
                await world.booked(reconciler)
        finally:
            follower.cancel()
            await asyncio.wait([follower])
            await fresh.close()
    assert (await world.ledger.balance(ORG)).total_nanos == 105 * USD
    await assert_clean(world)
