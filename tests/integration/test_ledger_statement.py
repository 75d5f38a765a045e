"""Statements: a month's parts come from different tables and add up to the nano, or say that they do not."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta

import pytest

from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from ledger.counter import Beat
from ledger.errors import UnknownAccount
from ledger.proof.statement import Statement, statement
from tests.integration.ledger_world import ENDPOINT, ORG, USD, World, opened_world
from tests.services import FreshDatabase, FreshRedis

METERS = {Meter.PROMPT: 1201, Meter.COMPLETION: 345, Meter.REQUEST: 1}
OTHER = "org_bbbbbbbbbbbb"


@pytest.fixture
async def world(fresh_database: FreshDatabase, fresh_redis: FreshRedis) -> AsyncIterator[World]:
    async with opened_world(fresh_database(), fresh_redis(durable=False).url) as world:
        await world.fund()
        await world.fund(3 * USD, org=OTHER)
        yield world


async def drawn(world: World, org: str = ORG, month: date | None = None) -> Statement:
    found = await statement(world.pool, org, month or datetime.now(UTC).date())
    for purchase in found.purchases:
        priced = sum(line.list_nanos for line in purchase.lines) + purchase.rounding_nanos - purchase.discount_nanos
        assert priced - purchase.shortfall_nanos == purchase.amount_nanos
    return found


async def tamper(world: World, sql: str, *arguments: object) -> None:
    """What no program can do: change the past, with the triggers off (a superuser's right)."""
    async with world.pool.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        for name in ("transfer", "usage_event", "top_up"):
            await conn.execute(f"GRANT ALL ON ledger.{name} TO CURRENT_USER")
        await conn.execute(sql, *arguments)


async def reaped_then_settled(world: World, first: dict[Meter, int], final: dict[Meter, int]) -> None:
    hold = await world.hold(expires_in_s=0.01)
    accrued = world.settlement(hold, first)
    await world.counter.heartbeat([Beat(hold, ORG, accrued.amount_nanos, accrued.info, 0.01)])
    while not await world.counter.reap():
        pass
    await world.counter.settle(world.settlement(hold, final))


def charges(world: World, *quantities: dict[Meter, int]) -> int:
    return sum(charge_nanos(world.card, meters) for meters in quantities)


async def test_a_month_adds_up(world: World) -> None:
    """Payments, requests at a price, free ones, failed ones and corrections up and down: all exact."""
    await world.ledger.top_up(ORG, 5, "second", "a note")
    for _ in range(3):
        await world.spend(METERS)
    await world.spend(METERS, org=OTHER)
    await world.counter.void(world.settlement(await world.hold(), {}))
    await reaped_then_settled(world, {Meter.COMPLETION: 5}, METERS)
    await reaped_then_settled(world, METERS, {Meter.COMPLETION: 5})
    await world.booked()
    found = await drawn(world)
    charged = charges(world, *[METERS] * 4, {Meter.COMPLETION: 5})
    assert found.off_by_nanos == 0
    assert (found.opening_nanos, found.paid_in_nanos, found.charged_nanos) == (0, 100 * USD + 5, charged)
    assert found.closing_nanos == 100 * USD + 5 - charged
    assert [(payment.amount_nanos, payment.note) for payment in found.payments] == [(100 * USD, ""), (5, "a note")]
    (bought,) = found.purchases
    assert (bought.endpoint_id, bought.requests, bought.amount_nanos) == (ENDPOINT, 5, charged)
    assert {line.meter: line.units for line in bought.lines} == {
        Meter.PROMPT: 4 * 1201,
        Meter.COMPLETION: 4 * 345 + 5,
        Meter.REQUEST: 4,
    }
    prices = {line.meter: line.list_nanos for line in bought.lines}
    assert prices == {
        Meter.PROMPT: 4 * 1201 * 150,
        Meter.COMPLETION: (4 * 345 + 5) * 600,
        Meter.REQUEST: 4 * 1001,
    }
    assert found.corrections.count == 2
    raised = charges(world, METERS) - charges(world, {Meter.COMPLETION: 5})
    assert (found.corrections.raised_nanos, found.corrections.refunded_nanos) == (raised, raised)
    assert (found.shortfall_nanos, found.short_requests, found.over) == (0, 0, False)
    left = await world.ledger.balance(ORG)
    assert found.available_nanos + found.escrow_nanos + found.frozen_nanos == left.total_nanos == found.closing_nanos


async def test_what_the_platform_bore_is_shown(world: World) -> None:
    """A request that cost more than there was is charged what there was; the rest is the platform's."""
    meters = {Meter.COMPLETION: 10**10}
    await world.spend(meters, org=OTHER)
    await world.booked()
    found = await drawn(world, OTHER)
    assert (found.charged_nanos, found.closing_nanos, found.off_by_nanos) == (3 * USD, 0, 0)
    assert (found.shortfall_nanos, found.short_requests) == (charges(world, meters) - 3 * USD, 1)


async def test_months_follow_each_other(world: World) -> None:
    """Whenever things were booked, one month's closing balance is the next one's opening, and each adds up."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    for number in range(12):
        await world.spend({Meter.COMPLETION: 1 + number, Meter.REQUEST: 1})
        if number % 4 == 0:
            await reaped_then_settled(world, {Meter.COMPLETION: 900}, {Meter.COMPLETION: dice.randrange(1800)})
    await world.booked()
    year = datetime.now(UTC).year - 2
    moments = [datetime(year, month, 1, tzinfo=UTC) for month in range(1, 13)]
    at_boundaries: Sequence[datetime] = [*moments, *(moment - timedelta(microseconds=1) for moment in moments[1:])]
    for row in await world.pool.fetch("SELECT id FROM ledger.transfer WHERE kind <> 'top_up'"):
        moment = dice.choice(at_boundaries)
        await tamper(world, "UPDATE ledger.transfer SET posted_at = $2 WHERE id = $1", row["id"], moment)
    await tamper(
        world, "UPDATE ledger.transfer SET posted_at = $1 WHERE kind = 'top_up'", datetime(year - 1, 12, 31, tzinfo=UTC)
    )
    before = await drawn(world, month=date(year - 1, 12, 5))
    assert (before.opening_nanos, before.paid_in_nanos, before.charged_nanos) == (0, 100 * USD, 0)
    charged = 0
    for month in range(1, 13):
        found = await drawn(world, month=date(year, month, 28))
        assert found.over
        assert found.off_by_nanos == 0
        assert found.opening_nanos == before.closing_nanos
        assert found.charged_nanos == await world.pool.fetchval(
            """SELECT coalesce(sum(CASE kind WHEN 'late_refund' THEN -amount_nanos ELSE amount_nanos END), 0)::bigint
                 FROM ledger.transfer WHERE kind IN ('charge', 'late_charge', 'late_refund')
                  AND to_char(posted_at AT TIME ZONE 'UTC', 'YYYY-MM') = $1""",
            f"{year}-{month:02}",
        )
        charged += found.charged_nanos
        before = found
    now = await drawn(world)
    assert now.opening_nanos == now.closing_nanos == before.closing_nanos == 100 * USD - charged
    assert now.closing_nanos == (await world.ledger.balance(ORG)).total_nanos


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE ledger.usage_event SET amount_nanos = amount_nanos + 7",
        "UPDATE ledger.transfer SET amount_nanos = amount_nanos + 7 WHERE kind = 'charge' "
        "AND posted_at = (SELECT min(posted_at) FROM ledger.transfer WHERE kind = 'charge')",
        "DELETE FROM ledger.usage_event",
        "DELETE FROM ledger.transfer WHERE kind = 'top_up'",
        "UPDATE ledger.top_up SET amount_nanos = amount_nanos + 7",
        "UPDATE ledger.balance SET escrow_nanos = escrow_nanos + 7",
    ],
)
async def test_books_that_do_not_add_up_are_not_stated(world: World, sql: str) -> None:
    """A payment, a usage, a transfer or a balance that was changed alone makes the statement differ."""
    await world.spend(METERS)
    await world.booked()
    await tamper(world, "UPDATE ledger.transfer SET posted_at = posted_at - interval '40 days' WHERE kind = 'charge'")
    assert (await drawn(world)).off_by_nanos == 0
    last_month = (datetime.now(UTC) - timedelta(days=40)).date()
    assert (await drawn(world, month=last_month)).off_by_nanos == 0
    await tamper(world, sql)
    assert any([(await drawn(world, month=month)).off_by_nanos for month in (None, last_month)])


async def test_discounts_and_roundings_are_lines_of_their_own(world: World) -> None:
    """List prices, less the discount, with what rounding up added, are what was charged."""
    for _ in range(7):
        await world.spend({Meter.COMPLETION: 1, Meter.PROMPT: 1})
    await world.booked()
    found = await drawn(world)
    assert found.purchases[0].rounding_nanos == 0
    await tamper(world, 'UPDATE ledger.price_card SET rates = \'{"prompt": 150000001, "completion": 600000000}\'')
    assert (await drawn(world)).purchases[0].rounding_nanos == 0
    await tamper(world, 'UPDATE ledger.price_card SET rates = \'{"prompt": 149500000, "completion": 600000000}\'')
    rounded = (await drawn(world)).purchases[0]
    assert (rounded.rounding_nanos, rounded.discount_nanos) == (4, 0)  # 7 half nanos, of which 3 were lost in the sum
    await tamper(world, 'UPDATE ledger.price_card SET rates = \'{"prompt": 300000000, "completion": 1200000000}\'')
    await tamper(world, "UPDATE ledger.usage_event SET discount_bps = 5000")
    halved = (await drawn(world)).purchases[0]
    assert (halved.rounding_nanos, halved.discount_nanos, halved.amount_nanos) == (0, 7 * 750, 7 * 750)


async def test_who_has_no_account_has_no_statement(world: World) -> None:
    """An unknown organization is an error, not an empty month."""
    with pytest.raises(UnknownAccount):
        await drawn(world, "org_nobody")
