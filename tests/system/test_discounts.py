"""Discounts, images and audio through the whole gateway: held, charged, shown and proven."""

from __future__ import annotations

import asyncio
import io
import wave
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ledger.books.discounts import end_discount, set_discount
from ledger.core.meters import Meter
from ledger.core.pricing import Discount
from tests.system.harness import Gateway, Tenant, chat_body
from tests.system.wire import Answer

RATES = {Meter.PROMPT: 150_000_001, Meter.COMPLETION: 600_000_007, Meter.REQUEST: 1_013}
BY_TOKEN = {Meter.COMPLETION: 1_000_000_000}
IMAGE_NANOS, SECOND_NANOS = 2_000_000, 100_000
BY_MEDIUM = {Meter.IMAGE: IMAGE_NANOS * 1_000_000, Meter.AUDIO_SECOND: SECOND_NANOS * 1_000_000, Meter.COMPLETION: 1}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 4_000}}


def price_nanos(receipt: Any, bps: int) -> int:
    """What a request costs, worked out here and nowhere else: whole nanos, rounded up once after the discount."""
    used = {line.meter: line.quantity for line in receipt.lines}
    millionths = used[Meter.PROMPT] * 150_000_001 + used[Meter.COMPLETION] * 600_000_007 + 1_013 * 1_000_000
    return -(-millionths * (10_000 - bps) // 10_000_000_000)


def sound(seconds: float) -> dict[str, Any]:
    out = io.BytesIO()
    with wave.open(out, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(8_000)
        written.writeframes(bytes(round(seconds * 16_000)))
    return {"type": "input_audio", "input_audio": {"data": b64encode(out.getvalue()).decode(), "format": "wav"}}


def said(text: str, *media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": text}, *media]}]


async def give(gateway: Gateway, tenant: Tenant, bps: int, *, only_endpoint: bool = False) -> Discount:
    """A discount from now on, known to every worker."""
    endpoint_id = tenant.endpoint_id if only_endpoint else None
    async with gateway.pool() as pool:
        given = await set_discount(pool, org_id=tenant.org_id, endpoint_id=endpoint_id, bps=bps)
    await until_charged_with(gateway, tenant, bps)
    return given


async def until_charged_with(gateway: Gateway, tenant: Tenant, bps: int) -> None:
    """Until requests, whichever worker takes them, have this discount."""
    seen = 0
    async with asyncio.timeout(20):
        while seen < 8:
            answer = await gateway.chat(tenant, max_tokens=1)
            receipt = await gateway.receipt(answer.request_id)
            seen = seen + 1 if receipt.discount_bps == bps else 0


async def charged(gateway: Gateway, answer: Answer) -> Any:
    assert answer.status == 200, answer.raw
    receipt = await gateway.receipt(answer.request_id)
    assert receipt.charged_nanos <= receipt.held_nanos
    return receipt


@pytest.mark.parametrize("stream", [False, True])
async def test_a_discount_is_off_every_charge_from_its_moment_on(gateway: Gateway, stream: bool) -> None:
    """Whole and streamed, to the nano; the endpoint's own counts; an end is an end; all of it audits."""
    tenant = await gateway.tenant(rates=RATES)
    for bps, only_endpoint in ((1_250, False), (333, True), (10_000, True)):
        await give(gateway, tenant, bps, only_endpoint=only_endpoint)
        answer = await gateway.chat(tenant, stream=stream, sim={"tokens": 17})
        receipt = await charged(gateway, answer)
        assert receipt.discount_bps == bps
        assert receipt.charged_nanos == price_nanos(receipt, bps)
        assert answer.billed_micros == receipt.charged_nanos // 1_000
    async with gateway.pool() as pool:
        await end_discount(pool, org_id=tenant.org_id, endpoint_id=tenant.endpoint_id)
        await end_discount(pool, org_id=tenant.org_id)
    await until_charged_with(gateway, tenant, 0)
    receipt = await charged(gateway, await gateway.chat(tenant, stream=stream))
    assert receipt.charged_nanos == price_nanos(receipt, 0)
    await gateway.wait_quiet()
    await gateway.audit()
    await gateway.audit_by_command()


async def test_who_pays_nothing_needs_no_credit_and_is_metered(gateway: Gateway) -> None:
    """Everything off: answers without a cent on the account, and every token of them is in the books."""
    tenant = await gateway.tenant(rates=RATES, credit_nanos=1_000_000)
    await give(gateway, tenant, 10_000)
    spent = (await gateway.account(tenant.org_id)).spent_nanos
    receipt = await charged(gateway, await gateway.chat(tenant, stream=True, max_tokens=4_000, sim={"tokens": 2_500}))
    assert {line.meter: line.quantity for line in receipt.lines}[Meter.COMPLETION] == 2_500
    assert (receipt.held_nanos, receipt.charged_nanos) == (0, 0)
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos == spent


async def test_a_discount_makes_credit_reach_further(gateway: Gateway) -> None:
    """Half off: a stream that runs away gets two tokens for the price of one, down to the last half."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=100_000)
    await give(gateway, tenant, 5_000)
    await gateway.wait_quiet()
    tokens = await gateway.balance_nanos(tenant.org_id) // 500
    assert tokens > 100
    answer = await gateway.chat(tenant, stream=True, max_tokens=7, sim={"tokens": 5_000, "overrun": True, "itl_ms": 0})
    assert answer.deltas == tokens
    receipt = await charged(gateway, answer)
    assert (receipt.outcome, receipt.charged_nanos) == ("length", tokens * 500)
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).available_nanos < 500


async def test_what_runs_keeps_the_discount_it_began_with(gateway: Gateway) -> None:
    """Ended in the middle of a stream, the discount is off this stream's charge and off none that begins after it."""
    tenant = await gateway.tenant(rates=BY_TOKEN)
    await give(gateway, tenant, 4_000)
    running = asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 100, "itl_ms": 40}))
    await asyncio.sleep(0.5)
    async with gateway.pool() as pool:
        await end_discount(pool, org_id=tenant.org_id)
    await until_charged_with(gateway, tenant, 0)
    assert not running.done(), "the change has to come while the stream runs"
    receipt = await charged(gateway, await running)
    assert (receipt.discount_bps, receipt.charged_nanos) == (4_000, 100 * 600)
    await gateway.wait_quiet()
    await gateway.audit()


async def test_a_discount_and_a_price_begin_at_the_moment_that_was_set(gateway: Gateway) -> None:
    """Both are known to the workers before their time, and count from it on without a word more."""
    tenant = await gateway.tenant(rates=BY_TOKEN)
    begin = datetime.now(UTC) + timedelta(seconds=3)
    async with gateway.books() as (ledger, _), gateway.pool() as pool:
        dearer = await ledger.set_price(tenant.endpoint_id, {Meter.COMPLETION: 3_000_000_000}, begin)
        await set_discount(pool, org_id=tenant.org_id, bps=5_000, effective_from=begin)
    before = await charged(gateway, await gateway.chat(tenant, max_tokens=2))
    if before.started_at < begin:
        assert (before.discount_bps, before.charged_nanos) == (0, 2_000)
    await asyncio.sleep((begin - datetime.now(UTC)).total_seconds() + 0.1)
    for _ in range(4):
        receipt = await charged(gateway, await gateway.chat(tenant, max_tokens=2))
        assert (receipt.price_card_id, receipt.discount_bps, receipt.charged_nanos) == (dearer.id, 5_000, 3_000)


@pytest.mark.parametrize("stream", [False, True])
async def test_images_and_seconds_of_audio_are_charged(gateway: Gateway, stream: bool) -> None:
    """Two images, one piece of 1.2 s and one of 2 s: two and four units, held for and charged; failed work is free."""
    tenant = await gateway.tenant(rates=BY_MEDIUM)
    messages = said("What is that?", PICTURE, sound(1.2), PICTURE, sound(2))
    body = chat_body(tenant, stream=stream, sim={"tokens": 5}) | {"messages": messages}
    receipt = await charged(gateway, await gateway.post("/v1/chat/completions", tenant.key, body))
    used = {line.meter: line.quantity for line in receipt.lines}
    assert (used[Meter.IMAGE], used[Meter.AUDIO_SECOND], used[Meter.COMPLETION]) == (2, 4, 5)
    assert receipt.charged_nanos == 2 * IMAGE_NANOS + 4 * SECOND_NANOS + 1
    failed = await gateway.post("/v1/chat/completions", tenant.key, body | {"sim": {"fail": "empty"}})
    assert (await gateway.receipt(failed.request_id)).charged_nanos == 0
    await give(gateway, tenant, 2_500)
    receipt = await charged(gateway, await gateway.post("/v1/chat/completions", tenant.key, body))
    assert receipt.charged_nanos == (2 * IMAGE_NANOS + 4 * SECOND_NANOS) * 3 // 4 + 1
    await gateway.wait_quiet()
    await gateway.audit()


async def test_an_image_needs_its_credit_before_the_work(gateway: Gateway) -> None:
    """With credit for one image, two are 402 and the engine never sees them; one is answered."""
    tenant = await gateway.tenant(rates=BY_MEDIUM, credit_nanos=IMAGE_NANOS + 1)
    body = chat_body(tenant, max_tokens=3, tag="dear picture")
    two = await gateway.post("/v1/chat/completions", tenant.key, body | {"messages": said("Look", PICTURE, PICTURE)})
    assert (two.status, two.code) == (402, "insufficient_credits")
    assert await gateway.sim_records(tag="dear picture") == []
    one = await gateway.post("/v1/chat/completions", tenant.key, body | {"messages": said("Look", PICTURE)})
    assert (await charged(gateway, one)).charged_nanos == IMAGE_NANOS + 1


async def test_a_stream_left_in_the_middle_pays_for_its_images(gateway: Gateway) -> None:
    """The picture was seen for the first word already; before it nothing is charged."""
    tenant = await gateway.tenant(rates=BY_MEDIUM)
    body = chat_body(tenant, stream=True, sim={"tokens": 500, "itl_ms": 25}) | {"messages": said("Look", PICTURE)}
    answer = await gateway.post("/v1/chat/completions", tenant.key, body, leave_when=lambda seen: seen.deltas >= 3)
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.outcome, receipt.charged_nanos) == ("abandoned", IMAGE_NANOS + 1)
    late = body | {"sim": {"ttft_ms": 3_000}}
    unseen = await gateway.post("/v1/chat/completions", tenant.key, late, leave_when=lambda seen: bool(seen.headers))
    receipt = await gateway.receipt(unseen.request_id)
    assert (receipt.outcome, receipt.charged_nanos) == ("abandoned", 0)


async def test_audio_without_a_length_is_400_where_audio_costs(gateway: Gateway) -> None:
    """The error names the piece; an endpoint that charges nothing for audio passes it on."""
    priced, free = await gateway.tenant(rates=BY_MEDIUM), await gateway.tenant(rates=RATES)
    broken = {"type": "input_audio", "input_audio": {"data": b64encode(b"no sound").decode(), "format": "mp3"}}
    for tenant, status in ((priced, 400), (free, 200)):
        body = chat_body(tenant) | {"messages": said("Listen", sound(1), broken)}
        answer = await gateway.post("/v1/chat/completions", tenant.key, body)
        assert answer.status == status
        if status == 400:
            assert (answer.code, answer.json["error"]["param"]) == (
                "unreadable_audio",
                "messages[0].content[2].input_audio",
            )
        else:
            used = {line.meter: line.quantity for line in (await gateway.receipt(answer.request_id)).lines}
            assert used[Meter.AUDIO_SECOND] == 1
