"""The simulator byte for byte: raw sockets against the real process."""

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends.simulator.process import SimulatorProcess, running
from backends.simulator.tokens import count_tokens, render_chat
from tests.integration.simulator_tools import (
    MODEL,
    RawAnswer,
    call,
    chat,
    connected,
    get,
    read_answer,
    record_of,
    request_bytes,
)

FAST = {"ttft_ms": 0, "itl_ms": 1}
USAGE = {"include_usage": True}
CONTINUOUS = {"include_usage": True, "continuous_usage_stats": True}


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with running("--model", MODEL, "--model", "sim-8b-unicode", "--replica", "east-1", "--keep-bodies") as simulator:
        yield simulator


def test_it_says_that_it_is_a_simulator(simulator: SimulatorProcess) -> None:
    """/v1/models names the owner and says so in words; the replica's name is in every head."""
    listed = call(simulator, None, "/v1/models", "GET")
    assert listed.headers["x-sim-replica"] == "east-1"
    models = listed.json["data"]
    assert [model["id"] for model in models] == [MODEL, "sim-8b-unicode"]
    assert all(model["owned_by"] == "pareta-simulator" for model in models)
    assert "simulator" in models[0]["description"]
    assert get(simulator, f"/v1/models/{MODEL}")["id"] == MODEL
    assert call(simulator, None, "/v1/models/none", "GET").status == 404
    assert call(simulator, None, "/health", "GET").status == 200
    assert get(simulator, "/sim/stats")["simulator"] is True


def test_a_stream_is_laid_out_as_vllm_does(simulator: SimulatorProcess) -> None:
    """Role chunk, a chunk per token, the reason on the last, [DONE]; one HTTP chunk for each event."""
    answer = call(simulator, chat(stream=True, max_tokens=4, sim=FAST))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.ended == "whole"
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in answer.chunks)
    assert answer.events[-1] == "[DONE]"
    role, *tokens = answer.objects
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert role["prompt_token_ids"] is None
    assert len(tokens) == 4
    assert [chunk["choices"][0]["finish_reason"] for chunk in tokens] == [None, None, None, "length"]
    assert "stop_reason" in tokens[-1]["choices"][0]
    assert {(chunk["id"], chunk["object"], chunk["created"], chunk["model"]) for chunk in tokens} == {
        (role["id"], "chat.completion.chunk", role["created"], MODEL)
    }
    assert not any("usage" in chunk for chunk in answer.objects)
    assert count_tokens(answer.text) == 4


def test_an_answer_that_ends_by_itself_has_a_closing_chunk(simulator: SimulatorProcess) -> None:
    """finish_reason stop comes in a chunk without text."""
    answer = call(simulator, chat(stream=True, sim={**FAST, "tokens": 3}))
    assert len(answer.objects) == 1 + 3 + 1
    last = answer.objects[-1]["choices"][0]
    assert (last["delta"], last["finish_reason"], last["stop_reason"]) == ({"content": ""}, "stop", None)


def test_usage_comes_only_when_asked_and_as_asked(simulator: SimulatorProcess) -> None:
    """include_usage adds one chunk without choices; continuous stats put the usage so far into every chunk."""
    prompt = count_tokens(render_chat([("user", "Say something.")]))
    final = call(simulator, chat(stream=True, max_tokens=3, sim=FAST, stream_options=USAGE)).objects
    assert final[-1]["choices"] == []
    assert final[-1]["usage"] == {"prompt_tokens": prompt, "completion_tokens": 3, "total_tokens": prompt + 3}
    assert not any("usage" in chunk for chunk in final[:-1])
    continuous = call(simulator, chat(stream=True, max_tokens=3, sim=FAST, stream_options=CONTINUOUS)).objects
    assert [chunk["usage"]["completion_tokens"] for chunk in continuous] == [0, 1, 2, 3, 3]
    assert all(chunk["usage"]["prompt_tokens"] == prompt for chunk in continuous)
    assert [len(chunk["choices"]) for chunk in continuous] == [1, 1, 1, 1, 0]


def test_continuous_usage_counts_each_choice_by_itself(simulator: SimulatorProcess) -> None:
    """With n=2 a chunk's usage is of its own choice, as in vLLM; only the final one is the sum."""
    body = chat(stream=True, n=2, sim={**FAST, "tokens": 5}, stream_options=CONTINUOUS)
    events = call(simulator, body).objects
    for index in (0, 1):
        mine = [event for event in events[:-1] if event["choices"][0]["index"] == index]
        assert [event["usage"]["completion_tokens"] for event in mine] == [0, 1, 2, 3, 4, 5, 5]
    assert events[-1]["usage"]["completion_tokens"] == 10


def test_whole_and_streamed_answers_are_the_same(simulator: SimulatorProcess) -> None:
    """The same seed gives the same text and usage on both ways, also at once and also in awkward text."""
    for model in (MODEL, "sim-8b-unicode"):
        for times in (FAST, {"ttft_ms": 0, "itl_ms": 0}):
            body = {**chat(seed=11, max_tokens=150, sim={**times, "tokens": 120}), "model": model}
            whole = call(simulator, body).json
            streamed = call(simulator, {**body, "stream": True, "stream_options": USAGE})
            assert streamed.text == whole["choices"][0]["message"]["content"]
            assert count_tokens(streamed.text) == whole["usage"]["completion_tokens"]
            usage = {name: value for name, value in whole["usage"].items() if value is not None}
            assert streamed.objects[-1]["usage"] == usage


def test_whole_answers_carry_the_extras_of_real_engines(simulator: SimulatorProcess) -> None:
    """A gateway has to take these away, so they are here."""
    body = call(simulator, chat(max_tokens=3, sim=FAST)).json
    assert {"prompt_token_ids", "kv_transfer_params", "system_fingerprint", "prompt_logprobs"} <= set(body)
    assert "stop_reason" in body["choices"][0]
    assert body["model"] == MODEL


def test_text_completions_stream_too(simulator: SimulatorProcess) -> None:
    """/v1/completions has its own chunk shape, and 16 tokens unless asked otherwise."""
    body = {"model": MODEL, "prompt": "Once", "seed": 1, "sim": {**FAST, "tokens": 99}, "stream": True}
    streamed = call(simulator, {**body, "stream_options": USAGE}, "/v1/completions")
    assert {event["object"] for event in streamed.objects} == {"text_completion"}
    assert streamed.objects[-1]["usage"]["completion_tokens"] == 16
    whole = call(simulator, {**body, "stream": False}, "/v1/completions").json
    assert whole["choices"][0]["text"] == streamed.text


def test_reported_details_of_usage(simulator: SimulatorProcess) -> None:
    """Cached prompt tokens and reasoning tokens are reported as engines do."""
    sim = {**FAST, "cached_tokens": 4, "reasoning_tokens": 2, "text": "Well then."}
    usage = call(simulator, chat(sim=sim)).json["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 2}
    assert usage["completion_tokens"] == 2 + 3
    message = call(simulator, chat(sim=sim)).json["choices"][0]["message"]
    assert message["content"] == "Well then."
    assert count_tokens(message["reasoning"]) == 2


def test_pipelined_requests_are_answered_in_order(simulator: SimulatorProcess) -> None:
    """Three requests in one packet, a stream among them, get their answers one after the other."""
    bodies = [chat(sim={**FAST, "text": f"Answer {n}."}, stream=n == 1) for n in range(3)]
    with connected(simulator) as sock:
        sock.sendall(b"".join(map(request_bytes, bodies)))
        first = read_answer(sock)
        second = read_answer(sock, first.rest)
        third = read_answer(sock, second.rest)
    assert first.json["choices"][0]["message"]["content"] == "Answer 0."
    assert second.text == "Answer 1."
    assert third.json["choices"][0]["message"]["content"] == "Answer 2."
    assert third.rest == b""


def test_a_request_may_come_byte_by_byte_and_chunked(simulator: SimulatorProcess) -> None:
    """However the request is cut, it is the same request."""
    data = request_bytes(chat(sim={**FAST, "text": "Fine."}))
    with connected(simulator) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            sock.sendall(bytes((byte,)))
        assert read_answer(sock).json["choices"][0]["message"]["content"] == "Fine."
        body = json.dumps(chat(sim={**FAST, "text": "Fine."})).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ntransfer-encoding: chunked\r\n\r\n"
        sock.sendall(head + b"5\r\n" + body[:5] + b"\r\n%x\r\n" % (len(body) - 5) + body[5:] + b"\r\n0\r\n\r\n")
        assert read_answer(sock).status == 200


def test_older_and_closing_clients_are_served(simulator: SimulatorProcess) -> None:
    """HTTP/1.0 gets an unframed stream and a closed connection; `connection: close` is heeded; 100-continue too."""
    data = request_bytes(chat(stream=True, sim={**FAST, "text": "Old."})).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    with connected(simulator) as sock:
        sock.sendall(data)
        answer = read_answer(sock)
    assert (answer.ended, answer.text) == ("eof", "Old.")
    assert "transfer-encoding" not in answer.headers
    with connected(simulator) as sock:
        sock.sendall(request_bytes(chat(sim=FAST), headers="connection: close\r\n"))
        assert read_answer(sock).headers["connection"] == "close"
        assert sock.recv(1) == b""
    with connected(simulator) as sock:
        head, _, body = request_bytes(chat(sim=FAST), headers="expect: 100-continue\r\n").partition(b"\r\n\r\n")
        sock.sendall(head + b"\r\n\r\n")
        assert sock.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(body)
        assert read_answer(sock).status == 200


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nx: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (request_bytes(None, "/nowhere", "GET"), 404),
        (request_bytes(None, "/v1/chat/completions", "GET"), 405),
        (request_bytes(chat(), "/health"), 405),
        (request_bytes(None, "/health", "HEAD"), 200),
        (request_bytes(b"{nonsense"), 400),
        (request_bytes([]), 400),
        (request_bytes(chat(response_format={"type": "json_schema", "json_schema": {"schema": {"enum": 5}}})), 400),
        (request_bytes({**chat(), "model": "unknown"}), 404),
        (request_bytes({**chat(), "model": 3}), 400),
        (request_bytes(chat(sim={"fail": "unheard_of"})), 400),
        (request_bytes(None, "/sim/nothing", "GET"), 404),
        (request_bytes({"fail": "unheard_of"}, "/sim/faults"), 400),
        (request_bytes({"seconds": 0}, "/sim/refuse"), 400),
    ],
)
def test_what_is_wrong_gets_a_clear_status(simulator: SimulatorProcess, data: bytes, status: int) -> None:
    """And the process serves on."""
    with connected(simulator) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR) if status == 431 else None
        assert read_answer(sock).status == status
    assert call(simulator, None, "/health", "GET").status == 200


def test_a_head_request_has_no_body(simulator: SimulatorProcess) -> None:
    """The answer to HEAD announces a length and sends nothing."""
    with connected(simulator) as sock:
        sock.sendall(request_bytes(None, "/v1/models", "HEAD") + request_bytes(None, "/health", "GET"))
        time.sleep(0.2)
        raw = sock.recv(65536)
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert b"content-length: " in head
    assert rest.startswith(b"HTTP/1.1 200 OK")


def test_unknown_models_and_long_prompts_have_the_shapes_of_vllm(simulator: SimulatorProcess) -> None:
    """404 NotFoundError, 400 BadRequestError with "context length"."""
    missing = call(simulator, {**chat(), "model": "unknown"}).json["error"]
    assert (missing["type"], missing["code"], missing["param"]) == ("NotFoundError", 404, "model")
    long = call(simulator, chat("word " * 9000)).json["error"]
    assert (long["type"], long["code"]) == ("BadRequestError", 400)
    assert "context length" in long["message"]


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_generation_at_once(
    simulator: SimulatorProcess, how: str, stream: bool
) -> None:
    """The record says cancelled, when, and how many tokens had been delivered."""
    request_id = f"req_{how}_{stream}"
    sim = {"ttft_ms": 0, "itl_ms": 20, "tokens": 500}
    with connected(simulator) as sock:
        sock.sendall(request_bytes(chat(stream=stream, sim=sim), headers=f"x-request-id: {request_id}\r\n"))
        record_of(simulator, request_id, "running")
        raw = b""
        while stream and raw.count(b"data: ") < 5:
            raw += sock.recv(65536)
        if how == "rst":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        hung_up_s = time.time()
    record = record_of(simulator, request_id, "cancelled")
    assert record["disconnected"] is True
    assert abs(record["disconnected_s"] - hung_up_s) < 5
    assert record["planned_tokens"] == 500
    assert (4 <= record["completion_tokens"] < 400) if stream else record["completion_tokens"] == 0
    before = record["completion_tokens"]
    time.sleep(0.1)
    assert record_of(simulator, request_id)["completion_tokens"] == before, "it went on generating"
    assert get(simulator, "/sim/stats")["active"] == 0


def test_a_client_that_does_not_read_is_waited_for(simulator: SimulatorProcess) -> None:
    """A stream into a full socket pauses instead of filling the memory, and goes on when the client reads."""
    sim = {"ttft_ms": 0, "itl_ms": 0, "tokens": 100_000}
    body = chat(stream=True, ignore_eos=True, max_tokens=8000, n=20, sim=sim)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(20)
        sock.connect(("127.0.0.1", simulator.port))
        sock.sendall(request_bytes(body, headers="x-request-id: req_slow\r\n"))
        seen: list[int] = []
        while len(seen) < 3 or seen[-1] != seen[-3] or not seen[-1]:
            seen.append(record_of(simulator, "req_slow")["completion_tokens"])
            time.sleep(0.1)
        assert seen[-1] < 160_000
        received = bytearray()
        while not received.endswith(b"\r\n0\r\n\r\n"):
            data = sock.recv(1 << 20)
            assert data, "the stream ended before its time"
            received += data
    assert received.count(b"data: {") == 160_000 + 20
    assert record_of(simulator, "req_slow", "finished")["completion_tokens"] == 160_000


def test_records_show_what_was_received(simulator: SimulatorProcess) -> None:
    """Fields, values, headers and the shared connection are there; of a credential only its beginning."""
    headers = "x-request-id: req_seen_{}\r\nauthorization: Bearer abcdefghijklmnopqrstuvwxyz\r\n"
    with connected(simulator) as sock:
        for number in (1, 2):
            sock.sendall(request_bytes(chat(user="u", sim=FAST), headers=headers.format(number)))
            read_answer(sock)
    one, two = record_of(simulator, "req_seen_1", "finished"), record_of(simulator, "req_seen_2", "finished")
    assert one["fields"] == ["model", "messages", "user", "sim"]
    assert one["body"]["messages"][0]["content"] == "Say something."
    assert one["connection"] == two["connection"]
    assert one["id"] == "chatcmpl-req_seen_1"
    assert "xyz" not in one["headers"]["authorization"]


def test_totals_are_what_was_delivered(simulator: SimulatorProcess) -> None:
    """The sums of /sim/stats move by exactly the tokens of the answers, and metrics agree."""

    def totals() -> dict[str, Any]:
        return dict(get(simulator, "/sim/stats")["totals"])

    before = totals()
    answers: list[RawAnswer] = [call(simulator, chat(sim={**FAST, "tokens": 7})) for _ in range(3)]
    call(simulator, chat(max_tokens=0))
    after = totals()
    assert after["completion_tokens"] - before["completion_tokens"] == 21
    prompts = sum(answer.json["usage"]["prompt_tokens"] for answer in answers)
    assert after["prompt_tokens"] - before["prompt_tokens"] == prompts
    assert (after["finished"] - before["finished"], after["failed"] - before["failed"]) == (3, 1)
    metrics = call(simulator, None, "/metrics", "GET").body.decode()
    assert f'vllm:generation_tokens_total{{model_name="sim-8b"}} {float(after["completion_tokens"])}' in metrics
    assert 'vllm:num_requests_waiting{model_name="sim-8b"} 0.0' in metrics
