"""Receipts say what a request cost, and why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from ledger.counter import Beat, Settlement
from ledger.errors import LedgerRefused
from tests.integration.ledger_world import (
    ENDPOINT,
    ORG,
    RATES,
    USD,
    World,
    new_request_id,
    opened_world,
    reconciling,
)
from tests.services import FreshDatabase, FreshRedis

METERS = {Meter.PROMPT: 1200, Meter.CACHED_PROMPT: 10, Meter.COMPLETION: 345, Meter.REASONING: 5, Meter.REQUEST: 1}


@pytest.fixture
async def world(fresh_database: FreshDatabase, fresh_redis: FreshRedis) -> AsyncIterator[World]:
    async with opened_world(fresh_database(), fresh_redis(durable=False).url) as world:
        await world.fund()
        yield world


async def test_a_receipt_has_everything_that_the_charge_came_from(world: World) -> None:
    """Hold, usage per meter, price card, charge, source, outcome, owner and transfer are all on it."""
    hold_id = await world.spend(METERS)
    async with reconciling(world):
        receipt = await world.ledger.receipt(hold_id, wait_s=10)
    assert receipt is not None
    amount = charge_nanos(world.card, METERS)
    assert (receipt.request_id, receipt.org_id, receipt.key_id) == (hold_id, ORG, "k" * 24)
    assert (receipt.endpoint_id, receipt.route, receipt.streamed) == (ENDPOINT, "chat", True)
    assert (receipt.kind, receipt.outcome, receipt.source, receipt.status) == ("settle", "finished", "reported", 200)
    assert {line.meter: line.quantity for line in receipt.lines} == METERS
    # Cached prompt and reasoning tokens have no rate of their own here and cost what their plain kin cost.
    assert {line.meter: line.rate_nanos for line in receipt.lines} == RATES | {
        Meter.CACHED_PROMPT: RATES[Meter.PROMPT],
        Meter.REASONING: RATES[Meter.COMPLETION],
    }
    assert receipt.price_card is not None
    assert (receipt.price_card.id, dict(receipt.price_card.rates)) == (world.card.id, RATES)
    assert (receipt.held_nanos, receipt.charged_nanos, receipt.shortfall_nanos) == (10_000_000, amount, 0)
    assert [(transfer.id, transfer.amount_nanos) for transfer in receipt.transfers] == [(f"tx_{hold_id[4:]}", amount)]
    assert receipt.created_at <= receipt.settled_at <= datetime.now(UTC) + timedelta(seconds=1)


async def test_a_corrected_receipt_shows_both_transfers_and_the_final_usage(world: World) -> None:
    """After a reap and a late settlement there is one price, reached in two signed steps."""
    hold_id = await world.hold(expires_in_s=0.01)
    beaten, final = {Meter.COMPLETION: 100, Meter.REQUEST: 1}, {Meter.COMPLETION: 40, Meter.REQUEST: 1}
    beat = json.dumps({"meters": beaten, "source": "counted"}).encode()
    await world.counter.heartbeat([Beat(hold_id, ORG, charge_nanos(world.card, beaten), beat, 0.01)])
    await asyncio.sleep(0.05)
    await world.counter.reap()
    await world.counter.settle(world.settlement(hold_id, final))
    await world.booked()
    receipt = await world.ledger.receipt(hold_id)
    assert receipt is not None
    assert (receipt.kind, receipt.outcome) == ("late", "finished")
    assert receipt.charged_nanos == charge_nanos(world.card, final)
    assert [transfer.kind for transfer in receipt.transfers] == ["charge", "late_refund"]
    assert sum(transfer.amount_nanos for transfer in receipt.transfers) == receipt.charged_nanos
    assert {line.meter: line.quantity for line in receipt.lines} == final


async def test_a_shortfall_is_on_the_receipt(world: World) -> None:
    """What the account could not pay is shown beside what it did pay."""
    hold_id = await world.hold(fixed=99 * USD)
    await world.counter.settle(Settlement(hold_id, ORG, 130 * USD, info=world.info({})))
    await world.booked()
    receipt = await world.ledger.receipt(hold_id)
    assert receipt is not None
    assert (receipt.charged_nanos, receipt.shortfall_nanos) == (100 * USD, 30 * USD)


async def test_an_unpaid_request_has_a_receipt_too(world: World) -> None:
    """A voided request can be looked up: zero charged, and why."""
    hold_id = await world.hold()
    await world.counter.void(Settlement(hold_id, ORG, 0, info=world.info({}, "failed", status=503)))
    await world.booked()
    receipt = await world.ledger.receipt(hold_id)
    assert receipt is not None
    assert (receipt.kind, receipt.charged_nanos, receipt.transfers) == ("void", 0, ())
    assert (receipt.outcome, receipt.status) == ("failed", 503)


async def test_unknown_and_malformed_ids(world: World) -> None:
    """An id that nothing was booked for has no receipt; a text that is no id is refused."""
    assert await world.ledger.receipt(new_request_id()) is None
    for text in ("", "req_", "req_" + "u" * 26, "chatcmpl-1", "req_" + "7" * 26 + "x"):
        with pytest.raises(LedgerRefused):
            await world.ledger.receipt(text)


async def test_the_receipts_of_an_organization_sum_to_what_left_its_balance(world: World) -> None:
    """Balance before - after = sum of receipts, to the nano, page by page."""
    before = (await world.ledger.balance(ORG)).total_nanos
    await world.fund(org="org_bbbbbbbbbbbb")
    for number in range(25):
        await world.spend({Meter.PROMPT: 7 * number, Meter.COMPLETION: 13, Meter.REQUEST: 1})
        await world.spend(METERS, org="org_bbbbbbbbbbbb")
    await world.booked()
    now = datetime.now(UTC)
    found = []
    after = ""
    while page := await world.ledger.receipts(
        ORG, since=now - timedelta(hours=1), until=now + timedelta(hours=1), limit=7, after=after
    ):
        found += page
        after = page[-1].request_id
    assert len({receipt.request_id for receipt in found}) == len(found) == 25
    assert sum(receipt.charged_nanos for receipt in found) == before - (await world.ledger.balance(ORG)).total_nanos
