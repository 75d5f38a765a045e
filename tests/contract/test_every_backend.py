"""One contract for all backends: an openai client cannot tell which kind of engine stands behind an endpoint.

The same tests run over the simulator's HTTP interface and over the three interfaces of models on a real Triton server.
"""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
from openai import AsyncOpenAI, pydantic_function_tool
from pydantic import BaseModel

from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from tests.contract.expect import is_error, reveals_nothing
from tests.contract.flavours import Flavour
from tests.system.wire import Answer, ask

TEXT = "Größe: 42 µm 🦜🦜, then “plain” words\nand a new line."


class Weather(BaseModel):
    """Look up the weather of a city."""

    city: str
    days: int


class Letter(BaseModel):
    """Something small."""

    subject: str
    urgent: bool


def client_of(flavour: Flavour) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{flavour.gateway.base_url}/v1", api_key=flavour.tenant.key, max_retries=0)


def usage_of(answer: Answer) -> dict[str, Any]:
    usage: dict[str, Any] = answer.chunks[-1]["usage"] if answer.is_stream else answer.json["usage"]
    return usage


def wish(stream: bool, **fields: Any) -> dict[str, Any]:
    """Fields of a request that shall show its usage."""
    return fields | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})


async def test_the_stream_has_one_form(flavour: Flavour) -> None:
    """A role chunk, text, an empty delta with the reason, the usage, [DONE]; one id, and nothing of the engine."""
    answer = await flavour.chat(steer={"tokens": 6}, **wish(True, seed=5))
    assert answer.status == 200, answer.raw
    reveals_nothing(answer)
    *chunks, last = answer.chunks
    assert answer.events[-1] == "[DONE]"
    assert {chunk["id"] for chunk in answer.chunks} == {last["id"]}
    assert {chunk["model"] for chunk in answer.chunks} == {flavour.tenant.endpoint_id}
    assert {chunk["object"] for chunk in answer.chunks} == {"chat.completion.chunk"}
    assert all(len(chunk["choices"]) == 1 and chunk["usage"] is None for chunk in chunks)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert all(set(choice["delta"]) == {"content"} and choice["delta"]["content"] for choice in choices[1:-1])
    assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == flavour.tokens(6, answer.text)


async def test_a_whole_answer_has_only_known_fields(flavour: Flavour) -> None:
    """The exact set of fields of a chat completion."""
    answer = await flavour.chat(steer={"tokens": 6})
    assert set(answer.json) == {"id", "object", "created", "model", "choices", "usage"}
    assert set(answer.json["choices"][0]) == {"index", "logprobs", "finish_reason", "message"}
    assert set(answer.json["choices"][0]["message"]) == {"role", "content"}
    reveals_nothing(answer)


@pytest.mark.parametrize("stream", [False, True])
async def test_every_character_arrives(flavour: Flavour, stream: bool) -> None:
    """Emoji, quotes and line ends come as they were made, streamed or whole."""
    answer = await flavour.chat(steer={"text": TEXT}, **wish(stream))
    assert answer.text == TEXT


@pytest.mark.parametrize("stream", [False, True])
async def test_what_was_used_is_told_and_charged(flavour: Flavour, stream: bool) -> None:
    """The usage is exact, and the receipt charges it at the endpoint's price card."""
    answer = await flavour.chat(steer={"tokens": 11}, **wish(stream, max_tokens=400))
    usage = usage_of(answer)
    completion = usage["completion_tokens"]
    assert completion == flavour.tokens(11, answer.text)
    assert usage["total_tokens"] == usage["prompt_tokens"] + completion
    receipt = await flavour.gateway.receipt(answer.request_id)
    meters = {line.meter: line.quantity for line in receipt.lines}
    assert meters[Meter.COMPLETION] == completion
    assert meters[Meter.PROMPT] + meters.get(Meter.CACHED_PROMPT, 0) == usage["prompt_tokens"]
    assert flavour.tenant.card is not None
    assert receipt.charged_nanos == charge_nanos(flavour.tenant.card, meters)
    assert answer.billed_micros == receipt.charged_nanos // 1000


@pytest.mark.parametrize("stream", [False, True])
async def test_the_bound_is_kept_and_said(flavour: Flavour, stream: bool) -> None:
    """max_tokens under both names: so many tokens, and finish_reason length."""
    for name in ("max_tokens", "max_completion_tokens"):
        answer = await flavour.chat(steer={"tokens": 30}, **wish(stream, **{name: 7}))
        assert usage_of(answer)["completion_tokens"] == 7
        choices = [c for chunk in answer.chunks for c in chunk["choices"]] if stream else answer.json["choices"]
        assert choices[-1]["finish_reason"] == "length"


@pytest.mark.parametrize("stream", [False, True])
async def test_stop_texts_are_cut(flavour: Flavour, stream: bool) -> None:
    """The answer ends before them, also where one is spread over tokens, and no half of one leaks."""
    steer = {"text": "one two three four five"}
    for stop, left in (("three", "one two "), (["o three f", "zzz"], "one tw"), (["nine"], "one two three four five")):
        answer = await flavour.chat(steer=steer, **wish(stream, stop=stop, max_tokens=40))
        assert answer.text == left


async def test_tools_end_to_end(flavour: Flavour) -> None:
    """The openai client's streaming helper gets a typed call, and an answer to the tool's result goes on from there."""
    tool = pydantic_function_tool(Weather, name="weather")
    steer: dict[str, Any] = {"tool_call": True}
    if flavour.triton is not None:
        call = json.dumps({"name": "weather", "arguments": {"city": "Köln", "days": 3}}, ensure_ascii=False)
        steer = {"text": f"<tool_call>\n{call}\n</tool_call>"}
    body = flavour.body("What is the weather?", steer=steer, tools=[tool], max_tokens=200)
    extra = {"extra_body": {"sim": body.pop("sim")}} if "sim" in body else {}
    async with client_of(flavour) as client:
        async with client.chat.completions.stream(**body, **extra) as events:
            answer = await events.get_final_completion()
        whole = await client.chat.completions.create(**body, **extra, seed=1)
        message = answer.choices[0].message
        assert answer.choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls
        assert isinstance(message.tool_calls[0].function.parsed_arguments, Weather)
        if flavour.triton is not None:
            assert message.tool_calls[0].function.parsed_arguments == Weather(city="Köln", days=3)
            assert not message.content
        called: Any = whole.choices[0].message
        assert called.tool_calls[0].function.name == "weather"
        after = await client.chat.completions.create(
            model=flavour.tenant.endpoint_id,
            messages=[
                *body["messages"],
                called.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": '{"sky": "blue"}'},
            ],
            tools=[tool],
            max_tokens=5,
        )
        assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


async def test_structured_output_end_to_end(flavour: Flavour) -> None:
    """The openai client's parse helper gets a typed object where the engine can be guided; else a 400 names it."""
    if "response_format" in flavour.refuses:
        schema = {"type": "json_schema", "json_schema": {"name": "letter", "schema": Letter.model_json_schema()}}
        answer = await flavour.chat(response_format=schema)
        is_error(
            flavour.gateway, answer, 400, "invalid_request_error", "response_format_unsupported", "response_format"
        )
        return
    async with client_of(flavour) as client:
        answer = await client.chat.completions.parse(
            **flavour.body("Write to me.", max_tokens=200), response_format=Letter
        )
    assert isinstance(answer.choices[0].message.parsed, Letter)


@pytest.mark.parametrize("stream", [False, True])
async def test_several_choices(flavour: Flavour, stream: bool) -> None:
    """n answers come apart by their index and are all charged, or are refused by name; never quietly one."""
    answer = await flavour.chat(steer={"tokens": 5}, **wish(stream, n=3, max_tokens=20))
    if "n" in flavour.refuses:
        is_error(flavour.gateway, answer, 400, "invalid_request_error", "n_unsupported", "n")
        return
    choices = [c for chunk in answer.chunks for c in chunk["choices"]] if stream else answer.json["choices"]
    assert {choice["index"] for choice in choices} == {0, 1, 2}
    assert usage_of(answer)["completion_tokens"] == 15


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_has_its_own_field(flavour: Flavour, stream: bool) -> None:
    """What a model thinks comes as reasoning_content, never as part of the answer."""
    steer: dict[str, Any] = {"reasoning_tokens": 6, "tokens": 4}
    if flavour.triton is not None:
        steer = {"text": "<think>\nHmm, let me see.\n</think>\n\nForty-two."}
    answer = await flavour.chat(steer=steer, **wish(stream, max_tokens=100))
    if stream:
        deltas = [choice["delta"] for chunk in answer.chunks for choice in chunk["choices"]]
        thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
        said = "".join(delta.get("content") or "" for delta in deltas)
    else:
        message = answer.json["choices"][0]["message"]
        thought, said = message["reasoning_content"], message["content"]
    assert thought
    assert said
    assert "think>" not in thought + said
    if flavour.triton is not None:
        assert said == "Forty-two."


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failing_engine_costs_nothing(flavour: Flavour, stream: bool) -> None:
    """An engine that refuses before its first word: one error of ours, nothing of its text, no charge."""
    answer = await flavour.chat(steer={"fail": "500"}, stream=stream)
    assert (answer.status, answer.code) == (502, "backend_error")
    reveals_nothing(answer)
    await flavour.gateway.wait_quiet()
    receipt = await flavour.gateway.receipt(answer.request_id)
    assert receipt.charged_nanos == 0


async def test_an_engine_that_breaks_off_is_told_apart_from_an_end(flavour: Flavour) -> None:
    """After some text: an error event in the stream, no [DONE], no charge."""
    answer = await flavour.chat(steer={"tokens": 9, "fail": "error_event", "after_tokens": 3}, **wish(True))
    assert answer.status == 200
    assert "[DONE]" not in answer.events
    assert json.loads(answer.events[-1])["error"]["code"] == "backend_error"
    reveals_nothing(answer)
    await flavour.gateway.wait_quiet()
    assert (await flavour.gateway.receipt(answer.request_id)).charged_nanos == 0


async def test_a_hang_up_reaches_the_engine(flavour: Flavour) -> None:
    """Who leaves mid-stream stops the work, and pays for what was delivered."""
    tag = uuid4().hex
    body = flavour.body(steer={"tokens": 1500, "itl_ms": 20, "tag": tag}, max_tokens=1500, stream=True)
    answer = await ask(
        flavour.gateway.settings.port,
        "POST",
        "/v1/chat/completions",
        key=flavour.tenant.key,
        body=body,
        leave_when=lambda seen: seen.deltas >= 3,
    )
    await flavour.record(tag, "cancelled")
    receipt = await flavour.gateway.receipt(answer.request_id)
    assert flavour.tenant.card is not None
    meters = {line.meter: line.quantity for line in receipt.lines}
    assert 3 <= meters[Meter.COMPLETION] < 1500
    assert receipt.charged_nanos == charge_nanos(flavour.tenant.card, meters)


async def test_a_prompt_that_does_not_fit(flavour: Flavour) -> None:
    """The 400 that clients know, before any work."""
    answer = await flavour.chat("word " * 9000, max_tokens=5)
    is_error(flavour.gateway, answer, 400, "invalid_request_error", "context_length_exceeded", "messages")


async def test_a_legacy_completion(flavour: Flavour) -> None:
    """The older route, through the openai client."""
    async with client_of(flavour) as client:
        parts = [
            chunk.choices[0].text
            async for chunk in await client.completions.create(
                model=flavour.tenant.endpoint_id, prompt="Once upon", max_tokens=6, stream=True
            )
            if chunk.choices
        ]
    assert "".join(parts)
