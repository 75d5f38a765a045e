"""What reaches the engine and what comes back: the caller's wishes go through, the engine's identity does not."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from tests.contract.expect import reveals_nothing
from tests.system.harness import MODEL, TOKEN_RATES, Gateway, Tenant
from tests.system.wire import Answer

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


async def asked(gateway: Gateway, tenant: Tenant, **fields: Any) -> tuple[Answer, dict[str, Any]]:
    """Ask, and see what the engine was asked."""
    tag = uuid4().hex
    answer = await gateway.chat(tenant, tag=tag, **fields)
    assert answer.status == 200, answer.raw
    record = await gateway.sim_record(tag=tag, state="finished")
    assert record["headers"].get("authorization") is None, "a customer's key never reaches a backend"
    return answer, record["body"]


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 1.5, "top_p": 0.5},
        {"seed": 12345},
        {"stop": ["the", "a"]},
        {"stop": "of"},
        {"frequency_penalty": -1.5, "presence_penalty": 0.5},
        {"logit_bias": {"50256": -100}},
        {"logprobs": True, "top_logprobs": 3},
        {"n": 4},
        {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False},
        {"response_format": {"type": "json_object"}},
        {"reasoning_effort": "low"},
        {"top_k": 5, "min_p": 0.1, "my_own_field": {"deep": [1, 2]}},
    ],
    ids=lambda fields: "+".join(fields),
)
@pytest.mark.parametrize("stream", [False, True])
async def test_fields_go_through(gateway: Gateway, tenant: Tenant, fields: dict[str, Any], stream: bool) -> None:
    """Known fields, and unknown ones for engines that tolerate them, arrive as they were sent."""
    answer, body = await asked(gateway, tenant, stream=stream, **fields)
    reveals_nothing(answer)
    # The simulator does not keep prompts, and tools are a part of them; the next tests see what became of those.
    assert {name: body.get(name) for name in fields if name != "tools"} == {
        n: fields[n] for n in fields if n != "tools"
    }
    assert body["model"] == MODEL
    assert body["stream"] is stream


async def test_max_tokens_bounds_the_answer(gateway: Gateway, tenant: Tenant) -> None:
    """Under both of its names; reaching it is finish_reason length, ending before it is stop."""
    for name in ("max_tokens", "max_completion_tokens"):
        answer, body = await asked(gateway, tenant, **{name: 5})
        assert answer.json["usage"]["completion_tokens"] == 5
        assert answer.json["choices"][0]["finish_reason"] == "length"
        assert body["max_tokens"] == 5
    answer, _ = await asked(gateway, tenant, max_tokens=50, sim={"tokens": 5})
    assert answer.json["choices"][0]["finish_reason"] == "stop"


async def test_stop_strings_are_not_in_the_answer(gateway: Gateway, tenant: Tenant) -> None:
    """The answer ends before the stop string, streamed or not, and which one it was stays inside."""
    for stream in (False, True):
        answer, _ = await asked(
            gateway, tenant, stream=stream, stop=["three"], sim={"text": "one two three four"}, max_tokens=20
        )
        assert answer.text == "one two "
        reveals_nothing(answer)


async def test_tool_calls_come_whole(gateway: Gateway, tenant: Tenant) -> None:
    """A forced call: name and JSON arguments, streamed in pieces that add up to the same."""
    wish: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "seed": 9}
    whole, _ = await asked(gateway, tenant, **wish)
    stream, _ = await asked(gateway, tenant, stream=True, **wish)
    [call] = whole.json["choices"][0]["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["function"]["name"] == "weather"
    assert whole.json["choices"][0]["finish_reason"] == "tool_calls"
    pieces = [
        piece
        for chunk in stream.chunks
        for choice in chunk["choices"]
        for piece in choice["delta"].get("tool_calls", [])
    ]
    assert pieces[0]["function"]["name"] == "weather"
    assert pieces[0]["id"]
    assert "".join(piece["function"].get("arguments", "") for piece in pieces) == call["function"]["arguments"]


async def test_logprobs_come_back(gateway: Gateway, tenant: Tenant) -> None:
    """One entry per token with the alternatives that were asked for, whole and streamed."""
    wish: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "max_tokens": 4, "seed": 1}
    whole, _ = await asked(gateway, tenant, **wish)
    stream, _ = await asked(gateway, tenant, stream=True, **wish)
    tokens = whole.json["choices"][0]["logprobs"]["content"]
    assert len(tokens) == 4
    assert all(len(token["top_logprobs"]) == 2 for token in tokens)
    streamed = [
        token
        for chunk in stream.chunks
        for choice in chunk["choices"]
        for token in (choice.get("logprobs") or {"content": []})["content"]
    ]
    assert streamed == tokens


async def test_reasoning_is_shown_and_metered(gateway: Gateway, tenant: Tenant) -> None:
    """Reasoning tokens come under one name, count in the usage and are charged as completion."""
    for stream in (False, True):
        options = {"stream_options": {"include_usage": True}} if stream else {}
        answer, _ = await asked(gateway, tenant, stream=stream, **options, sim={"reasoning_tokens": 6, "tokens": 4})
        usage = answer.chunks[-1]["usage"] if stream else answer.json["usage"]
        assert usage["completion_tokens"] == 10
        assert usage["completion_tokens_details"] == {"reasoning_tokens": 6}
        receipt = await gateway.receipt(answer.request_id)
        lines = {line.meter.value: line.quantity for line in receipt.lines}
        assert (lines["completion"], lines["reasoning"]) == (4, 6)
        millionths = lines["prompt"] * TOKEN_RATES[_PROMPT] + 10 * TOKEN_RATES[_COMPLETION]
        assert receipt.charged_nanos == -(-millionths // 1_000_000)


_PROMPT, _COMPLETION = tuple(TOKEN_RATES)


@pytest.mark.parametrize(
    "field", ["echo", "prompt_logprobs", "return_token_ids", "priority", "request_id", "kv_transfer_params", "best_of"]
)
async def test_fields_that_reach_inside_are_dropped(gateway: Gateway, tenant: Tenant, field: str) -> None:
    """What would select an engine's internals or unmetered work never arrives there."""
    _, body = await asked(gateway, tenant, **{field: 1})
    assert field not in body


async def test_a_picky_backend_gets_no_unknown_fields(gateway: Gateway) -> None:
    """A backend that is marked so gets only the fields of the schema."""
    tenant = await gateway.tenant(tolerant=False)
    seed = int(uuid4().int % 2**40)
    answer = await gateway.chat(tenant, my_own_field=1, seed=seed)
    assert answer.status == 200
    record = await gateway.sim_record(seed=seed)
    assert "my_own_field" not in record["fields"]


async def test_usage_is_asked_for_upstream_and_kept_from_who_did_not(gateway: Gateway, tenant: Tenant) -> None:
    """Every stream carries continuous usage inside the house; the public one shows it only when asked."""
    answer, body = await asked(gateway, tenant, stream=True)
    assert body["stream_options"] == {"include_usage": True, "continuous_usage_stats": True}
    assert b"usage" not in answer.body


async def test_images_in_a_message(gateway: Gateway, tenant: Tenant) -> None:
    """Content parts with a data URL pass; an address that an engine would fetch does not."""
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
    ]
    assert (await gateway.chat(tenant, messages=[{"role": "user", "content": parts}])).status == 200
    parts[1] = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
    answer = await gateway.chat(tenant, messages=[{"role": "user", "content": parts}])
    assert (answer.status, answer.json["error"]["param"]) == (400, "messages[0].content[1].image_url.url")


async def test_whole_answers_have_only_known_fields(gateway: Gateway, tenant: Tenant) -> None:
    """The exact set of fields of a chat completion, and none of the engine's."""
    answer, _ = await asked(gateway, tenant)
    assert set(answer.json) == {"id", "object", "created", "model", "choices", "usage"}
    assert set(answer.json["choices"][0]) == {"index", "logprobs", "finish_reason", "message"}
    assert set(answer.json["choices"][0]["message"]) == {"role", "content"}
    assert set(answer.json["usage"]) == {"prompt_tokens", "completion_tokens", "total_tokens"}
    reveals_nothing(answer)
