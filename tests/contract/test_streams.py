"""Event streams, byte for byte: what old and new clients can read, and what must never stand in them."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from tests.contract.expect import has_request_id, reveals_nothing
from tests.system.harness import UNICODE_MODEL, Gateway, Tenant, chat_body
from tests.system.wire import Answer, connected, read_answer, request_bytes

CHAT = "/v1/chat/completions"
CHUNK_FIELDS = {"id", "object", "created", "model", "choices"}


def follows_the_rules(answer: Answer) -> None:
    """The rules that hold for every event stream, whole or broken."""
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert "content-encoding" not in answer.headers
    has_request_id(answer)
    body = answer.body
    assert body.isascii(), "clients cut lines at U+0085, U+2028 and U+2029"
    assert b"\r" not in body
    for block in body.decode().split("\n\n"):
        lines = block.split("\n")
        if block:
            assert len(lines) == 1, f"one line per event: {block!r}"
            assert lines[0].startswith(("data: ", ": ")), f"no id:, retry: or event: {lines[0]!r}"
    assert body.endswith(b"\n\n")
    reveals_nothing(answer)


def is_a_chat_stream(answer: Answer, tenant: Tenant, *, usage: bool = False) -> None:
    """A whole chat stream of one choice in the one form that the contract knows."""
    follows_the_rules(answer)
    assert answer.ended == "whole"
    assert answer.events[-1] == "[DONE]"
    assert answer.blocks[-1] == "data: [DONE]"
    assert answer.blocks[-2].startswith(": X-Pareta-Billed: ")
    chunks = answer.chunks
    if usage:
        last = chunks.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    wanted = CHUNK_FIELDS | ({"usage"} if usage else set())
    for chunk in chunks:
        assert set(chunk) == wanted
        assert len(chunk["choices"]) == 1, "the SDK's loop reads choices[0] without a guard"
        assert chunk.get("usage") is None
        assert set(chunk["choices"][0]) - {"logprobs"} == {"index", "delta", "finish_reason"}
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in answer.chunks} == {
        (chunks[0]["id"], chunks[0]["created"], tenant.endpoint_id, "chat.completion.chunk")
    }
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize("usage", [False, True])
async def test_a_stream_has_one_form(gateway: Gateway, tenant: Tenant, usage: bool) -> None:
    """Role first, one choice per chunk, an empty delta last, usage only when asked, the receipt before [DONE]."""
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = await gateway.chat(tenant, stream=True, **options)
    is_a_chat_stream(answer, tenant, usage=usage)
    receipt = await gateway.receipt(answer.request_id)
    assert receipt.charged_nanos > 0
    assert answer.billed_micros == receipt.charged_nanos // 1000


@pytest.mark.parametrize(
    "sim",
    [
        {"fail": "crlf"},
        {"fail": "space_newlines"},
        {"fail": "comments"},
        {"fail": "no_done"},
        {"fail": "no_final_chunk"},
        {"fail": "byte_by_byte", "tokens": 5},
        {"fail": "coalesced"},
        {"fail": "slow_headers", "seconds": 0.3},
        {"fail": "close_after_answer"},
        {"fail": "no_usage"},
        {"fail": "bad_usage"},
        {"reasoning_tokens": 0, "cached_tokens": 2},
    ],
    ids=lambda sim: str(sim.get("fail", "cached")),
)
async def test_whatever_an_engine_sends_looks_the_same(gateway: Gateway, tenant: Tenant, sim: dict[str, Any]) -> None:
    """Odd line ends, comments, missing marks, writes cut anywhere: the public stream and its text do not change."""
    tokens = sim.get("tokens", 12)
    plain = await gateway.chat(tenant, "Tell me.", stream=True, seed=7, sim={"tokens": tokens})
    answer = await gateway.chat(tenant, "Tell me.", stream=True, seed=7, sim={"tokens": tokens} | sim)
    is_a_chat_stream(answer, tenant)
    assert answer.text == plain.text
    assert answer.deltas == tokens


async def test_awkward_text_arrives_in_ascii(gateway: Gateway) -> None:
    """Line separators, emoji, quotes and fake events inside the text: escaped on the way, whole at the end."""
    tenant = await gateway.tenant(model=UNICODE_MODEL)
    whole = await gateway.chat(tenant, seed=3, sim={"tokens": 400})
    stream = await gateway.chat(tenant, seed=3, sim={"tokens": 400}, stream=True)
    is_a_chat_stream(stream, tenant)
    assert stream.text == whole.text
    for character in ("\u2028", "\u2029", "\u0085", "😀", "\n\n", "data: [DONE]", '"', "\\"):
        assert character in stream.text
    pieces = [json.loads(line[6:]) for line in stream.body.decode().splitlines() if line.startswith("data: {")]
    assert pieces == stream.chunks, "a client that cuts lines like str.splitlines loses nothing"


async def test_a_stream_begins_before_the_first_token(gateway: Gateway, tenant: Tenant) -> None:
    """A slow engine: the 200 and a heartbeat comment come early, more of them follow, and all are comments."""
    body = chat_body(tenant, stream=True, sim={"ttft_ms": 1800, "tokens": 2})
    async with asyncio.timeout(20), connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", CHAT, key=tenant.key, body=body))
        begun_s = time.monotonic()
        first = await reader.read(65536)
        waited_s = time.monotonic() - begun_s
        answer = await read_answer(reader, before=first)
    assert first.startswith(b"HTTP/1.1 200 ")
    assert waited_s < 1.5, "the head came before the first token"
    is_a_chat_stream(answer, tenant)
    assert answer.comments.count("keep-alive") >= 2
    assert answer.body.index(b": keep-alive") < answer.body.index(b"data: ")


async def test_a_silence_in_the_middle_is_filled(gateway: Gateway, tenant: Tenant) -> None:
    """Comments come while the engine thinks between two tokens, and whole events are never torn by them."""
    answer = await gateway.chat(tenant, stream=True, sim={"tokens": 3, "itl_ms": 1000})
    is_a_chat_stream(answer, tenant)
    assert "keep-alive" in answer.comments
    assert answer.deltas == 3


@pytest.mark.parametrize("fault", ["close_mid_stream", "reset_mid_stream", "error_event", "malformed_chunk",
                                   "giant_event", "hang_mid_stream"])  # fmt: skip
async def test_a_failure_in_the_middle(gateway: Gateway, fault: str) -> None:
    """A chunk of ordinary shape that also carries the error, no [DONE], a broken connection, no charge."""
    tenant = await gateway.tenant()
    answer = await gateway.chat(tenant, stream=True, tag=fault, sim={"tokens": 9, "fail": fault, "after_tokens": 3})
    follows_the_rules(answer)
    assert answer.ended in ("eof", "reset"), "the transfer must not look whole"
    assert "[DONE]" not in answer.events
    assert not any(comment.startswith("X-Pareta-Billed") for comment in answer.comments)
    *before, last = answer.chunks
    # What one read brought together with the failure may fall with it.
    assert answer.deltas <= 3
    assert last["choices"] == [{"index": 0, "delta": {}, "finish_reason": None}]
    expected = ("server_error", "deadline_exceeded" if fault == "hang_mid_stream" else "backend_error")
    assert (last["error"]["type"], last["error"]["code"]) == expected
    assert last["error"]["message"]
    assert all(chunk["id"] == last["id"] for chunk in before)
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.outcome) == (0, "failed")
    gateway.expect_in_log(answer.request_id, status=200, error=last["error"]["code"], billed_nanos=0)


@pytest.mark.parametrize("fault", ["500", "close_before_head", "html", "empty"])
async def test_a_failure_before_the_first_byte_is_plain_json(gateway: Gateway, fault: str) -> None:
    """Until the stream has begun a failure is an ordinary error answer, also for a client that asked for a stream."""
    tenant = await gateway.tenant()
    answer = await gateway.chat(tenant, stream=True, sim={"fail": fault})
    if answer.status == 200:  # the engine's own 200 had come already: nothing but a broken stream is left
        assert fault == "empty"
        assert answer.chunks[-1]["error"]["code"] == "backend_error"
        assert answer.ended == "eof"
        return
    assert answer.headers["content-type"] == "application/json"
    assert (answer.status, answer.code) in ((502, "backend_error"), (503, "endpoint_not_ready"))


async def test_a_text_completion_streams(gateway: Gateway, tenant: Tenant) -> None:
    """POST /v1/completions, streamed and not: the same text, its own object name, the same end."""
    body = {"model": tenant.endpoint_id, "prompt": "Once upon a time", "max_tokens": 12, "seed": 5}
    whole = await gateway.post("/v1/completions", tenant.key, body)
    stream = await gateway.post("/v1/completions", tenant.key, body | {"stream": True})
    follows_the_rules(stream)
    reveals_nothing(whole)
    assert whole.json["object"] == "text_completion"
    assert {chunk["object"] for chunk in stream.chunks} == {"text_completion"}
    assert stream.text == whole.text
    assert stream.events[-1] == "[DONE]"
    assert all(len(chunk["choices"]) == 1 for chunk in stream.chunks)
    assert stream.chunks[-1]["choices"][0]["finish_reason"] == "length"


async def test_several_choices_stream_apart(gateway: Gateway, tenant: Tenant) -> None:
    """n=3: each chunk has one choice, every choice opens with its role and closes with its reason."""
    answer = await gateway.chat(tenant, stream=True, n=3, seed=1, max_tokens=8)
    follows_the_rules(answer)
    whole = await gateway.chat(tenant, n=3, seed=1, max_tokens=8)
    texts = {0: "", 1: "", 2: ""}
    for chunk in answer.chunks:
        [choice] = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == {choice["index"]: choice["message"]["content"] for choice in whole.json["choices"]}
    ended = [c["choices"][0] for c in answer.chunks if c["choices"][0]["finish_reason"]]
    assert sorted(choice["index"] for choice in ended) == [0, 1, 2]


async def test_a_stream_over_http_1_0_ends_with_the_connection(gateway: Gateway, tenant: Tenant) -> None:
    """An old client without chunked coding gets the same events, and the end of the connection as their end."""
    request = request_bytes("POST", CHAT, key=tenant.key, body=chat_body(tenant, stream=True, max_tokens=4))
    async with asyncio.timeout(20), connected(gateway.settings.port) as (reader, writer):
        writer.write(request.replace(b"HTTP/1.1", b"HTTP/1.0"))
        answer = await read_answer(reader)
    assert "transfer-encoding" not in answer.headers
    assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_streams_share_a_kept_connection(gateway: Gateway, tenant: Tenant) -> None:
    """After a whole stream the connection serves the next request, also one that was sent ahead."""
    streamed = request_bytes("POST", CHAT, key=tenant.key, body=chat_body(tenant, stream=True, max_tokens=4))
    plain = request_bytes("GET", "/v1/models", key=tenant.key)
    async with asyncio.timeout(20), connected(gateway.settings.port) as (reader, writer):
        writer.write(streamed)
        is_a_chat_stream(await read_answer(reader), tenant)
        writer.write(plain)
        assert (await read_answer(reader)).status == 200
        writer.write(streamed)
        is_a_chat_stream(await read_answer(reader), tenant)
