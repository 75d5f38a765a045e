"""The official `openai` client against a real gateway: everything a user of it relies on."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from gateway.core.state import EndpointStatus, Limits, Scope
from tests.contract.expect import REQUEST_ID
from tests.services import run_apart
from tests.system.harness import UNICODE_MODEL, Gateway, Tenant

HELLO: Any = [{"role": "user", "content": "Hello there"}]


def client_of(gateway: Gateway, key: str, **options: Any) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, **{"max_retries": 0} | options)


def test_a_whole_answer(gateway: Gateway, tenant: Tenant) -> None:
    """One completion: text, usage, the name that was asked for, and a request id."""
    with client_of(gateway, tenant.key) as client:
        answer = client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, max_tokens=8)
    assert answer.object == "chat.completion"
    assert answer.model == tenant.endpoint_id
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 8
    assert abs(answer.created - time.time()) < 60
    assert REQUEST_ID.fullmatch(answer._request_id or "")
    assert answer.id.startswith("chatcmpl-")


def test_a_stream(gateway: Gateway, tenant: Tenant) -> None:
    """The loop of the documentation: choices[0] of every chunk, no guard needed."""
    with client_of(gateway, tenant.key) as client:
        whole = client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, seed=1)
        stream = client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, seed=1, stream=True)
        with stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_a_stream_with_usage(gateway: Gateway, tenant: Tenant) -> None:
    """include_usage: one more chunk without choices that agrees with the whole answer."""
    with (
        client_of(gateway, tenant.key) as client,
        client.chat.completions.create(
            model=tenant.endpoint_id, messages=HELLO, max_tokens=9, stream=True, stream_options={"include_usage": True}
        ) as stream,
    ):
        chunks = list(stream)
    *others, last = chunks
    assert all(chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 9


async def test_the_async_client(gateway: Gateway, tenant: Tenant) -> None:
    """AsyncOpenAI, whole and streamed, gets what the sync one gets."""
    async with AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=tenant.key, max_retries=0) as client:
        whole = await client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, seed=2)
        stream = await client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, seed=2, stream=True)
        async with stream:
            text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        models = [model.id async for model in client.models.list()]
    assert text == whole.choices[0].message.content
    assert tenant.endpoint_id in models


def test_the_raw_response(gateway: Gateway, tenant: Tenant) -> None:
    """with_raw_response shows the headers: request id and what the call cost."""
    with client_of(gateway, tenant.key) as client:
        raw = client.chat.completions.with_raw_response.create(model=tenant.endpoint_id, messages=HELLO)
        answer = raw.parse()
    assert raw.status_code == 200
    assert raw.headers["content-type"] == "application/json"
    assert raw.request_id == answer._request_id
    receipt = run_apart(gateway.receipt(str(raw.request_id)))
    assert int(raw.headers["x-pareta-billed"]) == receipt.charged_nanos // 1000


def test_the_streaming_response(gateway: Gateway, tenant: Tenant) -> None:
    """with_streaming_response reads the lines as they are on the wire."""
    with (
        client_of(gateway, tenant.key) as client,
        client.chat.completions.with_streaming_response.create(
            model=tenant.endpoint_id, messages=HELLO, max_tokens=3, stream=True
        ) as response,
    ):
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"] == "text/event-stream"
    assert lines[-1] == "data: [DONE]"
    assert lines[-2].startswith(": X-Pareta-Billed: ")


def test_awkward_text_survives(gateway: Gateway) -> None:
    """Line separators and emoji are the same streamed as whole."""
    tenant = run_apart(gateway.tenant(model=UNICODE_MODEL))
    more: Any = {"model": tenant.endpoint_id, "messages": HELLO, "seed": 4, "extra_body": {"sim": {"tokens": 300}}}
    with client_of(gateway, tenant.key) as client:
        whole = client.chat.completions.create(**more)
        with client.chat.completions.create(**more, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content
    assert "\u2028" in text


def test_text_completions_and_embeddings(gateway: Gateway, tenant: Tenant) -> None:
    """The other two routes that cost: text and vectors, both metered."""
    with client_of(gateway, tenant.key) as client:
        text = client.completions.create(model=tenant.endpoint_id, prompt="Once", max_tokens=5)
        vectors = client.embeddings.create(model=tenant.endpoint_id, input=["one", "two"], encoding_format="float")
        packed = client.embeddings.create(model=tenant.endpoint_id, input=["one", "two"])  # base64 on the wire
        raw = client.embeddings.with_raw_response.create(model=tenant.endpoint_id, input="three")
    assert text.choices[0].text
    assert text.usage is not None
    assert text.usage.completion_tokens == 5
    assert [row.index for row in vectors.data] == [0, 1]
    assert vectors.model == tenant.endpoint_id
    assert packed.data[1].embedding == pytest.approx(vectors.data[1].embedding, rel=1e-6)
    receipt = run_apart(gateway.receipt(str(raw.request_id)))
    assert receipt.charged_nanos > 0
    assert receipt.route == "embeddings"


def test_models(gateway: Gateway) -> None:
    """list and retrieve: live endpoints, oldest first, four fields and no more."""
    tenant = run_apart(gateway.tenant())
    newer, _ = run_apart(gateway.endpoint(tenant.org_id, alias="qwen-1"))
    run_apart(gateway.wait_visible(newer, tenant.key))
    with client_of(gateway, tenant.key) as client:
        models = list(client.models.list())
        one = client.models.retrieve(newer)
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("qwen-1")
        raw = json.loads(client.models.with_raw_response.list().content)
        by_alias = client.chat.completions.create(model="qwen-1", messages=HELLO, max_tokens=2)
    assert [model.id for model in models] == [tenant.endpoint_id, newer]
    assert one.id == newer
    assert caught.value.code == "model_not_found"
    assert set(raw) == {"object", "data"}
    assert all(set(item) == {"id", "object", "created", "owned_by"} for item in raw["data"])
    assert {(model.object, model.owned_by) for model in models} == {("model", "pareta")}
    assert by_alias.model == "qwen-1"


def test_errors_become_the_right_classes(gateway: Gateway) -> None:
    """Class, status, code, type, param, message and request id of each refusal."""
    tenant = run_apart(gateway.tenant(limits=Limits(requests_per_minute=1)))
    poor = run_apart(gateway.tenant(credit_nanos=0))
    seed, _ = run_apart(gateway.endpoint(poor.org_id, status=EndpointStatus.SEED))
    stopped, _ = run_apart(gateway.endpoint(poor.org_id, status=EndpointStatus.STOPPED))
    last, _ = run_apart(gateway.endpoint(poor.org_id))
    run_apart(gateway.wait_visible(last, poor.key))
    _, reader = run_apart(gateway.key(tenant.org_id, scope=Scope.READ))
    expected: list[tuple[str, str, dict[str, Any], type[openai.APIStatusError], int, str, str | None]] = [
        ("pareta_sk_x.y", "m", {}, openai.AuthenticationError, 401, "invalid_api_key", None),
        (reader, tenant.endpoint_id, {}, openai.PermissionDeniedError, 403, "forbidden", None),
        (poor.key, "nothing", {}, openai.NotFoundError, 404, "model_not_found", "model"),
        (poor.key, last, {"temperature": 7}, openai.BadRequestError, 400, "temperature_invalid", "temperature"),
        (poor.key, last, {}, openai.APIStatusError, 402, "insufficient_credits", None),
        (poor.key, seed, {}, openai.ConflictError, 409, "seed_endpoint", "model"),
        (poor.key, stopped, {}, openai.InternalServerError, 503, "endpoint_not_ready", "model"),
        (tenant.key, tenant.endpoint_id, {}, openai.RateLimitError, 429, "rate_limited", None),
    ]
    with client_of(gateway, tenant.key) as client:
        client.chat.completions.create(model=tenant.endpoint_id, messages=HELLO, max_tokens=1)
        for key, model, fields, kind, status, code, param in expected:
            for stream in (False, True):
                with pytest.raises(kind) as caught:
                    client.with_options(api_key=key).chat.completions.create(
                        model=model, messages=HELLO, stream=stream, **fields
                    )
                error = caught.value
                assert (error.status_code, error.code, error.param) == (status, code, param)
                assert isinstance(error.body, dict)
                assert str(error.body["message"]) in str(error)
                assert REQUEST_ID.fullmatch(error.request_id or "")


def test_a_failure_in_the_middle_raises(gateway: Gateway) -> None:
    """What came before it was yielded; then APIError with our code, never a silent end."""
    tenant = run_apart(gateway.tenant())
    sim = {"tokens": 9, "fail": "close_mid_stream", "after_tokens": 4}
    pieces: list[str] = []
    with (
        client_of(gateway, tenant.key) as client,
        client.chat.completions.create(
            model=tenant.endpoint_id, messages=HELLO, stream=True, extra_body={"sim": sim}
        ) as stream,
        pytest.raises(openai.APIError) as caught,
    ):
        pieces.extend(chunk.choices[0].delta.content or "" for chunk in stream)
    assert len([piece for piece in pieces if piece]) == 4
    assert (caught.value.code, caught.value.type) == ("backend_error", "server_error")


def test_the_client_recovers_from_a_429_by_itself(gateway: Gateway) -> None:
    """With retries on, the client waits as Retry-After says and succeeds."""
    tenant = run_apart(gateway.tenant(limits=Limits(requests_per_minute=60)))
    with client_of(gateway, tenant.key, max_retries=2) as client:
        for _ in range(62):  # the bucket holds 60 and gets one a second
            raw = client.chat.completions.with_raw_response.create(
                model=tenant.endpoint_id, messages=HELLO, max_tokens=1
            )
            if raw.retries_taken:
                break
    assert raw.retries_taken >= 1
    assert raw.status_code == 200


def test_a_stable_refusal_is_not_tried_again(gateway: Gateway) -> None:
    """x-should-retry: false spares the client two useless requests on a stopped endpoint."""
    tenant = run_apart(gateway.tenant())
    stopped, _ = run_apart(gateway.endpoint(tenant.org_id, status=EndpointStatus.STOPPED))
    last, _ = run_apart(gateway.endpoint(tenant.org_id))
    run_apart(gateway.wait_visible(last, tenant.key))
    time.sleep(1.2)  # a worker publishes its counts twice a second
    before = run_apart(gateway.metric("pareta_errors_total"))
    with client_of(gateway, tenant.key, max_retries=2) as client, pytest.raises(openai.InternalServerError):
        client.with_options(max_retries=2).chat.completions.create(model=stopped, messages=HELLO)
    time.sleep(1.2)
    assert run_apart(gateway.metric("pareta_errors_total")) == before + 1


def test_a_retry_after_a_broken_backend_costs_once(gateway: Gateway) -> None:
    """The first try fails at the backend, the client repeats it: one charge."""
    tenant = run_apart(gateway.tenant(simulators=gateway.simulators[:1], flat_nanos=5_000))
    run_apart(gateway.sim(0, "POST", "/sim/faults", [{"fail": "500", "times": 1}]))
    with client_of(gateway, tenant.key, max_retries=2) as client:
        raw = client.chat.completions.with_raw_response.create(model=tenant.endpoint_id, messages=HELLO)
    assert raw.retries_taken == 1
    run_apart(gateway.wait_quiet())
    assert run_apart(gateway.account(tenant.org_id)).spent_nanos == 5_000
