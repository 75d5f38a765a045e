"""The road from Redis to Postgres: every event once, whatever happens on the way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from datetime import date
from urllib.parse import urlsplit

import asyncpg
import pytest
from redis.asyncio import Redis

from ledger.books import batches
from ledger.books.booking import plan
from ledger.books.partitions import MonthKeeper
from ledger.books.terms import try_take
from ledger.core.meters import Meter
from ledger.core.money import MAX_GRANT_NANOS
from ledger.core.pricing import charge_nanos
from ledger.counter import Beat, Settled, Settlement
from ledger.errors import Fenced
from ledger.proof.audit import audit
from ledger.proof.drift import DriftWatch
from tests.integration.ledger_world import ORG, USD, World, grant_only, new_request_id, opened_world, reconciling
from tests.services import FreshDatabase, FreshRedis, RedisService

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}


@pytest.fixture
def redis_service(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis(durable=False)


@pytest.fixture
async def world(fresh_database: FreshDatabase, redis_service: RedisService) -> AsyncIterator[World]:
    async with opened_world(fresh_database(), redis_service.url) as world:
        await world.fund()
        yield world


async def raw_event(url: str, stream_id: str, **fields: object) -> None:
    """Write an event as a broken or foreign counter might."""
    epoch, seq = stream_id.split("-")
    event = {
        "seq": seq,
        "epoch": epoch,
        "amount": 0,
        "held": 0,
        "short": 0,
        "t_ms": 1,
        "info": "{}",
        "hold": "",
    } | fields
    async with Redis.from_url(url) as client:
        await client.xadd("pareta:{0}:events", {key: str(value) for key, value in event.items()}, id=stream_id)
        await client.hset("pareta:{0}:meta", "seq", seq)


async def test_a_settled_request_becomes_one_transfer(world: World) -> None:
    """Usage, transfer, balance and checkpoint agree, to the nano, and of the stream only its last event is left."""
    async with reconciling(world) as reconciler:
        hold_id = await world.spend(METERS)
        await world.booked(reconciler)
        amount = charge_nanos(world.card, METERS)
        usage = await world.pool.fetchrow("SELECT * FROM ledger.usage_event")
        assert usage is not None
        assert (usage["hold_id"], usage["kind"], usage["amount_nanos"]) == (hold_id, "settle", amount)
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["requests"]) == (1200, 345, 1)
        transfer = await world.pool.fetchrow("SELECT * FROM ledger.transfer WHERE kind = 'charge'")
        assert transfer is not None
        assert (transfer["amount_nanos"], transfer["event_id"]) == (amount, hold_id)
        assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD - amount
        async with asyncio.timeout(5):
            while await world.counter.stream_length(0) > 1:
                await asyncio.sleep(0.02)
    assert await world.open_anomalies() == []


async def test_voided_requests_keep_a_receipt_and_no_money(world: World) -> None:
    """A request that costs nothing leaves a usage row of zero and no transfer."""
    hold_id = await world.hold()
    await world.counter.void(Settlement(hold_id, ORG, 0, info=world.info({}, "failed", status=502)))
    await world.booked()
    usage = await world.pool.fetchrow("SELECT kind, amount_nanos, outcome, status FROM ledger.usage_event")
    assert usage is not None
    assert tuple(usage) == ("void", 0, "failed", 502)
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.transfer WHERE kind = 'charge'") == 0
    assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD


async def test_a_reaped_hold_pays_for_what_the_last_heartbeat_had_delivered(world: World) -> None:
    """The reconciler itself reaps, with the meters of the last beat in the books."""
    hold_id = await world.hold(expires_in_s=0.05)
    meters = {Meter.COMPLETION: 7, Meter.REQUEST: 1}
    beat = json.dumps({"meters": meters, "source": "counted"}).encode()
    await world.counter.heartbeat([Beat(hold_id, ORG, charge_nanos(world.card, meters), beat, 0.05)])
    async with reconciling(world) as reconciler, asyncio.timeout(15):
        while reconciler.chores.reaped_holds == 0:
            await asyncio.sleep(0.02)
        await world.booked(reconciler)
    usage = await world.pool.fetchrow(
        "SELECT kind, amount_nanos, completion_tokens, source, outcome FROM ledger.usage_event"
    )
    assert usage is not None
    assert tuple(usage) == ("reap", charge_nanos(world.card, meters), 7, "counted", "reaped")


@pytest.mark.parametrize("final", [{Meter.COMPLETION: 900, Meter.REQUEST: 1}, {Meter.REQUEST: 1}, {}])
async def test_a_late_settlement_moves_only_the_difference(world: World, final: dict[Meter, int]) -> None:
    """After a reap the true usage arrives: more is charged, or money goes back from revenue to escrow."""
    hold_id = await world.hold(expires_in_s=0.01)
    beaten = {Meter.COMPLETION: 100, Meter.REQUEST: 1}
    beat = json.dumps({"meters": beaten, "source": "counted"}).encode()
    await world.counter.heartbeat([Beat(hold_id, ORG, charge_nanos(world.card, beaten), beat, 0.01)])
    await asyncio.sleep(0.05)
    assert await world.counter.reap() == 1
    settled = await world.counter.settle(world.settlement(hold_id, final))
    assert isinstance(settled, Settled)
    assert settled.verdict == "late"
    await world.booked()
    difference = charge_nanos(world.card, final) - charge_nanos(world.card, beaten)
    late = await world.pool.fetchrow("SELECT * FROM ledger.transfer WHERE kind LIKE 'late%'")
    assert late is not None
    assert (late["kind"], late["amount_nanos"]) == ("late_charge" if difference > 0 else "late_refund", abs(difference))
    assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD - charge_nanos(world.card, final)


async def test_events_that_are_read_twice_are_booked_once(world: World) -> None:
    """A checkpoint set back by hand (the worst restart there is) charges nobody twice."""
    for _ in range(5):
        await world.spend(METERS)
    events = await world.counter.read_events(0)
    await world.booked()
    escrow = (await world.ledger.balance(ORG)).escrow_nanos
    async with world.pool.acquire() as conn:
        await conn.execute(
            "UPDATE ledger.reconcile_checkpoint SET seq = 0, stream_id = '0-0', epoch = 0, updated_at = 'epoch'"
        )
        term = await try_take(conn, 0, "test")
        assert term is not None
        writer = batches.BatchWriter(conn, term, MonthKeeper())
        await writer.prepare()
        booked = await writer.book(plan(events, term.start))
    assert booked.charged_nanos == 0
    assert (await world.ledger.balance(ORG)).escrow_nanos == escrow
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event") == 5


async def test_one_hold_charged_in_two_epochs_is_charged_once_and_shown(
    world: World, redis_service: RedisService
) -> None:
    """The same hold in two events moves money once; the second is kept as an anomaly, not forgotten."""
    hold_id = await world.spend(METERS)
    meta = await world.counter.meta(0)
    assert meta is not None
    await raw_event(redis_service.url, f"1-{meta.seq + 1}", kind="settle", hold=hold_id, org=ORG, amount=500)
    await world.booked()
    assert await world.open_anomalies() == ["duplicate"]
    assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD - charge_nanos(world.card, METERS)


async def test_a_fenced_reconciler_cannot_write(world: World) -> None:
    """One that was paused past its term finds no checkpoint under its token: nothing of its batch is booked."""
    await world.spend(METERS)
    events = await world.counter.read_events(0)
    async with world.pool.acquire() as paused, world.pool.acquire() as other:
        old = await try_take(paused, 0, "paused")
        assert old is not None
        assert await try_take(other, 0, "other") is None
        await other.execute("UPDATE ledger.reconcile_checkpoint SET updated_at = now() - interval '1 minute'")
        new = await try_take(other, 0, "other")
        assert new is not None
        assert new.fence > old.fence
        writer = batches.BatchWriter(paused, old, MonthKeeper())
        await writer.prepare()
        with pytest.raises(Fenced):
            await writer.book(plan(events, old.start))
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event") == 0


async def test_two_reconcilers_book_every_event_once(world: World) -> None:
    """Both run, one works; when it goes, the other takes over without loss."""
    async with reconciling(world, batch_events=7) as second:
        async with reconciling(world, batch_events=7) as first:
            for _ in range(40):
                await world.spend(METERS)
            await world.booked(first)
            assert [first.leading, second.leading].count(True) == 1
        for _ in range(40):
            await world.spend(METERS)
        await world.booked(second)
        assert second.leading
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event") == 80
    assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD - 80 * charge_nanos(world.card, METERS)
    assert await world.open_anomalies() == []


async def test_every_month_finds_its_partition(world: World) -> None:
    """Requests of last year and of a clock that runs ahead are booked in the months of their ids."""
    times_ms = {
        date(2025, 1, 1): 1_735_689_600_000,
        date(2031, 12, 1): 1_956_527_999_999,
        date(2020, 2, 1): 1_582_934_400_000,
    }
    for time_ms in times_ms.values():
        await world.spend(METERS, hold_id=new_request_id(time_ms))
    await world.booked()
    for month in times_ms:
        assert await world.pool.fetchval(f"SELECT count(*) FROM ledger.usage_event_{month:%Y_%m}") == 1
        assert await world.pool.fetchval(f"SELECT count(*) FROM ledger.transfer_{month:%Y_%m}") == 1
    assert await world.open_anomalies() == []


async def test_a_partition_that_was_detached_is_made_anew(world: World) -> None:
    """An operator who archives a month does not make the events of that month an anomaly."""
    async with reconciling(world) as reconciler:
        await world.spend(METERS, hold_id=new_request_id(1_735_689_600_000))
        await world.booked(reconciler)
        for table in ("usage_event", "transfer"):
            await world.pool.execute(f"ALTER TABLE ledger.{table} DETACH PARTITION ledger.{table}_2025_01")
            await world.pool.execute(f"ALTER TABLE ledger.{table}_2025_01 RENAME TO {table}_archived")
        await world.spend(METERS, hold_id=new_request_id(1_735_689_600_001))
        await world.booked(reconciler)
    assert await world.open_anomalies() == []
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event_2025_01") == 1


@pytest.mark.parametrize(
    "poison",
    [
        {"kind": "settle", "hold": "not a request id", "org": ORG, "amount": 5},
        {"kind": "settle", "org": "org_unknownnnnnn", "amount": 5},
        {"kind": "settle", "org": ORG, "amount": 10**15},
        {"kind": "settle", "org": ORG, "amount": -5},
        {"kind": "void", "org": ORG, "amount": 5},
        {"kind": "settle", "org": ORG, "amount": 10**30},
        {"kind": "settle", "org": ORG, "amount": 5, "hold": "req_" + "7" * 26},
        {"kind": "gift", "org": ORG, "amount": 5},
        {"kind": "grant", "org": ORG, "amount": 5, "grant_seq": 77},
    ],
)
async def test_an_impossible_event_stops_nobody_else(
    world: World, redis_service: RedisService, poison: dict[str, object]
) -> None:
    """It is kept as an anomaly, moves no money, and the events around it are booked."""
    for _ in range(3):
        await world.spend(METERS)
    meta = await world.counter.meta(0)
    assert meta is not None
    await raw_event(redis_service.url, f"1-{meta.seq + 1}", **({"hold": new_request_id()} | poison))
    for _ in range(3):
        await world.spend(METERS)
    await world.booked()
    assert len(await world.open_anomalies()) == 1
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event") == 6
    assert (await world.ledger.balance(ORG)).escrow_nanos == 100 * USD - 6 * charge_nanos(world.card, METERS)


async def test_an_unreadable_description_does_not_lose_the_charge(world: World) -> None:
    """The money of an event counts even when its JSON does not parse."""
    hold_id = await world.hold()
    await world.counter.settle(
        Settlement(hold_id, ORG, 777, info=b'{"meters":{"prompt":-3,"request":true},"status":"x')
    )
    await world.booked()
    usage = await world.pool.fetchrow("SELECT amount_nanos, prompt_tokens, key_id FROM ledger.usage_event")
    assert usage is not None
    assert tuple(usage) == (777, 0, None)


async def test_lost_events_are_noticed(world: World, redis_service: RedisService) -> None:
    """A hole in the numbers of the stream is an anomaly, and what follows is booked."""
    await world.spend(METERS)
    async with Redis.from_url(redis_service.url) as client:
        await client.xdel("pareta:{0}:events", "1-2")
    await world.spend(METERS)
    await world.booked()
    assert await world.open_anomalies() == ["gap"]
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.usage_event") == 1


async def test_waiting_grants_are_sent_by_the_reconciler(world: World) -> None:
    """A grant made while Redis was away reaches it without anyone's help."""
    await world.ledger.top_up(ORG, 5 * USD, "second")
    await grant_only(world.pool, world.counter)
    async with reconciling(world), asyncio.timeout(15):
        while (await world.counter.account(ORG)).granted_nanos != 105 * USD:
            await asyncio.sleep(0.02)
    assert await world.pool.fetchval("SELECT count(*) FROM ledger.escrow_grant WHERE state = 'applied'") == 2


async def test_drift_is_found_and_goes_away(world: World, redis_service: RedisService) -> None:
    """What Redis has and Postgres did not grant is shown as a number that should be zero."""
    await world.spend(METERS)
    watch = DriftWatch(world.pool, world.counter, 1)
    assert not await watch.step()
    await world.booked()
    assert await watch.step()
    assert watch.drift_nanos == 0
    async with Redis.from_url(redis_service.url) as client:
        await client.hincrby(f"pareta:{{0}}:acct:{ORG}", "available", 123)
        await watch.step()
        assert watch.by_org == {ORG: 123}
        await client.hincrby(f"pareta:{{0}}:acct:{ORG}", "available", -123)
    await watch.step()
    assert watch.drift_nanos == 0


async def test_shards_are_booked_side_by_side(fresh_database: FreshDatabase, redis_service: RedisService) -> None:
    """Organizations of several shards are charged through streams of their own."""
    async with opened_world(fresh_database(), redis_service.url, shards=3) as world:
        orgs = [f"org_{letter * 12}" for letter in "abcdefgh"]
        for org in orgs:
            await world.fund(org=org)
        async with reconciling(world) as reconciler:
            for org in orgs * 3:
                await world.spend(METERS, org=org)
            await world.booked(reconciler)
        assert await world.pool.fetchval("SELECT count(DISTINCT shard) FROM ledger.usage_event") == 3
        for org in orgs:
            assert (await world.ledger.balance(org)).escrow_nanos == 100 * USD - 3 * charge_nanos(world.card, METERS)
        assert reconciler.last_error == ""


async def test_credit_beyond_the_cap_of_a_grant_follows_when_there_is_room(world: World) -> None:
    """What Redis cannot hold waits in Postgres and can be granted as soon as charges have made room."""
    await world.ledger.top_up(ORG, MAX_GRANT_NANOS, "second")
    await world.grant()
    assert (await world.ledger.balance(ORG)).available_nanos == 100 * USD
    await world.counter.settle(Settlement(await world.hold(fixed=300 * USD), ORG, 300 * USD, info=world.info({})))
    await world.booked()
    assert await world.grant() is not None
    assert await world.grant() is None
    assert (await world.ledger.balance(ORG)).available_nanos == 0
    assert (await world.counter.account(ORG)).available_nanos == MAX_GRANT_NANOS - 200 * USD


async def test_an_ordinary_role_is_enough(fresh_database: FreshDatabase, redis_service: RedisService) -> None:
    """Migrations, top-ups, the reconciler and the audit run under a role that only owns its schema."""
    url = urlsplit(fresh_database())
    role, database = f"plain_{os.getpid()}", url.path.strip("/")
    admin = await asyncpg.connect(url.geturl())
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'plain'; GRANT CREATE ON DATABASE {database} TO {role}")
    plain = url._replace(netloc=f"{role}:plain@{url.hostname}:{url.port}").geturl()
    try:
        async with opened_world(plain, redis_service.url) as world:
            await world.fund()
            await world.spend(METERS)
            await world.booked()
            report = await audit(world.pool, world.counter)
            assert (report.differences, report.skipped, report.usage_events) == ([], [], 1)
    finally:
        await admin.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")
        await admin.close()
