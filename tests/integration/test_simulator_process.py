"""The simulator as a process: flags, slots, time, and its end."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from backends.simulator.process import SimulatorDidNotStart, running, start
from tests.integration.simulator_tools import MODEL, call, chat, connected, get, read_answer, record_of, request_bytes


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--itl-ms", "-1"], "--itl-ms must be"),
        (["--port", "70000"], "--port must be"),
        (["--tokens", "many"], "'many' is not a valid integer"),
        (["--overload-status", "418"], "--overload-status must be 429 or 503"),
        (["--model", "a", "--model", "a"], "--model names the same id twice"),
        (["--keep-alive-s", "-2"], "--keep-alive-s must be"),
        (["--colour", "red"], "No such option"),
    ],
)
def test_wrong_flags_get_a_sentence(flags: list[str], sentence: str) -> None:
    """Exit status 2, a sentence that names the flag, no stack trace."""
    command = [sys.executable, "-m", "backends.simulator", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_gets_a_sentence() -> None:
    """The second one on a port says so and ends."""
    with running() as first:
        command = [sys.executable, "-m", "backends.simulator", "--port", str(first.port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert "the port is in use" in done.stderr
        assert "Traceback" not in done.stderr
        with pytest.raises(SimulatorDidNotStart):
            start(port=first.port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_in_the_middle_of_its_work(number: int) -> None:
    """Streams in progress, idle connections and hanging requests do not keep it; exit status 0."""
    simulator = start("--model", MODEL, "--ttft-ms", "0")
    with connected(simulator) as streaming, connected(simulator), connected(simulator) as hanging:
        streaming.sendall(request_bytes(chat(stream=True, sim={"itl_ms": 50, "tokens": 1000})))
        hanging.sendall(request_bytes(chat(sim={"fail": "hang_before_head"})))
        begun = streaming.recv(65536)
        assert begun
        simulator.process.send_signal(number)
        assert simulator.process.wait(10) == 0
        assert read_answer(streaming, begun).ended in ("eof", "reset")
    simulator.stop()


@pytest.mark.parametrize(("overload", "status"), [("503", 503), ("429", 429)])
def test_slots_queue_and_overload(overload: str, status: int) -> None:
    """Two run, one waits and has its turn, the fourth is turned away; a waiting client may leave."""
    flags = ["--model", MODEL, "--max-concurrency", "2", "--max-queue", "1", "--overload-status", overload]
    body = chat(stream=True, sim={"ttft_ms": 0, "itl_ms": 5, "tokens": 30})
    endless = chat(stream=True, sim={"ttft_ms": 0, "itl_ms": 20, "tokens": 100_000, "text": None}, ignore_eos=True)
    with running(*flags) as simulator:
        with connected(simulator) as one, connected(simulator) as two, connected(simulator) as three:
            one.sendall(request_bytes(endless, headers="x-request-id: req_one\r\n"))
            record_of(simulator, "req_one", "running")
            two.sendall(request_bytes(endless, headers="x-request-id: req_two\r\n"))
            record_of(simulator, "req_two", "running")
            three.sendall(request_bytes(body, headers="x-request-id: req_three\r\n"))
            record_of(simulator, "req_three", "waiting")
            turned_away = call(simulator, body)
            assert (turned_away.status, turned_away.headers["retry-after"]) == (status, "1")
            stats = get(simulator, "/sim/stats")
            assert (stats["running"], stats["waiting"]) == (2, 1)
            metrics = call(simulator, None, "/metrics", "GET").body.decode()
            assert 'num_requests_running{model_name="sim-8b"} 2.0' in metrics
            assert 'num_requests_waiting{model_name="sim-8b"} 1.0' in metrics
            one.close()
            assert read_answer(three).events[-1] == "[DONE]"
            with connected(simulator) as four, connected(simulator) as five:
                four.sendall(request_bytes(endless, headers="x-request-id: req_four\r\n"))
                record_of(simulator, "req_four", "running")
                five.sendall(request_bytes(body, headers="x-request-id: req_five\r\n"))
                record_of(simulator, "req_five", "waiting")
            assert record_of(simulator, "req_five", "cancelled")["completion_tokens"] == 0
        give_up = time.monotonic() + 10
        while (stats := get(simulator, "/sim/stats"))["active"]:
            assert time.monotonic() < give_up, stats
        assert (stats["running"], stats["waiting"]) == (0, 0)


def test_time_is_kept() -> None:
    """Time to first token, time between tokens and speed are what the flags say: never shorter."""
    with running("--model", MODEL, "--ttft-ms", "400", "--itl-ms", "40", "--speed", "2") as simulator:
        started = time.monotonic()
        with connected(simulator) as sock:
            sock.sendall(request_bytes(chat(stream=True, max_tokens=6)))
            head = sock.recv(65536)
            assert head.startswith(b"HTTP/1.1 200 OK")
            assert b"data: " not in head
            first_token = sock.recv(65536)
            first_s = time.monotonic() - started
            answer = read_answer(sock, head + first_token)
        assert first_s >= 0.19
        assert time.monotonic() - started >= 0.19 + 5 * 0.02
        assert answer.events[-1] == "[DONE]"
        started = time.monotonic()
        call(simulator, chat(max_tokens=6))
        assert time.monotonic() - started >= 0.19 + 5 * 0.02


def test_idle_connections_are_closed_after_a_while() -> None:
    """With --keep-alive-s a connection that asks nothing gets FIN; one that is being served does not."""
    with running("--model", MODEL, "--keep-alive-s", "0.2") as simulator, connected(simulator) as sock:
        sock.sendall(request_bytes(chat(sim={"ttft_ms": 500, "itl_ms": 0})))
        assert read_answer(sock).status == 200
        assert sock.recv(1) == b""


def test_replicas_with_the_same_seed_answer_the_same() -> None:
    """Two processes with one seed give one answer; another seed gives another."""
    flags = ["--model", MODEL, "--ttft-ms", "0", "--itl-ms", "0"]

    def answer(*more: str) -> str:
        with running(*flags, *more) as simulator:
            return str(call(simulator, chat(temperature=0)).json["choices"][0]["message"]["content"])

    assert answer("--replica", "a") == answer("--replica", "b") != answer("--seed", "1")


def test_hundreds_of_streams_at_once() -> None:
    """400 streams at the same time all end whole, and the sums agree with what arrived."""
    with running("--model", MODEL, "--ttft-ms", "10", "--itl-ms", "5") as simulator:
        data = request_bytes(chat(stream=True, ignore_eos=True, max_tokens=40))
        socks = [socket.create_connection(("127.0.0.1", simulator.port), 20) for _ in range(400)]
        for sock in socks:
            sock.sendall(data)
        wrong: list[int] = []

        def read(part: list[socket.socket]) -> None:
            for sock in part:
                answer = read_answer(sock)
                if answer.ended != "whole" or len(answer.objects) != 41:
                    wrong.append(len(answer.objects))

        threads = [threading.Thread(target=read, args=(socks[n::4],)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert get(simulator, "/sim/stats")["totals"]["completion_tokens"] == 400 * 40
        for sock in socks:
            sock.close()
