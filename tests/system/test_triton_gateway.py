"""The whole gateway in front of a real Triton server: what customers see, and what is charged."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import openai
import pytest
from pydantic import BaseModel

from gateway.stack.demo_model import write_demo_model
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
    # One that leaves may have been told all of it in one breath.
    assert all(answer.ended == "whole" for number, answer in enumerate(answers) if number % 5)
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


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a ChatML template with tools and a tokenizer trained here."""
    return str(write_demo_model(tmp_path_factory.mktemp("models") / "demo"))


CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def client_of(gateway: Gateway, tenant: Tenant) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0)


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
async def test_a_chat_is_written_with_the_model_s_template(
    gateway: Gateway, triton_server: TritonService, model_folder: str, model: str
) -> None:
    """The openai client sees an ordinary stream, its usage is exact, and the model got the prompt as it was trained."""
    tenant = await tenant_on(gateway, triton_server.url(model), model_folder=model_folder)
    tag = uuid4().hex
    async with client_of(gateway, tenant) as client:
        stream = await client.chat.completions.create(
            model=tenant.endpoint_id,
            messages=[
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": f"Hi {sim(text='Grüße, 東京!', split_utf8=True, itl_ms=1, tag=tag)}"},
            ],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text.strip() == "Grüße, 東京!"
    assert [c.finish_reason for chunk in chunks for c in chunk.choices if c.finish_reason] == ["stop"]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.prompt_tokens > 0
    assert usage.completion_tokens > 0
    record = await asyncio.to_thread(triton_server.request, model, tag, state="finished")
    if model in ("ensemble", "vllm"):  # the others don't count; the tokenizer of the folder does
        assert usage.completion_tokens == record["tokens"]
    [prompt] = record["inputs"]["text_input"]["data"]
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi ")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
@pytest.mark.parametrize("stream", [False, True])
async def test_tools_are_called(
    gateway: Gateway, triton_server: TritonService, model_folder: str, model: str, stream: bool
) -> None:
    """What the model writes as a call is one for the openai client, streamed and whole."""
    tenant = await tenant_on(gateway, triton_server.url(model), model_folder=model_folder)
    asked: dict[str, Any] = {
        "model": tenant.endpoint_id,
        "messages": [{"role": "user", "content": f"Weather? {sim(text=CALL, itl_ms=1)}"}],
        "tools": [WEATHER],
        "max_tokens": 200,
    }
    async with client_of(gateway, tenant) as client:
        if stream:
            async with client.chat.completions.stream(**asked) as events:
                choice = (await events.get_final_completion()).choices[0]
        else:
            choice = (await client.chat.completions.create(**asked)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments) == {"city": "Zürich"}


class Place(BaseModel):
    city: str


@pytest.mark.parametrize("model", ["ensemble", "vllm"])
async def test_a_schema_binds_the_answer(
    gateway: Gateway, triton_server: TritonService, model_folder: str, model: str
) -> None:
    """The client's structured output reaches the model's guided decoding; a model without it refuses by name."""
    tag = uuid4().hex
    said = sim(text='{"city": "Zürich"}', itl_ms=1, tag=tag)
    tenant = await tenant_on(gateway, triton_server.url(model), model_folder=model_folder)
    async with client_of(gateway, tenant) as client:
        answer = await client.chat.completions.parse(
            model=tenant.endpoint_id,
            messages=[{"role": "user", "content": f"Where? {said}"}],
            response_format=Place,
        )
    assert answer.choices[0].message.parsed == Place(city="Zürich")
    record = await asyncio.to_thread(triton_server.request, model, tag)
    assert "city" in json.dumps(record["inputs"])


async def test_a_prompt_that_does_not_fit_is_said_so(
    gateway: Gateway, triton_server: TritonService, model_folder: str
) -> None:
    """It is counted before the model is asked: a 400 that names the messages, even when it is long enough to be
    counted in a thread."""
    bounds = {"context_tokens": 1000, "max_output_tokens": 500}
    tenant = await tenant_on(gateway, triton_server.url("ensemble"), model_folder=model_folder, **bounds)
    body = {"model": tenant.endpoint_id, "messages": [{"role": "user", "content": "word " * 20_000}]}
    answer = await gateway.post("/v1/chat/completions", tenant.key, body)
    assert (answer.status, answer.code) == (400, "context_length_exceeded")
