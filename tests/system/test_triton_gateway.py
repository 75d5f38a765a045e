"""The whole gateway in front of a real Triton server: what customers see, and what is charged."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from tests.system.harness import Gateway, Tenant
from tests.system.triton import LANGUAGE_MODELS, StartTriton, TritonService, sim
from tests.system.wire import Answer, ask

COMPLETIONS = "/v1/completions"
TEXT = ("chat", "completion")


async def tenant_on(gateway: Gateway, *urls: str, **options: Any) -> Tenant:
    """A tenant whose endpoint's replicas are models on Triton."""
    return await gateway.tenant(urls=list(urls), capabilities=TEXT, **options)


async def complete(gateway: Gateway, tenant: Tenant, prompt: str = "Say something.", **fields: Any) -> Answer:
    """A completion, which needs no chat template."""
    body = {"model": tenant.endpoint_id, "prompt": prompt, "max_tokens": 20, **fields}
    return await gateway.post(COMPLETIONS, tenant.key, body)


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_charged_by_its_tokens(
    gateway: Gateway, triton_server: TritonService, model: str, stream: bool
) -> None:
    """On every interface: the public model, the right end, and a charge for exactly what was generated."""
    tenant = await tenant_on(gateway, triton_server.url(model))
    answer = await complete(gateway, tenant, f"x{sim(tokens=9, itl_ms=1)}", stream=stream)
    assert answer.status == 200, answer.raw
    assert answer.text
    assert model.encode() not in answer.raw
    chunks = answer.chunks if stream else [answer.json]
    assert {chunk["model"] for chunk in chunks} == {tenant.endpoint_id}
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos > 0


async def test_a_field_that_cannot_be_honoured_is_a_400_that_costs_nothing(
    gateway: Gateway, triton_server: TritonService
) -> None:
    """It is named, with a stable code; a name that nobody knows does not become a code."""
    tenant = await tenant_on(gateway, triton_server.url("llmapi"))
    for fields, param, code in (
        ({"min_p": 0.5}, "min_p", "min_p_unsupported"),
        ({"logprobs": 2}, "logprobs", "logprobs_unsupported"),
        ({"colour": "red"}, "colour", "parameter_unsupported"),
        ({"n": 2}, "n", "n_unsupported"),
    ):
        answer = await complete(gateway, tenant, **fields)
        assert (answer.status, answer.code, answer.json["error"]["param"]) == (400, code, param)
        assert answer.json["error"]["type"] == "invalid_request_error"
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos == 0


async def test_a_hang_up_reaches_the_model(gateway: Gateway, triton_server: TritonService) -> None:
    """A client that leaves mid-stream stops the model, and pays for what it was sent."""
    tenant = await tenant_on(gateway, triton_server.url("ensemble"))
    tag = uuid4().hex
    body = {
        "model": tenant.endpoint_id,
        "prompt": f"x{sim(tokens=3000, itl_ms=20, tag=tag)}",
        "max_tokens": 3000,
        "stream": True,
    }
    await ask(
        gateway.settings.port,
        "POST",
        COMPLETIONS,
        key=tenant.key,
        body=body,
        leave_when=lambda answer: answer.deltas >= 3,
    )
    record = await asyncio.to_thread(triton_server.request, "ensemble", tag, state="cancelled")
    assert record["tokens"] < 3000
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_takes_over(
    gateway: Gateway, triton_server: TritonService, start_triton: StartTriton, stream: bool
) -> None:
    """A server that was killed costs the client a moment at most, and nothing twice."""
    other = start_triton(models=["ensemble"])
    tenant = await tenant_on(gateway, triton_server.url("ensemble"), other.url("ensemble"))
    assert {(await complete(gateway, tenant)).status for _ in range(4)} == {200}
    other.kill()
    answers = [await complete(gateway, tenant, stream=stream) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 6
    assert all(answer.text for answer in answers)


async def test_a_full_server_is_said_to_be_full(gateway: Gateway, start_triton: StartTriton) -> None:
    """A queue that takes no more is a 503 with Retry-After, and the replica stays in service."""
    server = start_triton(
        models=["ensemble", "inspect"], parameters={"ensemble": {"max_active": "1", "max_waiting": "0"}}
    )
    tenant = await tenant_on(gateway, server.url("ensemble"))
    long = asyncio.create_task(complete(gateway, tenant, f"x{sim(tokens=20, itl_ms=100)}"))
    async with asyncio.timeout(30):
        while not server.inspect("ensemble")["active"]:
            await asyncio.sleep(0.02)
    answer = await complete(gateway, tenant)
    assert (answer.status, answer.code) == (503, "endpoint_overloaded")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert (await long).status == 200
    assert (await complete(gateway, tenant)).status == 200


async def test_many_streams_and_hang_ups_leave_nothing_behind(gateway: Gateway, triton_server: TritonService) -> None:
    """Streams, some of them left in the middle: afterwards neither side has one, and the audit is clean."""
    tenant = await tenant_on(gateway, triton_server.url("ensemble"))
    body = {"model": tenant.endpoint_id, "prompt": f"x{sim(tokens=30, itl_ms=20)}", "max_tokens": 30, "stream": True}

    async def one(number: int) -> Answer:
        leaves = (lambda answer: answer.deltas >= 3) if number % 5 == 0 else None
        return await ask(gateway.settings.port, "POST", COMPLETIONS, key=tenant.key, body=body, leave_when=leaves)

    answers = await asyncio.gather(*(one(number) for number in range(60)))
    assert {answer.status for answer in answers} == {200}
    assert sum(answer.ended == "whole" for answer in answers) == 48
    await asyncio.to_thread(triton_server.wait_quiet)
    await gateway.wait_quiet()
    await gateway.audit()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_dead_model_process_is_left_for_another_replica(
    gateway: Gateway, triton_server: TritonService, start_triton: StartTriton, stream: bool
) -> None:
    """Its server still calls it ready and says nothing for ever: whoever met it is answered by another replica, and
    soon nobody meets it any more."""
    other = start_triton(models=["ensemble", "inspect"])
    tenant = await tenant_on(gateway, triton_server.url("ensemble"), other.url("ensemble"))
    assert {(await complete(gateway, tenant)).status for _ in range(4)} == {200}
    other.kill_stub("ensemble")
    answers = await asyncio.gather(*(complete(gateway, tenant, stream=stream) for _ in range(24)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.text and answer.ended == "whole" for answer in answers)
    await gateway.wait_quiet()
    await gateway.audit()


async def test_a_server_that_comes_back_is_used_again(gateway: Gateway, start_triton: StartTriton) -> None:
    """A killed server means 503 with Retry-After; when it is there again, the endpoint is."""
    server = start_triton(models=["ensemble"])
    tenant = await tenant_on(gateway, server.url("ensemble"))
    assert (await complete(gateway, tenant)).status == 200
    running = asyncio.create_task(complete(gateway, tenant, f"x{sim(tokens=300, itl_ms=50)}", stream=True))
    await asyncio.sleep(1)
    server.kill()
    broken = await running
    assert broken.chunks[-1]["error"]["code"] in ("backend_error", "endpoint_not_ready")
    answer = await complete(gateway, tenant)
    assert (answer.status, answer.code) == (503, "endpoint_not_ready")
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    server.restart()
    good = 0
    async with asyncio.timeout(60):
        while good < 8:  # on both workers
            good = good + 1 if (await complete(gateway, tenant)).status == 200 else 0
            await asyncio.sleep(0.05)
