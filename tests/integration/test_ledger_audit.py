"""The audit finds every difference that is there, and none that is not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from ledger.books.recovery import book_recovered, release_due
from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from ledger.counter import Beat, CreditCounter, Settlement
from ledger.proof.audit import AuditReport, audit
from tests.integration.ledger_books import Books, opened_books
from tests.integration.ledger_world import ORG, USD, World, opened_world
from tests.services import FreshDatabase, FreshRedis, RedisService

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}
OTHER = "org_bbbbbbbbbbbb"


@pytest.fixture
def redis_service(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis(durable=False)


@pytest.fixture
async def world(fresh_database: FreshDatabase, redis_service: RedisService) -> AsyncIterator[World]:
    """A ledger with every kind of event in it."""
    async with opened_world(fresh_database(), redis_service.url) as world:
        await world.fund()
        await world.fund(org=OTHER)
        await world.ledger.top_up(OTHER, USD, "second")
        await world.grant(OTHER)
        for _ in range(3):
            await world.spend(METERS)
            await world.spend(METERS, org=OTHER)
        await world.counter.void(Settlement(await world.hold(), ORG, 0, info=world.info({}, "failed")))
        beat = json.dumps({"meters": {Meter.COMPLETION: 9}, "source": "counted"}).encode()
        accrued = charge_nanos(world.card, {Meter.COMPLETION: 9})
        holds = [await world.hold(expires_in_s=0.01) for _ in range(3)]
        await world.counter.heartbeat([Beat(hold, ORG, accrued, beat, 0.01) for hold in holds])
        await asyncio.sleep(0.03)
        await world.counter.reap()
        await world.counter.settle(world.settlement(holds[1], METERS))
        await world.counter.void(Settlement(holds[2], ORG, 0, info=world.info({}, "failed")))
        rich = await world.hold(org=OTHER, fixed=USD)
        await world.counter.settle(world.settlement(rich, {Meter.PROMPT: 2 * 10**9}, org=OTHER))
        assert await world.counter.give_back(ORG, 1, keep_nanos=40 * USD) > 0
        await world.booked()
        yield world


@pytest.fixture
async def books(fresh_database: FreshDatabase) -> AsyncIterator[Books]:
    """A ledger whose shard has lost Redis once, with everything that follows from it, and a new beginning."""
    async with opened_books(fresh_database()) as books:
        await books.fund(ORG, 1000, granted=500)
        await books.desks[0].book([books.event(ORG, "settle", 30), reap := books.event(ORG, "reap", 20)])
        await books.lose()
        corrected = books.recovered(ORG, 60, hold=reap.hold, epoch=1)
        await book_recovered(books.pool, books.months, [corrected, books.recovered(ORG, 5, epoch=1)])
        await release_due(books.pool, 0)
        await book_recovered(books.pool, books.months, [books.recovered(ORG, 9, epoch=1)])
        await books.grant(ORG, 200)
        await books.desks[0].book([books.event(ORG, "settle", 15), books.event(ORG, "return", 25)])
        yield books


def found(report: AuditReport) -> set[str]:
    return {difference.check for difference in report.differences}


async def tamper(world: World | Books, sql: str) -> None:
    """What no program can do: change the past, with the triggers off (a superuser's right)."""
    async with world.pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        for name in ("transfer", "usage_event", "top_up", "escrow_return", "escrow_freeze"):
            await conn.execute(f"GRANT ALL ON ledger.{name} TO CURRENT_USER")
        await conn.execute(sql)


async def test_a_right_ledger_has_no_differences(world: World) -> None:
    """Settled, voided, reaped, corrected up and down, and short: all of it adds up, and nothing was skipped."""
    report = await audit(world.pool, world.counter)
    assert report.differences == []
    assert (report.clean, report.skipped) == (True, [])
    assert (report.organizations, report.top_ups, report.grants, report.redis_accounts) == (2, 3, 3, 2)
    assert report.paid_in_nanos == 201 * USD
    left = [(await world.ledger.balance(org)).total_nanos for org in (ORG, OTHER)]
    assert report.charged_nanos == 201 * USD - sum(left)
    assert report.shortfall_nanos > 0
    assert left[1] == 0


@pytest.mark.parametrize(
    ("sql", "checks"),
    [
        ("UPDATE ledger.balance SET escrow_nanos = escrow_nanos + 1 WHERE org_id = 'org_aaaaaaaaaaaa'",
         {"balances", "epochs", "redis"}),
        ("UPDATE ledger.transfer SET amount_nanos = amount_nanos + 1 WHERE kind = 'charge'", {"balances", "events"}),
        ("DELETE FROM ledger.transfer WHERE kind = 'late_charge'", {"balances", "events"}),
        ("UPDATE ledger.transfer SET kind = 'grant' WHERE kind = 'top_up'", {"transfers", "events"}),
        ("UPDATE ledger.transfer SET event_id = 'req_00000000000000000000000000' WHERE kind = 'late_refund'",
         {"transfers", "events"}),
        ("UPDATE ledger.usage_event SET prompt_tokens = 0 WHERE kind = 'settle'", {"charges"}),
        ("UPDATE ledger.usage_event SET price_card_id = 'pc_none' WHERE kind = 'settle'", {"charges"}),
        ("UPDATE ledger.usage_event SET endpoint_id = 'ep_other' WHERE kind = 'settle'", {"charges"}),
        ("UPDATE ledger.usage_event SET shortfall_nanos = shortfall_nanos + 1 WHERE kind = 'reap'", {"charges"}),
        ("UPDATE ledger.usage_event SET seq = 1 WHERE kind = 'late' AND amount_nanos > 0", {"sequence"}),
        ("DELETE FROM ledger.usage_event WHERE kind = 'void'", {"sequence"}),
        ("DELETE FROM ledger.usage_event WHERE kind = 'reap'", {"sequence", "events", "charges", "epochs", "redis"}),
        ("DELETE FROM ledger.top_up WHERE idempotency_key = 'second'", {"balances", "events"}),
        ("UPDATE ledger.escrow_grant SET grant_seq = 7 WHERE grant_seq = 2", {"grants", "redis"}),
        ("UPDATE ledger.price_card SET rates = '{\"request\": 1}'", {"charges"}),
        ("UPDATE ledger.escrow_return SET seq = seq + 1", {"sequence"}),
        ("UPDATE ledger.escrow_return SET hold_id = 'req_00000000000000000000000000'", {"redis"}),
        (
            "INSERT INTO ledger.anomaly (shard, epoch, stream_id, kind, detail) VALUES (0, 1, '1-9', 'gap', '{}')",
            {"anomalies"},
        ),
    ],
)  # fmt: skip
async def test_every_tampering_is_found(world: World, sql: str, checks: set[str]) -> None:
    """Whatever is changed behind the program's back, the check that promises otherwise goes red."""
    await tamper(world, sql)
    report = await audit(world.pool, world.counter)
    assert not report.clean
    assert found(report) == checks


async def test_a_ledger_that_lost_redis_has_no_differences(books: Books) -> None:
    """Frozen, recovered, corrected, covered, released, granted again and returned: all of it adds up."""
    report = await audit(books.pool, None)
    assert report.differences == []
    assert (report.recovered_events, report.frozen_nanos, report.charged_nanos) == (3, 0, 30 + 60 + 5 + 9 + 15)
    kinds = await books.pool.fetch("SELECT DISTINCT kind FROM ledger.escrow_freeze ORDER BY kind")
    assert [row["kind"] for row in kinds] == ["cover", "freeze", "release"]


@pytest.mark.parametrize(
    ("sql", "checks"),
    [
        ("UPDATE ledger.balance SET frozen_nanos = frozen_nanos + 1", {"balances"}),
        ("UPDATE ledger.balance SET available_nanos = available_nanos - 1, frozen_nanos = 1", {"balances"}),
        ("UPDATE ledger.escrow_freeze SET amount_nanos = amount_nanos + 1 WHERE kind = 'freeze'", {"events", "epochs"}),
        ("UPDATE ledger.escrow_freeze SET amount_nanos = amount_nanos + 1 WHERE kind = 'cover'", {"events"}),
        ("DELETE FROM ledger.escrow_freeze WHERE kind = 'release'", {"events"}),
        ("DELETE FROM ledger.escrow_freeze WHERE kind = 'freeze'", {"events", "epochs"}),
        ("UPDATE ledger.escrow_freeze SET amount_nanos = 9999 WHERE kind = 'release'", {"events", "epochs"}),
        ("UPDATE ledger.epoch SET frozen_nanos = 0", {"epochs"}),
        ("UPDATE ledger.epoch SET lost_booked_seq = 5 WHERE closes = 1", {"sequence"}),
        ("UPDATE ledger.usage_event SET recovered = true WHERE epoch = 2", {"events", "epochs", "sequence"}),
        ("UPDATE ledger.usage_event SET recovered = false WHERE revision = 1", {"events", "epochs", "sequence"}),
        ("DELETE FROM ledger.usage_event WHERE revision = 1", {"events"}),
        ("UPDATE ledger.escrow_return SET epoch = 1", {"epochs", "sequence"}),
        ("DELETE FROM ledger.escrow_return", {"events", "epochs", "sequence"}),
        ("UPDATE ledger.transfer SET kind = 'release' WHERE kind = 'return'", {"transfers", "events"}),
        ("UPDATE ledger.transfer SET debit_account = credit_account, credit_account = debit_account "
         "WHERE kind = 'release'", {"balances", "transfers", "events"}),
        ("UPDATE ledger.transfer SET debit_account = (SELECT id FROM ledger.account WHERE kind = 'escrow') "
         "WHERE kind = 'late_charge'", {"balances", "events"}),
    ],
)  # fmt: skip
async def test_every_tampering_with_what_was_lost_is_found(books: Books, sql: str, checks: set[str]) -> None:
    """What was frozen, released, recovered and returned cannot be changed without a check going red."""
    await tamper(books, sql)
    assert found(await audit(books.pool, None)) == checks


@pytest.mark.parametrize(
    ("field", "by"), [("available", 1), ("held", -1), ("spent", 5), ("granted", 1), ("grant_seq", 1), ("returned", 2)]
)
async def test_every_difference_in_redis_is_found(
    world: World, redis_service: RedisService, field: str, by: int
) -> None:
    """One nano more or less in any number of an account is a difference."""
    async with Redis.from_url(redis_service.url) as client:
        await client.hincrby(f"pareta:{{0}}:acct:{ORG}", field, by)
    report = await audit(world.pool, world.counter)
    assert found(report) == {"redis"}
    assert {difference.subject for difference in report.differences} == {ORG}


async def test_an_account_from_nowhere_is_found(world: World, redis_service: RedisService) -> None:
    """Credit that the ledger never granted to anyone it knows does not hide."""
    async with Redis.from_url(redis_service.url) as client:
        await client.hset("pareta:{0}:acct:org_zzz", mapping={"available": 5, "granted": 5, "held": 0, "grant_seq": 1})
    report = await audit(world.pool, world.counter)
    assert [(difference.check, difference.subject) for difference in report.differences] == [("redis", "org_zzz")]


async def test_a_wiped_redis_is_a_difference(world: World, redis_service: RedisService) -> None:
    """Credit that was granted and is gone is never reported as clean."""
    async with Redis.from_url(redis_service.url) as client:
        await client.flushall()
    report = await audit(world.pool, world.counter)
    assert found(report) == {"redis"}


async def test_events_that_nobody_books_are_not_agreement(world: World) -> None:
    """While events wait, the comparison with Redis is skipped and says so."""
    await world.spend(METERS)
    report = await audit(world.pool, world.counter, quiet_timeout_s=0.3)
    assert (report.clean, len(report.skipped)) == (True, 1)
    assert "1 events of shard 0 are not booked" in report.skipped[0]


async def test_an_unreachable_redis_is_not_agreement(world: World) -> None:
    """Without Redis the books are still recomputed, and the report says what is missing."""
    gone = await CreditCounter.connect("redis://127.0.0.1:1/", epoch=1, timeout_s=1)
    report = await audit(world.pool, gone)
    assert (report.clean, len(report.skipped)) == (True, 1)
    report = await audit(world.pool, None)
    assert (report.clean, len(report.skipped)) == (True, 1)
    await gone.close()


async def test_open_holds_are_no_difference(world: World) -> None:
    """Credit that is reserved at the moment counts as still there."""
    await world.hold(fixed=USD)
    report = await audit(world.pool, world.counter)
    assert report.clean
    assert report.skipped == []


async def test_an_empty_ledger_is_clean(fresh_database: FreshDatabase, redis_service: RedisService) -> None:
    """Before anything happened there is nothing to find."""
    async with opened_world(fresh_database(), redis_service.url) as world:
        report = await audit(world.pool, world.counter)
        assert (report.differences, report.skipped) == ([], [])


async def test_the_audit_lists_a_bounded_number_and_counts_all(world: World) -> None:
    """A thousand differences are counted; a hundred are shown."""
    await tamper(
        world,
        """INSERT INTO ledger.anomaly (shard, epoch, stream_id, kind, detail)
           SELECT 0, 1, '1-' || n, 'gap', '{}' FROM generate_series(1, 1000) AS n""",
    )
    report = await audit(world.pool, world.counter)
    assert (report.difference_count, len(report.differences)) == (1000, 100)
