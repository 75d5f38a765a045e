"""Streams that outgrow their hold: more credit while there is some, then a clean end at what is paid for."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from openai import AsyncOpenAI, OpenAI

from ledger.core.meters import Meter
from tests.system.harness import Gateway, Tenant, chat_body
from tests.system.wire import Answer

TOKEN_NANOS = 1_000
BY_TOKEN = {Meter.COMPLETION: TOKEN_NANOS * 1_000_000}
ODD_RATES = {Meter.PROMPT: 150_000_001, Meter.COMPLETION: 600_000_007, Meter.REQUEST: 1_013}


def runaway(tokens: int, **more: Any) -> dict[str, Any]:
    """An engine that takes no notice of ``max_tokens``."""
    return {"tokens": tokens, "overrun": True, "itl_ms": 0, **more}


def finish_reasons(answer: Answer) -> dict[int, str]:
    """The reason that each choice ended for, which it says once."""
    said = [(c["index"], c["finish_reason"]) for chunk in answer.chunks for c in chunk["choices"] if c["finish_reason"]]
    assert len(dict(said)) == len(said), said
    return dict(said)


async def spent_all(gateway: Gateway, tenant: Tenant) -> None:
    """Nothing is held and nothing is left, here and in the books."""
    await gateway.wait_quiet()
    account = await gateway.account(tenant.org_id)
    assert (account.available_nanos, account.held_nanos) == (0, 0)
    assert await gateway.balance_nanos(tenant.org_id) == 0


@pytest.mark.parametrize("itl_ms", [0, 1])
async def test_a_stream_that_outgrows_its_hold_goes_on_while_there_is_credit(gateway: Gateway, itl_ms: int) -> None:
    """Sixty times the tokens that were held for: no cut, one finish, and every token is charged and covered."""
    tenant = await gateway.tenant(rates=BY_TOKEN)
    answer = await gateway.chat(tenant, stream=True, max_tokens=5, sim=runaway(300, itl_ms=itl_ms))
    assert answer.events[-1] == "[DONE]"
    assert answer.deltas == 300
    assert finish_reasons(answer) == {0: "stop"}
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.shortfall_nanos) == (300 * TOKEN_NANOS, 0)
    assert receipt.held_nanos >= receipt.charged_nanos
    assert (receipt.outcome, receipt.source) == ("finished", "reported")
    await gateway.wait_quiet()
    await gateway.audit()


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("itl_ms", [0, 1])
async def test_a_stream_ends_cleanly_at_the_last_token_that_is_paid_for(
    gateway: Gateway, include_usage: bool, itl_ms: int
) -> None:
    """Credit for fifty tokens: they come, then ``length``, usage, the end. The engine stops, the account is empty."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=50 * TOKEN_NANOS)
    tag = uuid4().hex
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    answer = await gateway.chat(
        tenant, stream=True, max_tokens=10, tag=tag, sim=runaway(20_000, itl_ms=itl_ms), **options
    )
    assert (answer.status, answer.ended, answer.events[-1]) == (200, "whole", "[DONE]")
    assert answer.deltas == 50
    assert finish_reasons(answer) == {0: "length"}
    assert len({(c["id"], c["model"], c["created"], c["object"]) for c in answer.chunks}) == 1
    assert answer.billed_micros == 50
    usage = [chunk["usage"]["completion_tokens"] for chunk in answer.chunks if chunk.get("usage")]
    assert usage == ([50] if include_usage else [])
    assert (await gateway.sim_record(tag=tag, state="cancelled"))["disconnected"]
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.held_nanos, receipt.shortfall_nanos) == (50_000, 50_000, 0)
    assert (receipt.outcome, receipt.source) == ("length", "reported")
    await spent_all(gateway, tenant)
    assert (await gateway.chat(tenant)).status == 402
    await gateway.audit()


async def test_the_prompt_is_paid_first_and_not_a_token_is_given_away(gateway: Gateway) -> None:
    """With a price for everything, the charge leaves less in the account than one more token costs."""
    tenant = await gateway.tenant(rates=ODD_RATES, credit_nanos=700_000)
    answer = await gateway.chat(tenant, stream=True, max_tokens=3, sim=runaway(5_000))
    assert finish_reasons(answer) == {0: "length"}
    receipt = await gateway.receipt(answer.request_id)
    quantities = {line.meter: line.quantity for line in receipt.lines}
    assert quantities[Meter.COMPLETION] == answer.deltas > 500
    millionths = quantities[Meter.PROMPT] * 150_000_001 + answer.deltas * 600_000_007
    assert receipt.charged_nanos == 1_013 + -(-millionths // 1_000_000)
    assert 0 <= 700_000 - receipt.charged_nanos <= 600
    assert receipt.shortfall_nanos == 0


async def test_every_choice_of_a_completion_gets_its_end(gateway: Gateway) -> None:
    """Two choices share credit for thirty-one tokens: both say ``length``, and the tokens of both are counted."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=31 * TOKEN_NANOS)
    body = {"model": tenant.endpoint_id, "prompt": "Twice.", "n": 2, "max_tokens": 4, "stream": True}
    more = {"stream_options": {"include_usage": True}, "sim": runaway(400, itl_ms=1)}
    answer = await gateway.post("/v1/completions", tenant.key, body | more)
    assert answer.events[-1] == "[DONE]"
    assert finish_reasons(answer) == {0: "length", 1: "length"}
    assert answer.deltas == 31
    assert {chunk["object"] for chunk in answer.chunks} == {"text_completion"}
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 31
    assert (await gateway.receipt(answer.request_id)).charged_nanos == 31 * TOKEN_NANOS
    await spent_all(gateway, tenant)


async def test_an_engine_that_reports_no_usage_is_counted(gateway: Gateway) -> None:
    """Without a word about usage the deltas count, and the usage chunk says what was counted."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=40 * TOKEN_NANOS)
    sim = runaway(900, itl_ms=1, fail="no_usage")
    answer = await gateway.chat(tenant, stream=True, max_tokens=4, stream_options={"include_usage": True}, sim=sim)
    assert finish_reasons(answer) == {0: "length"}
    assert answer.deltas == 40
    assert answer.chunks[-1]["usage"]["completion_tokens"] == 40
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.source) == (40 * TOKEN_NANOS, "counted")


async def test_reasoning_that_outgrows_its_hold_is_extended_and_cut_like_text(gateway: Gateway) -> None:
    """An engine that thinks for longer than it was told pays for its thoughts, and stops thinking without credit."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=100 * TOKEN_NANOS)
    answer = await gateway.chat(tenant, stream=True, max_tokens=6, sim=runaway(20, reasoning_tokens=60))
    assert finish_reasons(answer) == {0: "stop"}
    assert (await gateway.receipt(answer.request_id)).charged_nanos == 80 * TOKEN_NANOS
    await gateway.wait_quiet()
    answer = await gateway.chat(tenant, stream=True, max_tokens=6, sim=runaway(20, reasoning_tokens=60))
    assert finish_reasons(answer) == {0: "length"}
    thoughts = [c["delta"].get("reasoning_content") for chunk in answer.chunks for c in chunk["choices"]]
    assert len(list(filter(None, thoughts))) == 20
    await spent_all(gateway, tenant)


async def test_the_official_client_sees_an_ordinary_end(gateway: Gateway) -> None:
    """``for chunk in stream`` ends by itself after ``finish_reason == "length"`` and the usage; sync and async."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=60 * TOKEN_NANOS)
    asked: dict[str, Any] = chat_body(tenant, max_tokens=5) | {
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"sim": runaway(1_000)},
    }

    def run() -> list[Any]:
        with OpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0) as client:
            return list(client.chat.completions.create(**asked))

    chunks = await asyncio.to_thread(run)
    await gateway.wait_quiet()
    await gateway.top_up(tenant.org_id, 60 * TOKEN_NANOS)
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0) as client:
        again = [chunk async for chunk in await client.chat.completions.create(**asked)]
    for seen in (chunks, again):
        assert sum(bool(c.choices and c.choices[0].delta.content) for c in seen) == 60
        assert [c.choices[0].finish_reason for c in seen if c.choices][-1] == "length"
        assert seen[-1].usage.completion_tokens == 60
    await spent_all(gateway, tenant)


async def test_many_streams_share_the_last_credit_to_the_nano(gateway: Gateway) -> None:
    """Ten runaway streams and credit for 400 tokens: exactly 400 tokens are delivered, and all ten end cleanly."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=400 * TOKEN_NANOS)
    sim = runaway(5_000, itl_ms=2, ttft_ms=200)
    answers = await asyncio.gather(
        *(gateway.chat(tenant, stream=True, max_tokens=4, sim=sim, tag="share") for _ in range(10))
    )
    assert [finish_reasons(answer) for answer in answers] == [{0: "length"}] * 10
    assert all(answer.events[-1] == "[DONE]" for answer in answers)
    assert sum(answer.deltas for answer in answers) == 400
    await spent_all(gateway, tenant)
    await gateway.audit()


async def test_a_counter_that_does_not_answer_ends_the_stream_at_its_hold(gateway: Gateway) -> None:
    """Without an answer in time nothing is given away: what is held is delivered, and charged when Redis is back."""
    tenant = await gateway.tenant(rates=BY_TOKEN)
    sim = runaway(500, itl_ms=20)
    running = asyncio.create_task(gateway.chat(tenant, stream=True, max_tokens=30, sim=sim))
    await asyncio.sleep(0.3)
    gateway.pause_redis()
    try:
        answer = await running
    finally:
        gateway.resume_redis()
    assert (answer.deltas, answer.events[-1]) == (30, "[DONE]")
    assert finish_reasons(answer) == {0: "length"}
    await gateway.wait_quiet()
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.shortfall_nanos) == (30 * TOKEN_NANOS, 0)


async def test_a_cut_answer_is_kept_under_its_idempotency_key(gateway: Gateway) -> None:
    """The same key gets the same answer with the same end, and no second charge."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=30 * TOKEN_NANOS)
    body = chat_body(tenant, stream=True, max_tokens=3, sim=runaway(300))
    headers = {"idempotency-key": uuid4().hex}
    first = await gateway.post("/v1/chat/completions", tenant.key, body, headers=headers)
    await gateway.wait_quiet()
    again = await gateway.post("/v1/chat/completions", tenant.key, body, headers=headers)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.events == first.events
    assert finish_reasons(again) == {0: "length"}
    assert again.billed_micros == 0
    await spent_all(gateway, tenant)


async def test_a_flat_price_never_ends_an_answer(gateway: Gateway) -> None:
    """A request whose tokens are free runs to its end on the last credit."""
    tenant = await gateway.tenant(flat_nanos=7_001, credit_nanos=7_001)
    answer = await gateway.chat(tenant, stream=True, max_tokens=4, sim=runaway(3_000))
    assert answer.deltas == 3_000
    assert finish_reasons(answer) == {0: "stop"}
    await spent_all(gateway, tenant)


async def test_a_stream_is_extended_under_the_card_of_its_hold(gateway: Gateway) -> None:
    """A price a hundred times as high, set in the middle, neither ends nor changes what runs."""
    tenant = await gateway.tenant(rates=BY_TOKEN, credit_nanos=250 * TOKEN_NANOS)
    sim = runaway(200, itl_ms=10)
    running = asyncio.create_task(gateway.chat(tenant, stream=True, max_tokens=5, sim=sim))
    await asyncio.sleep(0.4)
    await gateway.price(tenant.endpoint_id, {Meter.COMPLETION: 100 * TOKEN_NANOS * 1_000_000})
    answer = await running
    assert answer.deltas == 200
    receipt = await gateway.receipt(answer.request_id)
    assert tenant.card is not None
    assert (receipt.price_card_id, receipt.charged_nanos) == (tenant.card.id, 200 * TOKEN_NANOS)


async def test_a_client_that_leaves_a_runaway_stream_pays_for_what_it_got(gateway: Gateway) -> None:
    """Beyond its hold as within it: abandoned, charged for what was delivered, all else given back."""
    tenant = await gateway.tenant(rates=BY_TOKEN)
    answer = await gateway.post(
        "/v1/chat/completions",
        tenant.key,
        chat_body(tenant, stream=True, max_tokens=5, sim=runaway(5_000, itl_ms=2)),
        leave_when=lambda seen: seen.deltas >= 100,
    )
    receipt = await gateway.receipt(answer.request_id)
    assert receipt.outcome == "abandoned"
    assert 100 <= receipt.charged_nanos // TOKEN_NANOS < 5_000
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).held_nanos == 0
