"""Failures on demand: each fault does on the wire what its name says, streamed and not."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from backends.simulator.options import BEFORE_ANSWER, Fault
from backends.simulator.process import SimulatorProcess, running
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

TEXT = "One two three four five six."
TOKENS = 7
USAGE = {"include_usage": True}
BOTH_WAYS = pytest.mark.parametrize("stream", [True, False])


@pytest.fixture(scope="module")
def shared() -> Iterator[SimulatorProcess]:
    with running("--model", MODEL, "--ttft-ms", "0", "--itl-ms", "1") as simulator:
        yield simulator


@pytest.fixture
def simulator(shared: SimulatorProcess) -> Iterator[SimulatorProcess]:
    yield shared
    call(shared, None, "/sim/faults", "DELETE")
    assert call(shared, None, "/health", "GET").status == 200


def failing(fault: Fault, stream: bool, **options: Any) -> dict[str, Any]:
    """A chat body that asks for a fault."""
    body = chat(sim={"fail": fault.value, "text": TEXT, "after_tokens": 3, **options}, stream=stream)
    return {**body, "stream_options": USAGE} if stream else body


def call_failing(
    simulator: SimulatorProcess, fault: Fault, stream: bool, timeout_s: float = 10.0, **options: Any
) -> RawAnswer:
    return call(simulator, failing(fault, stream, **options), timeout_s=timeout_s)


@BOTH_WAYS
@pytest.mark.parametrize(
    ("fault", "ended"),
    [
        (Fault.REFUSE, "reset"),
        (Fault.RESET_BEFORE_HEAD, "reset"),
        (Fault.CLOSE_BEFORE_HEAD, "eof"),
        (Fault.HANG_BEFORE_HEAD, "silence"),
    ],
)
def test_faults_before_the_first_byte(simulator: SimulatorProcess, fault: Fault, ended: str, stream: bool) -> None:
    """Not a byte comes, and the connection ends as said."""
    answer = call_failing(simulator, fault, stream, timeout_s=0.3 if ended == "silence" else 10)
    assert (answer.raw, answer.ended) == (b"", ended)


@BOTH_WAYS
@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_statuses(simulator: SimulatorProcess, status: int, stream: bool) -> None:
    """The error has vLLM's shape; 429 and 503 say when to come again; the connection stays usable."""
    with connected(simulator) as sock:
        for _ in range(2):
            sock.sendall(request_bytes(failing(Fault(str(status)), stream, retry_after_s=7)))
            answer = read_answer(sock)
            assert (answer.status, answer.json["error"]["code"], answer.ended) == (status, status, "whole")
            assert answer.headers.get("retry-after") == ("7" if status in (429, 503) else None)


@BOTH_WAYS
def test_wrong_content_types_and_empty_bodies(simulator: SimulatorProcess, stream: bool) -> None:
    """HTML with 200 and with 502, and a 200 with nothing in it."""
    html = call_failing(simulator, Fault.WRONG_CONTENT_TYPE, stream)
    assert (html.status, html.headers["content-type"]) == (200, "text/html; charset=utf-8")
    gateway = call_failing(simulator, Fault.BAD_GATEWAY_HTML, stream)
    assert (gateway.status, gateway.headers["content-type"]) == (502, "text/html")
    empty = call_failing(simulator, Fault.EMPTY_BODY, stream)
    assert (empty.status, empty.body) == (200, b"")


@pytest.mark.parametrize("after", [0, 1, 3, 99])
@pytest.mark.parametrize(
    ("fault", "ended"),
    [(Fault.CLOSE_MID_STREAM, "eof"), (Fault.RESET_MID_STREAM, "reset"), (Fault.HANG_MID_STREAM, "silence")],
)
def test_deaths_in_the_middle_of_a_stream(simulator: SimulatorProcess, fault: Fault, ended: str, after: int) -> None:
    """Exactly k tokens arrive, or all there are, then the end; never [DONE] nor HTTP's last chunk."""
    answer = call_failing(simulator, fault, True, after_tokens=after, timeout_s=0.3 if ended == "silence" else 10)
    assert answer.ended == ended
    texts = [event["choices"][0]["delta"].get("content") for event in answer.objects]
    assert len([text for text in texts if text]) == min(after, TOKENS)
    assert "[DONE]" not in answer.events


@pytest.mark.parametrize(
    ("fault", "ended"),
    [(Fault.CLOSE_MID_STREAM, "eof"), (Fault.RESET_MID_STREAM, "reset"), (Fault.HANG_MID_STREAM, "silence")],
)
def test_deaths_in_the_middle_of_a_body(simulator: SimulatorProcess, fault: Fault, ended: str) -> None:
    """A whole answer breaks off half-way through the length it announced."""
    answer = call_failing(simulator, fault, False, timeout_s=0.3 if ended == "silence" else 10)
    assert answer.ended == ended
    assert len(answer.body) == int(answer.headers["content-length"]) // 2


def test_an_error_event(simulator: SimulatorProcess) -> None:
    """As vLLM: after k tokens an event with an error object, [DONE], a clean end; whole answers are a 500."""
    answer = call_failing(simulator, Fault.ERROR_EVENT, True)
    assert answer.ended == "whole"
    assert answer.objects[-1]["error"]["code"] == 500
    assert answer.events[-1] == "[DONE]"
    assert answer.text == "One two three"
    assert call_failing(simulator, Fault.ERROR_EVENT, False).status == 500


def test_a_malformed_chunk(simulator: SimulatorProcess) -> None:
    """One event is no JSON; the stream goes on around it. A whole body is cut."""
    answer = call_failing(simulator, Fault.MALFORMED_CHUNK, True)
    broken = [event for event in answer.events if event != "[DONE]" and not event.endswith("}")]
    assert len(broken) == 1
    assert answer.events.index(broken[0]) == 1 + 3
    assert len(answer.events) == 1 + TOKENS + 1 + 1 + 1 + 1
    with pytest.raises(ValueError):
        json.loads(call_failing(simulator, Fault.MALFORMED_CHUNK, False).body)


@BOTH_WAYS
def test_a_giant_event(simulator: SimulatorProcess, stream: bool) -> None:
    """One event, or the body, has at least the wished size."""
    answer = call_failing(simulator, Fault.GIANT_EVENT, stream, event_bytes=300_000)
    assert max(map(len, answer.events if stream else [answer.body])) > 300_000
    assert answer.ended == "whole"


@BOTH_WAYS
def test_missing_and_mad_usage(simulator: SimulatorProcess, stream: bool) -> None:
    """Usage is absent though it was asked for, or has counts nobody may believe."""

    def usages(fault: Fault) -> list[Any]:
        answer = call_failing(simulator, fault, stream)
        objects = answer.objects if stream else [answer.json]
        return [item["usage"] for item in objects if "usage" in item]

    assert usages(Fault.NO_USAGE) == []
    assert usages(Fault.BAD_USAGE)[-1]["prompt_tokens"] == -7


def test_line_ends_and_comments(simulator: SimulatorProcess) -> None:
    """CRLF, a space before the newlines, comment lines: the events are the same."""
    plain = call(simulator, {**chat(sim={"text": TEXT}, stream=True), "stream_options": USAGE})
    assert call_failing(simulator, Fault.CRLF, True).body.count(b"\r\n\r\n") == len(plain.events)
    assert call_failing(simulator, Fault.SPACE_NEWLINES, True).body.count(b" \n\n") == len(plain.events)
    assert call_failing(simulator, Fault.COMMENTS, True).body.count(b": keep-alive\n\n") == len(plain.events)
    for fault in (Fault.CRLF, Fault.SPACE_NEWLINES, Fault.COMMENTS):
        answer = call_failing(simulator, fault, True)
        assert (answer.text, answer.ended, len(answer.events)) == (TEXT, "whole", len(plain.events))


def test_unusual_ends_of_a_stream(simulator: SimulatorProcess) -> None:
    """Without [DONE]; without HTTP's last chunk; whole, and then the connection is closed unannounced."""
    no_done = call_failing(simulator, Fault.NO_DONE, True)
    assert (no_done.ended, no_done.text) == ("whole", TEXT)
    assert "[DONE]" not in no_done.events
    no_final = call_failing(simulator, Fault.NO_FINAL_CHUNK, True)
    assert (no_final.ended, no_final.events[-1]) == ("eof", "[DONE]")
    with connected(simulator) as sock:
        sock.sendall(request_bytes(failing(Fault.CLOSE_AFTER_ANSWER, True)))
        answer = read_answer(sock)
        assert (answer.ended, answer.events[-1], "connection" in answer.headers) == ("whole", "[DONE]", False)
        assert sock.recv(1) == b""


def test_a_kept_connection_that_was_closed_meanwhile(simulator: SimulatorProcess) -> None:
    """close_when_reused spares a new connection and closes one that served before, as a stale pool sees it."""
    with connected(simulator) as sock:
        sock.sendall(request_bytes(failing(Fault.CLOSE_WHEN_REUSED, False)))
        assert read_answer(sock).status == 200
        sock.sendall(request_bytes(failing(Fault.CLOSE_WHEN_REUSED, False)))
        assert (answer := read_answer(sock)).raw == b""
        assert answer.ended == "eof"


@BOTH_WAYS
def test_byte_by_byte(simulator: SimulatorProcess, stream: bool) -> None:
    """Every byte is a packet, in streams also an HTTP chunk; put together it is the answer."""
    answer = call_failing(simulator, Fault.BYTE_BY_BYTE, stream)
    assert answer.ended == "whole"
    if stream:
        assert {len(chunk) for chunk in answer.chunks} == {1}
        assert answer.text == TEXT
    else:
        assert answer.json["choices"][0]["message"]["content"] == TEXT


def test_a_coalesced_stream(simulator: SimulatorProcess) -> None:
    """All events come in one HTTP chunk."""
    answer = call_failing(simulator, Fault.COALESCED, True)
    assert len(answer.chunks) == 1
    assert (answer.text, answer.events[-1]) == (TEXT, "[DONE]")


@BOTH_WAYS
def test_slow_headers(simulator: SimulatorProcess, stream: bool) -> None:
    """The head takes its time, byte by byte; then the answer is as usual."""
    started = time.monotonic()
    with connected(simulator) as sock:
        sock.sendall(request_bytes(failing(Fault.SLOW_HEADERS, stream, seconds=0.3)))
        first = sock.recv(65536)
        assert len(first) < 20
        answer = read_answer(sock, first)
    assert time.monotonic() - started >= 0.25
    assert answer.ended == "whole"
    assert (answer.text if stream else answer.json["choices"][0]["message"]["content"]) == TEXT


def test_every_fault_is_recorded_and_none_breaks_the_process(simulator: SimulatorProcess) -> None:
    """After each fault, both ways: the record names it and has ended, no slot is lost, the next request works."""
    for fault in Fault:
        for stream in (True, False):
            request_id = f"req_{fault}_{stream}"
            with connected(simulator, 0.5) as sock:
                data = request_bytes(failing(fault, stream, seconds=0.05), headers=f"x-request-id: {request_id}\r\n")
                sock.sendall(data)
                read_answer(sock)
            give_up = time.monotonic() + 5
            while (record := record_of(simulator, request_id))["state"] in ("running", "waiting"):
                assert time.monotonic() < give_up, f"{request_id} never ended"
                time.sleep(0.01)
            assert record["fault"] == fault.value
            if fault in BEFORE_ANSWER and fault is not Fault.CLOSE_WHEN_REUSED:
                assert record["completion_tokens"] == 0
            assert call(simulator, chat(sim={"text": TEXT})).json["usage"]["completion_tokens"] == TOKENS
    stats = get(simulator, "/sim/stats")
    assert (stats["running"], stats["active"]) == (0, 0)


def test_plans_set_while_it_runs(simulator: SimulatorProcess) -> None:
    """A plan strikes as often as it says, can change any option, and is gone when deleted."""
    plans = [
        {"fail": "503", "times": 2, "retry_after_s": 3},
        {"text": "Changed.", "times": 1, "stream": False},
        {"fail": "500", "route": "health", "times": 1},
    ]
    posted = call(simulator, {"faults": plans}, "/sim/faults")
    assert (posted.status, len(posted.json["faults"])) == (200, 3)
    assert [call(simulator, chat()).status for _ in range(3)] == [503, 503, 200]
    assert [plan["fired"] for plan in get(simulator, "/sim/faults")["faults"]] == [2, 1, 0]
    assert [call(simulator, None, "/health", "GET").status for _ in range(2)] == [500, 200]
    call(simulator, {"vocabulary": "unicode", "tokens": 400}, "/sim/faults")
    assert "\u2028" in call(simulator, chat()).json["choices"][0]["message"]["content"]
    assert call(simulator, None, "/sim/faults", "DELETE").json == {"faults": []}
    assert "\u2028" not in call(simulator, chat()).json["choices"][0]["message"]["content"]


def test_a_refusing_plan_resets_before_the_body_is_read(simulator: SimulatorProcess) -> None:
    """The connection is reset when only the head was sent."""
    call(simulator, {"fail": "refuse", "times": 1}, "/sim/faults")
    with connected(simulator) as sock:
        sock.sendall(request_bytes(chat())[:80].partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
        assert read_answer(sock).ended == "reset"
    assert call(simulator, chat()).status == 200


def test_the_header_x_sim_does_what_the_field_does(simulator: SimulatorProcess) -> None:
    """Options may come beside a body that must stay clean; the field wins over the header."""
    header = 'x-sim: {"text": "From the header.", "fail": "no_usage"}\r\n'
    answer = call(simulator, chat(), headers=header).json
    assert answer["choices"][0]["message"]["content"] == "From the header."
    assert "usage" not in answer
    both = call(simulator, chat(sim={"text": "From the field."}), headers=header).json
    assert both["choices"][0]["message"]["content"] == "From the field."


def test_connections_are_refused_for_a_while() -> None:
    """/sim/refuse closes the listening socket and idle connections, and opens it again by itself."""
    with running("--model", MODEL) as simulator, connected(simulator) as idle:
        assert call(simulator, {"seconds": 0.5}, "/sim/refuse").status == 200
        assert idle.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", simulator.port), 5)
        give_up = time.monotonic() + 10
        while True:
            try:
                assert call(simulator, None, "/health", "GET").status == 200
                break
            except ConnectionRefusedError:
                assert time.monotonic() < give_up, "it never listened again"
                time.sleep(0.05)


def test_a_storm_of_faults_and_hang_ups_loses_no_account(simulator: SimulatorProcess) -> None:
    """After hundreds of random faults and hang-ups at once: nothing runs, and the sums are those of the records."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    call(simulator, None, "/sim/requests", "DELETE")
    jobs = []
    for _ in range(400):
        fault = rng.choice([None, None, None, *Fault])
        sim = {"fail": fault, "tokens": rng.randrange(1, 60), "after_tokens": rng.randrange(20), "seconds": 0.05}
        body = chat(stream=rng.random() < 0.7, n=rng.choice([1, 1, 3]), sim={**sim, "event_bytes": 1000})
        jobs.append((request_bytes(body), rng.random() < 0.3, rng.random() * 0.1))

    def work(part: list[tuple[bytes, bool, float]]) -> None:
        for data, hangs_up, after_s in part:
            with connected(simulator, 0.3) as sock:
                sock.sendall(data)
                if hangs_up:
                    time.sleep(after_s)
                else:
                    read_answer(sock)

    threads = [threading.Thread(target=work, args=(jobs[n::16],)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    give_up = time.monotonic() + 20
    while (stats := get(simulator, "/sim/stats"))["active"]:
        assert time.monotonic() < give_up, stats
        time.sleep(0.05)
    assert (stats["running"], stats["waiting"]) == (0, 0)
    records = get(simulator, "/sim/requests?limit=5000")["requests"]
    totals = stats["totals"]
    assert len(records) == totals["requests"] == 400
    assert sum(record["completion_tokens"] for record in records) == totals["completion_tokens"]
    assert totals["finished"] + totals["cancelled"] + totals["failed"] == 400
