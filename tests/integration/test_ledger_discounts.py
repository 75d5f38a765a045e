"""Discounts in a real Postgres: by time, one at a moment, never rewritten; booked, and proven by the audit."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import asyncpg
import pytest

from ledger.books.database import Pool
from ledger.books.discounts import current_discounts
from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from ledger.core.pricing import Quote, charge_nanos, discount_at
from ledger.counter import Admission, Beat, Held, Settlement
from ledger.errors import LedgerConflict, LedgerRefused
from ledger.proof.audit import audit
from tests.integration.ledger_world import ENDPOINT, ORG, World, migrated_pool, new_request_id, opened_world
from tests.services import FreshDatabase, FreshRedis

METERS = {Meter.PROMPT: 1_234, Meter.COMPLETION: 345, Meter.REQUEST: 1}


@pytest.fixture
async def pool(fresh_database: FreshDatabase) -> AsyncIterator[Pool]:
    async with migrated_pool(fresh_database()) as pool:
        yield pool


@pytest.fixture
def ledger(pool: Pool) -> Ledger:
    return Ledger(pool)


@pytest.fixture
async def world(fresh_database: FreshDatabase, fresh_redis: FreshRedis) -> AsyncIterator[World]:
    async with opened_world(fresh_database(), fresh_redis(durable=False).url) as world:
        await world.fund()
        yield world


async def test_a_discount_closes_the_one_before(ledger: Ledger) -> None:
    """There is one at every moment, the same again changes nothing, and an end is an end."""
    first = await ledger.set_discount(ORG, 1_000)
    assert await ledger.set_discount(ORG, 1_000) == first
    second = await ledger.set_discount(ORG, 2_500)
    ended = await ledger.end_discount(ORG)
    assert (ended.id, ended.effective_to_ms is not None) == (second.id, True)
    found = await ledger.discounts(ORG)
    assert [discount.bps for discount in found] == [1_000, 2_500]
    assert found[0].effective_to_ms == found[1].effective_from_ms
    with pytest.raises(LedgerConflict, match="open"):
        await ledger.end_discount(ORG)
    third = await ledger.set_discount(ORG, 2_500)
    assert third.id != second.id


async def test_an_endpoint_has_its_own_discounts(ledger: Ledger, pool: Pool) -> None:
    """One for all and one for an endpoint live side by side; other organizations have neither."""
    of_all = await ledger.set_discount(ORG, 5_000)
    own = await ledger.set_discount(ORG, 1_000, endpoint_id="ep_a")
    found = await current_discounts(pool, org_ids=[ORG])
    assert set(found[ORG]) == {of_all, own}
    now_ms = time.time_ns() // 1_000_000 + 1_000
    assert discount_at(found[ORG], now_ms) == own
    await ledger.end_discount(ORG, endpoint_id="ep_a")
    still = (await current_discounts(pool, datetime.now(UTC) + timedelta(minutes=2)))[ORG]
    assert still == (of_all,)
    assert await current_discounts(pool, org_ids=["org_bbbbbbbbbbbb"]) == {}


async def test_a_discount_may_be_scheduled_but_not_backdated(ledger: Ledger) -> None:
    """It begins and ends now or later; what was charged stays as it was charged."""
    now = datetime.now(UTC)
    with pytest.raises(LedgerConflict, match="past"):
        await ledger.set_discount(ORG, 100, effective_from=now - timedelta(hours=1))
    await ledger.set_discount(ORG, 100)
    await ledger.set_discount(ORG, 200, effective_from=now + timedelta(hours=1))
    for moment in (now + timedelta(minutes=30), None):
        with pytest.raises(LedgerConflict, match="begin"):
            await ledger.set_discount(ORG, 300, effective_from=moment)
    for moment in (now - timedelta(hours=1), now + timedelta(minutes=30), None):
        with pytest.raises(LedgerConflict, match=r"past|end it after"):
            await ledger.end_discount(ORG, effective_to=moment)
    ended = await ledger.end_discount(ORG, effective_to=now + timedelta(hours=2))
    assert ended.bps == 200
    with pytest.raises(LedgerConflict, match="until"):
        await ledger.set_discount(ORG, 300, effective_from=now + timedelta(minutes=90))
    await ledger.set_discount(ORG, 300, effective_from=now + timedelta(hours=2))


@pytest.mark.parametrize("bps", [-1, 10_001, True, 12.5])
async def test_a_wrong_discount_is_refused_with_a_sentence(ledger: Ledger, bps: int) -> None:
    """Basis points are whole numbers from none to all."""
    with pytest.raises(LedgerRefused, match=r"basis points.*\."):
        await ledger.set_discount(ORG, bps)


async def test_many_changes_at_once_never_overlap(ledger: Ledger) -> None:
    """Twenty operators who set and end at once leave a row of discounts in order."""
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")
    rng = random.Random(seed)

    async def change(number: int) -> None:
        await asyncio.sleep(rng.random() / 50)
        if number % 4 == 3:
            await ledger.end_discount(ORG)
        else:
            await ledger.set_discount(ORG, number)

    outcomes = await asyncio.gather(*map(change, range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} <= {type(None), LedgerConflict}
    found = await ledger.discounts(ORG)
    assert len(found) >= 10
    for earlier, later in pairwise(found):
        assert earlier.effective_to_ms is not None
        assert earlier.effective_to_ms <= later.effective_from_ms


async def test_the_database_itself_refuses_overlap_and_rewriting(ledger: Ledger, pool: Pool) -> None:
    """No program can give two discounts at once, nor change or delete one."""
    await ledger.set_discount(ORG, 1_000)
    await ledger.set_discount(ORG, 1_000, endpoint_id="ep_a")
    insert = "INSERT INTO ledger.discount (id, org_id, endpoint_id, bps, effective_from_ms) VALUES ($1, $2, $3, 1, $4)"
    for endpoint_id in (None, "ep_a"):
        with pytest.raises(asyncpg.ExclusionViolationError):
            await pool.execute(insert, "dc_x", ORG, endpoint_id, 2**45)
    await pool.execute(insert, "dc_y", ORG, "ep_b", 2**45)
    await pool.execute(insert, "dc_z", ORG + " ", None, 2**45)
    for sql in (
        "UPDATE ledger.discount SET bps = 9999",
        "UPDATE ledger.discount SET org_id = 'org_x'",
        "UPDATE ledger.discount SET effective_from_ms = 1",
        "DELETE FROM ledger.discount",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(sql)
    for value in (-1, 10_001):
        with pytest.raises(asyncpg.CheckViolationError):
            await pool.execute(insert.replace(", 1, $4", f", {value}, $4"), "dc_v", ORG, "ep_c", 1)


async def spend(world: World, bps: int, charged_bps: int | None = None, **more: object) -> str:
    """One request that says it had a discount, and was charged with one (the same)."""
    hold_id = await world.hold()
    amount = charge_nanos(world.card, METERS, discount_bps=bps if charged_bps is None else charged_bps)
    info = world.info(METERS, discount_bps=bps, **more)
    await world.counter.settle(Settlement(hold_id, ORG, amount, info=info))
    return hold_id


async def test_a_discounted_charge_is_booked_shown_and_proven(world: World) -> None:
    """The receipt says how much was off; the audit recomputes it, everything off included."""
    await world.ledger.set_discount(ORG, 1_250)
    await world.ledger.set_discount(ORG, 10_000, endpoint_id=ENDPOINT)
    holds = {bps: await spend(world, bps) for bps in (0, 1_250, 10_000)}
    await world.booked()
    for bps, hold_id in holds.items():
        receipt = await world.ledger.receipt(hold_id)
        assert receipt is not None
        assert receipt.discount_bps == bps
        assert receipt.charged_nanos == charge_nanos(world.card, METERS, discount_bps=bps)
        assert {line.meter: line.quantity for line in receipt.lines} == METERS
    assert (await audit(world.pool, world.counter)).differences == []


async def test_a_reaped_hold_and_its_correction_keep_the_discount(world: World) -> None:
    """A worker that dies leaves it with the hold; what it says when it comes back is less by the same share."""
    await world.ledger.set_discount(ORG, 4_000)
    info = world.info({}, "reaped", discount_bps=4_000)
    beaten = {Meter.COMPLETION: 9}
    accrued = charge_nanos(world.card, beaten, discount_bps=4_000)
    holds = [new_request_id() for _ in range(2)]
    for hold_id in holds:
        admission = Admission(hold_id, ORG, "f", Quote(10_000_000, 0), 0, 30.0, info=info)
        assert isinstance(await world.counter.admit(admission), Held)
    beat = json.dumps({"meters": beaten, "source": "counted"}).encode()
    await world.counter.heartbeat([Beat(hold_id, ORG, accrued, beat, 0.01) for hold_id in holds])
    await asyncio.sleep(0.03)
    assert await world.counter.reap() == 2
    amount = charge_nanos(world.card, METERS, discount_bps=4_000)
    late = Settlement(holds[1], ORG, amount, info=world.info(METERS, discount_bps=4_000))
    await world.counter.settle(late)
    await world.booked()
    for hold_id, charged_nanos in zip(holds, (accrued, amount), strict=True):
        receipt = await world.ledger.receipt(hold_id)
        assert receipt is not None
        assert (receipt.discount_bps, receipt.charged_nanos) == (4_000, charged_nanos)
    assert (await audit(world.pool, world.counter)).differences == []


async def test_the_audit_finds_discounts_that_nobody_gave(world: World) -> None:
    """Another share, another endpoint, before its time or long after: each is a difference, and so is a wrong sum."""
    now = datetime.now(UTC)
    await world.ledger.set_discount(ORG, 1_000, endpoint_id="ep_other")
    await world.ledger.set_discount(ORG, 2_000, effective_from=now + timedelta(hours=1))
    await world.ledger.set_discount(ORG, 3_000, endpoint_id=ENDPOINT)
    long_after_ms = round((now + timedelta(hours=3)).timestamp() * 1000)
    await world.ledger.end_discount(ORG, endpoint_id=ENDPOINT, effective_to=now + timedelta(hours=2))
    right = await spend(world, 3_000)
    wrong = {
        "of another endpoint": await spend(world, 1_000),
        "before its time": await spend(world, 2_000),
        "after its time": await spend(world, 3_000, started_ms=long_after_ms),
        "of no one": await spend(world, 4_000),
    }
    not_given = await spend(world, 3_000, charged_bps=0)
    await world.booked()
    differences = {found.subject: found for found in (await audit(world.pool, world.counter)).differences}
    assert right not in differences
    assert {differences[hold_id].note for hold_id in wrong.values()} == {"no such discount"}
    assert differences[not_given].note == "charge plus shortfall is not usage times price"
    assert len(differences) == len(wrong) + 1
