"""The mock engine says what engines say: the shape, the number of tokens, the usage, at the pace that was asked for."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.load.watch import rss_bytes
from benchmarks.mock import process, request
from benchmarks.mock.process import MockProcess


@pytest.fixture(scope="module")
def engine() -> Iterator[MockProcess]:
    with process.running("--model", "some-model") as running:
        yield running


@pytest.fixture(autouse=True)
def at_once(request: pytest.FixtureRequest) -> None:
    """Every test that asks the engine begins with one that does not wait."""
    if "engine" in request.fixturenames:
        request.getfixturevalue("engine").pace()


def address(engine: MockProcess) -> tuple[str, int]:
    host, _, port = engine.url.rpartition("/")[2].partition(":")
    return host, int(port)


def ask(connection: http.client.HTTPConnection, **fields: Any) -> http.client.HTTPResponse:
    body = {"model": "m", "messages": [{"role": "user", "content": 'Say "stream": true.'}], **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def events(body: bytes) -> list[Any]:
    parts = body.split(b"\n\n")
    assert parts[-2:] == [b"data: [DONE]", b""]
    return [json.loads(part.removeprefix(b"data: ")) for part in parts[:-2]]


def test_a_whole_answer_has_the_tokens_that_were_asked_for(engine: MockProcess) -> None:
    """In vLLM's shape, with usage, again and again on one connection; words in a prompt are no members."""
    connection = http.client.HTTPConnection(*address(engine), timeout=10)
    for tokens in (1, 16, 100):
        answer = ask(connection, max_tokens=tokens)
        assert answer.status == 200
        content = json.loads(answer.read())
        assert content["object"] == "chat.completion"
        assert content["model"] == "some-model"
        assert content["choices"][0]["finish_reason"] == "length"
        assert content["choices"][0]["message"]["content"]
        assert content["usage"]["completion_tokens"] == tokens
        assert content["usage"]["total_tokens"] == content["usage"]["prompt_tokens"] + tokens
    connection.close()


@pytest.mark.parametrize("itl_ms", [0, 1, 25])
@pytest.mark.parametrize("include_usage", [True, False])
def test_a_stream_has_the_tokens_that_were_asked_for(engine: MockProcess, itl_ms: float, include_usage: bool) -> None:
    """Role, content, reason, usage only if wanted, [DONE]; the same whether at once or one by one."""
    engine.pace(itl_ms=itl_ms)
    connection = http.client.HTTPConnection(*address(engine), timeout=10)
    texts = []
    for tokens in (1, 2, 40):
        options = {"stream_options": {"include_usage": True}} if include_usage else {}
        got = events(ask(connection, max_completion_tokens=tokens, stream=True, **options).read())
        deltas = [event["choices"][0] for event in got if event["choices"]]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        assert [delta["finish_reason"] for delta in deltas] == [None] * (tokens + 1) + ["length"]
        assert all(delta["delta"]["content"] for delta in deltas[1:-1])
        usage = [event["usage"] for event in got if not event["choices"]]
        assert len(usage) == include_usage
        assert all(one["completion_tokens"] == tokens for one in usage)
        texts.append("".join(delta["delta"]["content"] for delta in deltas))
    assert len(set(texts)) == 3
    connection.close()


def test_the_pace_is_kept(engine: MockProcess) -> None:
    """No token comes before its time, to a tick, and the first one not before the time to first token."""
    engine.pace(ttft_ms=80, itl_ms=20)
    connection = http.client.HTTPConnection(*address(engine), timeout=10)
    begun_s = time.monotonic()
    answer = ask(connection, max_tokens=11, stream=True)
    assert time.monotonic() - begun_s >= 0.08
    answer.read()
    assert time.monotonic() - begun_s >= 0.08 + 9 * 0.02
    begun_s = time.monotonic()
    ask(connection, max_tokens=6).read()
    assert time.monotonic() - begun_s >= 0.08 + 5 * 0.02
    connection.close()


def test_streams_that_are_paced_by_hand_wait_for_each_turn(engine: MockProcess) -> None:
    """One event for each turn and each stream, and nothing by the clock; the last turn brings the end."""
    engine.pace(by_hand=True)
    streams = [http.client.HTTPConnection(*address(engine), timeout=10) for _ in range(2)]
    answers = [ask(stream, stream=True, max_tokens=3) for stream in streams]
    for answer in answers:
        assert b'"role"' in answer.readline()
        assert answer.readline() == b"\n"
        assert b'"content"' in answer.readline()
        assert answer.readline() == b"\n"
    engine.turn()
    for answer in answers:
        assert b'"content"' in answer.readline()
        assert answer.readline() == b"\n"
    assert select.select([stream.sock for stream in streams], [], [], 0.3)[0] == [], "by the clock comes nothing"
    engine.turn()
    for stream, answer in zip(streams, answers, strict=True):
        assert len(events(answer.read())) == 2, "the last token, and why it ends"
        stream.close()


def test_a_client_that_does_not_read_holds_up_nobody(engine: MockProcess) -> None:
    """A stream whose reader stands still waits by itself; it goes on where it was, and nothing of it is lost."""
    engine.pace(itl_ms=1)
    body = json.dumps({"max_tokens": 4000, "stream": True}).encode()
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    slow.connect(address(engine))
    slow.settimeout(20)
    head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    slow.sendall(head + body)
    connection = http.client.HTTPConnection(*address(engine), timeout=10)
    for _ in range(3):
        assert len(events(ask(connection, max_tokens=300, stream=True).read())) == 302
    received = b""
    while part := slow.recv(1 << 16):
        received += part
    assert received.count(b"data: {") == 4002
    assert received.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    slow.close()
    connection.close()


def test_many_who_do_not_read_share_what_they_were_sent(engine: MockProcess) -> None:
    """A long stream sent at once to thirty clients that stand still is kept once, and each gets all of it."""
    before = rss_bytes(engine.pid)
    body = json.dumps({"max_tokens": 40_000, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
    clients = [socket.create_connection(address(engine)) for _ in range(30)]
    for client in clients:
        client.settimeout(20)
        client.sendall(head + body)
    for client in clients:
        assert client.recv(1, socket.MSG_PEEK)  # it has begun
    assert rss_bytes(engine.pid) - before < 150_000_000
    for client in clients[:3]:
        received = b""
        while part := client.recv(1 << 20):
            received += part
        assert received.count(b"data: {") == 40_002
    for client in clients:
        client.close()


def test_a_stream_that_is_left_is_forgotten(engine: MockProcess) -> None:
    """A client that hangs up in the middle does no harm to the others."""
    engine.pace(itl_ms=2)
    left = [http.client.HTTPConnection(*address(engine), timeout=10) for _ in range(20)]
    for connection in left:
        ask(connection, max_tokens=5000, stream=True).read(200)
    stays = http.client.HTTPConnection(*address(engine), timeout=10)
    answer = ask(stays, max_tokens=100, stream=True)
    for connection in left:
        connection.close()
    assert len(events(answer.read())) == 102
    stays.close()


def test_what_is_around_completions(engine: MockProcess) -> None:
    """Health and models, as gateways ask for them; anything else is 404."""
    connection = http.client.HTTPConnection(*address(engine), timeout=10)
    for path, status in (("/health", 200), ("/v1/models", 200), ("/v1/else", 404)):
        connection.request("GET", path)
        answer = connection.getresponse()
        assert (path, answer.status) == (path, status)
        content = json.loads(answer.read())
        if path == "/v1/models":
            assert [model["id"] for model in content["data"]] == ["some-model"]
    connection.close()


def test_a_request_is_whole_wherever_it_is_cut() -> None:
    """Neither too early nor never: with a length, in chunks, or without a body."""
    length = b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello"
    chunked = b"POST /x HTTP/1.1\r\ntransfer-encoding: Chunked\r\n\r\n3\r\nhel\r\n2;e=1\r\nlo\r\n0\r\n\r\n"
    bare = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"
    for whole, body in ((length, b"hello"), (chunked, b"hello"), (bare, b"")):
        for cut in range(len(whole)):
            assert request.read(whole[:cut]) is None, whole[:cut]
        found = request.read(whole + b"GET /next")
        assert found is not None
        assert (found.body, found.size) == (body, len(whole))


def test_what_is_no_request_is_refused() -> None:
    """And does not grow without end."""
    bad_chunk = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    for wrong in (b"\x16\x03\x01\r\n\r\n", b"x" * 70_000, bad_chunk):
        with pytest.raises(request.NotHttp):
            request.read(wrong)
