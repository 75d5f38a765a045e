"""Idempotency-Key on the whole gateway: a POST that is sent again is answered again and charged once."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.services import run_apart
from tests.system.harness import Gateway, Tenant

HELLO: Any = [{"role": "user", "content": "Hello there"}]


def client_of(gateway: Gateway, tenant: Tenant, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, **{"max_retries": 0} | options)


def spent(gateway: Gateway, tenant: Tenant) -> int:
    run_apart(gateway.wait_quiet())
    return run_apart(gateway.account(tenant.org_id)).spent_nanos


def test_a_repeat_gets_the_same_answer_and_no_charge(gateway: Gateway, tenant: Tenant) -> None:
    """Same key, same body: the first answer again, marked as a replay, billed 0."""
    before = spent(gateway, tenant)
    with client_of(gateway, tenant) as client:
        headers = {"Idempotency-Key": "whole-1"}
        call = client.chat.completions.with_raw_response.create
        first = call(model=tenant.endpoint_id, messages=HELLO, max_tokens=9, extra_headers=headers)
        paid = spent(gateway, tenant) - before
        again = call(model=tenant.endpoint_id, messages=HELLO, max_tokens=9, extra_headers=headers)
    assert paid > 0
    assert again.text == first.text
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-pareta-billed"] == "0"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert spent(gateway, tenant) - before == paid


def test_a_stream_is_streamed_again(gateway: Gateway, tenant: Tenant) -> None:
    """The recorded events come again, chunk for chunk, usage included."""

    def run() -> list[dict[str, Any]]:
        with client_of(gateway, tenant) as client:
            stream = client.chat.completions.create(
                model=tenant.endpoint_id,
                messages=HELLO,
                max_tokens=12,
                stream=True,
                stream_options={"include_usage": True},
                extra_headers={"Idempotency-Key": "stream-1"},
            )
            return [chunk.model_dump() for chunk in stream]

    first = run()
    paid = spent(gateway, tenant)
    assert run() == first
    assert spent(gateway, tenant) == paid


def test_another_body_under_the_same_key_is_refused(gateway: Gateway, tenant: Tenant) -> None:
    """422, which no client retries, with a code that says why."""
    with client_of(gateway, tenant) as client:
        headers = {"Idempotency-Key": "reused-1"}
        client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, max_tokens=2, extra_headers=headers)
        with pytest.raises(openai.UnprocessableEntityError) as caught:
            client.chat.completions.create(
                model=tenant.endpoint_id, messages=HELLO, max_tokens=3, extra_headers=headers
            )
    assert caught.value.code == "idempotency_key_reused"


async def test_a_repeat_of_a_running_request_waits(gateway: Gateway, tenant: Tenant) -> None:
    """409 with Retry-After while the first runs; the default client retries and gets the first one's answer."""
    body = {"model": tenant.endpoint_id, "messages": HELLO, "max_tokens": 4, "sim": {"ttft_ms": 1200}}
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0) as client:
        headers = {"Idempotency-Key": "running-1"}
        running = asyncio.create_task(
            client.post("/chat/completions", body=body, cast_to=object, options={"headers": headers})
        )
        await asyncio.sleep(0.4)
        with pytest.raises(openai.ConflictError) as caught:
            await client.post("/chat/completions", body=body, cast_to=object, options={"headers": headers})
        assert caught.value.code == "busy"
        assert caught.value.response.headers["retry-after"] == "1"
        patient = client.with_options(max_retries=4)
        again = await patient.post("/chat/completions", body=body, cast_to=object, options={"headers": headers})
        assert again == await running


async def test_failed_work_gives_the_key_back(gateway: Gateway, tenant: Tenant) -> None:
    """After a failure the same key works again, and only the answer that came is charged."""
    await gateway.wait_quiet()
    before = (await gateway.account(tenant.org_id)).spent_nanos
    body: dict[str, Any] = {"model": tenant.endpoint_id, "messages": HELLO, "max_tokens": 4}
    headers = {"Idempotency-Key": "failed-1"}
    await gateway.faults({"fail": "500"})
    async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0) as client:
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(**body, extra_headers=headers)
        await gateway.faults()
        answer = await client.with_options(max_retries=5).chat.completions.create(**body, extra_headers=headers)
    assert answer.choices[0].message.content
    await gateway.wait_quiet()
    receipt = await gateway.receipt(answer._request_id or "")
    assert (await gateway.account(tenant.org_id)).spent_nanos - before == receipt.charged_nanos


@pytest.mark.parametrize("key", [" ", "x" * 300, "sp ace"])
async def test_an_unusable_key_is_named(gateway: Gateway, tenant: Tenant, key: str) -> None:
    """A key that cannot be kept is a 400 that names the header, not a request without protection."""
    answer = await gateway.post(
        "/v1/chat/completions",
        tenant.key,
        {"model": tenant.endpoint_id, "messages": HELLO},
        headers={"Idempotency-Key": key},
    )
    assert answer.status == 400
