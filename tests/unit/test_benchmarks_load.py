"""The load generator against servers that behave and that do not: what it counts, and from when."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import trustme

from benchmarks.load import Arrivals, Distribution, GroupUse, Load, LoadFailed, Measurement, Progress, Target, run
from benchmarks.load.connection import Connection
from benchmarks.load.tally import Tally
from benchmarks.load.watch import Watch
from benchmarks.load.worker import Worker

EVENTS = [b'data: {"n":%d,"text":"data: x"}\n\n' % number for number in range(4)]
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


def chunks(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def stream(*, events: int = 4, done: bool = True) -> bytes:
    return CHUNKED + chunks(*EVENTS[:events], *([b"data: [DONE]\n\n"] if done else []))


# ---------------------------------------------------------------------------------------- one connection


class FakeOwner:
    """What a worker is to a connection, and a record of what it was told."""

    def __init__(self, port: int, *, stream: bool, expect_status: int = 200, tokens_known: bool = True) -> None:
        self.epoll = select.epoll()
        self.by_number: dict[int, Connection] = {}
        self.address = (socket.AF_INET, ("127.0.0.1", port))
        self.tls: ssl.SSLContext | None = None
        self.tls_name = ""
        self.stream, self.expect_status, self.tokens_known = stream, expect_status, tokens_known
        self.counting = Tally()
        self.firsts = 0
        self.ends: list[str | None] = []

    def first_event(self, connection: Connection, now_s: float) -> None:
        self.firsts += 1

    def ended(self, connection: Connection, now_s: float, error: str | None) -> None:
        self.ends.append(error)

    def later(self, connection: Connection, error: str) -> None:
        self.ends.append(error)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


class Talk:
    """A connection whose other end the test holds."""

    def __init__(self, listener: socket.socket, **owner: object) -> None:
        self.listener = listener
        self.owner = FakeOwner(listener.getsockname()[1], **owner)  # type: ignore[arg-type]
        self.connection = Connection(self.owner)
        self.server: socket.socket | None = None

    def ask(self, tokens: int = 4) -> None:
        """Send a request and take it in at the other end."""
        self.connection.send(b"GET / HTTP/1.1\r\n\r\n", tokens, due_s=time.monotonic())
        if self.server is None:
            # It connects, or finds out that the connection it had was closed and connects again.
            self.pump(5.0)
            self.server, _ = self.listener.accept()
            self.server.settimeout(5)
            self.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pump(0.05)
        assert self.server.recv(100)

    def answer(self, *parts: bytes) -> None:
        """Send parts, each of which is read by itself."""
        assert self.server is not None
        for part in parts:
            if part:
                self.server.sendall(part)
                self.pump(5.0)

    def pump(self, wait_s: float) -> None:
        """Let the connection do what is due, as the worker's loop does."""
        for number, mask in self.owner.epoll.poll(wait_s):
            if number in self.owner.by_number:
                self.owner.by_number[number].ready(mask)

    def hang_up(self) -> None:
        assert self.server is not None
        self.server.close()
        self.server = None
        self.pump(5.0)

    def close(self) -> None:
        self.connection.close()
        self.owner.epoll.close()
        if self.server is not None:
            self.server.close()


@pytest.fixture
def talk(listener: socket.socket) -> Iterator[Callable[..., Talk]]:
    talks = []

    def begin(**owner: object) -> Talk:
        talks.append(Talk(listener, **owner))
        return talks[-1]

    yield begin
    for one in talks:
        one.close()


def test_a_stream_is_counted_right_wherever_it_is_cut(talk: Callable[..., Talk]) -> None:
    """Events, the first one and the end are the same whether it comes whole or in two parts, cut at any byte."""
    whole = stream()
    one = talk(stream=True)
    for cut in range(len(whole)):
        one.ask()
        one.answer(whole[:cut], whole[cut:])
        done = cut + 1
        assert (one.owner.counting.events, one.owner.firsts, one.owner.ends) == (4 * done, done, [None] * done), cut


def test_a_stream_byte_by_byte_is_counted_right(talk: Callable[..., Talk]) -> None:
    """Every byte a read of its own."""
    one = talk(stream=True)
    one.ask()
    one.answer(*(bytes([byte]) for byte in stream()))
    assert (one.owner.counting.events, one.owner.firsts, one.owner.ends) == (4, 1, [None])


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"{", b"}"),
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
    ],
)
def test_a_whole_answer_ends_where_it_does(talk: Callable[..., Talk], answer: bytes) -> None:
    """By its length or its last chunk, cut at any byte; the connection is used again."""
    one = talk(stream=False, tokens_known=False)
    for cut in range(len(answer)):
        one.ask()
        one.answer(answer[:cut], answer[cut:])
        assert one.owner.ends == [None] * (cut + 1), cut
    assert len(one.owner.by_number) == 1


def test_an_answer_that_ends_with_its_connection(talk: Callable[..., Talk]) -> None:
    """Neither length nor chunks: the end of the connection is the end, and the next request opens another."""
    for is_stream in (False, True):
        one = talk(stream=is_stream, tokens_known=is_stream)
        one.ask()
        one.answer(b"HTTP/1.1 200 OK\r\n\r\n" + b"".join(EVENTS) + b"data: [DONE]\n\n")
        assert one.owner.ends == []
        one.hang_up()
        assert one.owner.ends == [None]
        one.ask()
        one.answer(OK)
        assert len(one.owner.ends) == 2


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        ("status 503", b"HTTP/1.1 503 Busy\r\ncontent-length: 2\r\n\r\n{}"),
        ("a stream without [DONE]", stream(done=False)),
        ("a stream with too few events", stream(events=3)),
        ("a stream without [DONE]", OK),
        ("not HTTP", b"SSH-2.0-OpenSSH\r\n\r\n"),
    ],
)
def test_a_wrong_stream_is_an_error(talk: Callable[..., Talk], error: str, answer: bytes) -> None:
    """What is not right is never counted as an answer, and the error says what it was."""
    one = talk(stream=True)
    one.ask()
    one.answer(answer)
    assert one.owner.ends == [error]


def test_a_stream_that_breaks_off_is_an_error(talk: Callable[..., Talk]) -> None:
    """However much of it came before."""
    one = talk(stream=True)
    one.ask()
    one.answer(stream()[:-5])
    one.hang_up()
    assert one.owner.ends == ["closed before the end"]


@pytest.mark.parametrize(("tokens", "error"), [(4, None), (5, "an answer with another number of tokens")])
def test_the_usage_of_a_whole_answer_is_checked(talk: Callable[..., Talk], tokens: int, error: str | None) -> None:
    """An engine that is known to deliver what is asked for, and does not, is not measured in silence."""
    body = b'{"usage": {"completion_tokens": 4}}'
    one = talk(stream=False)
    one.ask(tokens)
    one.answer(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body)
    assert one.owner.ends == [error]


def test_another_status_may_be_what_is_right(talk: Callable[..., Talk]) -> None:
    """A load of refusals counts a refusal as an answer, and an answer as an error."""
    one = talk(stream=False, expect_status=402)
    one.ask()
    one.answer(b"HTTP/1.1 402 Payment Required\r\ncontent-length: 2\r\n\r\n{}")
    one.ask()
    one.answer(OK)
    assert one.owner.ends == [None, "status 200"]


def test_a_kept_connection_that_the_server_closed_is_replaced(talk: Callable[..., Talk]) -> None:
    """A request that meets the close of its connection is sent once more, as every HTTP client does; once only."""
    one = talk(stream=False, tokens_known=False)
    one.ask()
    one.answer(OK)
    assert one.server is not None
    one.server.close()
    one.server = None
    one.ask()
    one.answer(OK)
    assert one.owner.ends == [None, None]
    one.ask()
    one.answer(OK[:20])
    one.hang_up()
    assert one.owner.ends == [None, None, "closed before the end"]


# ---------------------------------------------------------------------------------------- whole loads


class Server:
    """Answers each request after what `delay_s` says at that moment, in a thread for each connection."""

    def __init__(self, answer: bytes = OK, tls: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.tls = tls
        self.delay_s: Callable[[], float] = lambda: 0.0
        self.served = 0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    @property
    def target(self) -> Target:
        scheme, host = ("https", "localhost") if self.tls else ("http", "127.0.0.1")
        return Target(f"{scheme}://{host}:{self.listener.getsockname()[1]}", "k", "m")

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.threads.append(threading.Thread(target=self.serve, args=(sock,), daemon=True))
                self.threads[-1].start()

    def serve(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError), self.tls.wrap_socket(sock, server_side=True) if self.tls else sock as peer:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    if not (more := peer.recv(1 << 16)):
                        return
                    data += more
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                while len(body) < length:
                    body += peer.recv(1 << 16)
                data = body[length:]
                time.sleep(self.delay_s())
                peer.sendall(self.answer)
                self.served += 1

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def carry_out(target: Target, load: Load) -> tuple[Tally, dict[str, object]]:
    """A load by one worker in this process."""
    report = Worker(target, load, number=0, processes=1).run(time.monotonic())
    tally = Tally()
    tally.merge(report["tally"])
    return tally, report


def test_a_server_that_stalls_shows_it(server: Server) -> None:
    """Coordinated omission: what was due while the server stood still waited, though it was not sent before it went on.

    Four connections, 100 requests a second, and a second in which nothing is answered: measured from when they were
    sent only four requests were slow; measured from when they were due a hundred were.
    """
    begun_s = time.monotonic()

    def stall() -> float:
        since_s = time.monotonic() - begun_s
        return 1.7 - since_s if 0.7 <= since_s < 1.7 else 0.0

    server.delay_s = stall
    load = Load(name="stall", rate_per_s=100, arrivals=Arrivals.EVEN, max_open=4, seconds=2.5, warm_up_s=0.2)
    tally, _ = carry_out(server.target, load)
    times = tally.times
    assert times["latency"].total == times["latency_sent"].total
    assert times["latency"].total == pytest.approx(250, abs=2)
    assert times["latency"].share_above(0.5) * 250 > 30
    assert times["latency_sent"].share_above(0.5) * 250 < 10
    assert times["latency"].max_s > 0.9
    # And the generator says that it sent late.
    assert times["send_lag"].max_s > 0.8


def test_what_never_ends_counts_as_slow_and_as_an_error(server: Server) -> None:
    """A request that has no answer when the load is over is not left out: it took at least until then."""
    server.delay_s = lambda: 1.2
    load = Load(name="dead", rate_per_s=20, arrivals=Arrivals.EVEN, max_open=3, seconds=0.5, warm_up_s=0, drain_s=0.3)
    tally, _ = carry_out(server.target, load)
    due = tally.times["latency"].total
    assert due == pytest.approx(10, abs=1)
    assert tally.errors == {"not ended in time": due}
    assert tally.times["latency"].percentile_s(100) > 0.7
    assert tally.requests == 0


def test_a_closed_loop_without_any_answer_is_no_success(server: Server) -> None:
    """Requests that were sent before it was measured and got nothing until it was over are errors, not merely cut."""
    server.delay_s = lambda: 1.5
    load = Load(name="dead", connections=3, seconds=0.4, warm_up_s=0.4, drain_s=0.1)
    tally, _ = carry_out(server.target, load)
    assert tally.errors == {"no answer in all of the measured time": 3}
    assert tally.cut == 0


def test_an_open_loop_keeps_its_rate_and_a_closed_one_its_connections(server: Server) -> None:
    """The rate holds although answers take longer than the time between two requests; the number at once follows."""
    server.delay_s = lambda: 0.1
    load = Load(name="open", rate_per_s=60, arrivals=Arrivals.EVEN, seconds=1.5, warm_up_s=0.3)
    tally, report = carry_out(server.target, load)
    assert tally.times["latency"].total == pytest.approx(90, abs=2)
    assert tally.requests == pytest.approx(90, abs=15)
    assert report["open_mean"] >= 5.5  # 60 a second, at least 0.1 s each
    assert not tally.errors
    closed = Load(name="closed", connections=7, seconds=1.0, warm_up_s=0.3)
    tally, report = carry_out(server.target, closed)
    assert report["open_mean"] == pytest.approx(7, rel=0.05)
    assert 7 <= tally.requests <= 77
    assert not tally.errors


def test_a_server_that_is_not_there_is_an_error_of_each_request(listener: socket.socket) -> None:
    """And is not asked without a pause."""
    port = listener.getsockname()[1]
    listener.close()
    load = Load(name="nobody", connections=2, seconds=0.5, warm_up_s=0)
    tally, _ = carry_out(Target(f"http://127.0.0.1:{port}", "k", "m"), load)
    assert set(tally.errors) == {"connection refused"}
    assert 2 <= tally.errors.total() <= 20
    assert tally.requests == 0


def test_the_same_over_tls(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment behind https is loaded like any other, and its certificate is checked."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    server = Server(tls=context)
    load = Load(name="tls", connections=3, seconds=0.5, warm_up_s=0.3, prompt_tokens=Distribution.parse(20_000))
    try:
        tally, _ = carry_out(server.target, load)
        assert tally.requests == 0
        assert all(kind.startswith("TLS: ") for kind in tally.errors)
        with authority.cert_pem.tempfile(dir=str(tmp_path)) as bundle:
            monkeypatch.setenv("SSL_CERT_FILE", bundle)
            tally, _ = carry_out(server.target, load)
        assert tally.requests >= 3
        assert not tally.errors
    finally:
        server.close()


def test_processes_divide_a_load_and_their_counts_are_added(server: Server) -> None:
    """Two worker processes have five connections together; what they saw is one measurement, which survives JSON."""
    server.answer = stream()
    load = Load(
        name="two", connections=5, stream=True, seconds=0.6, warm_up_s=0.4, max_tokens=Distribution.parse(4),
        tokens_known=True,
    )  # fmt: skip
    seen = []
    measured = run(server.target, load, watch={"us": [threading.get_native_id()]}, processes=2, progress=seen.append)
    assert len(measured.generator_shares) == 2
    assert all(0 < share < 1 for share in measured.generator_shares)
    assert measured.open_mean == pytest.approx(5, rel=0.1)
    assert measured.errors == {}
    assert measured.statuses == {200: measured.requests}
    assert measured.requests >= 5
    assert abs(measured.events - 4 * measured.requests) <= 4 * 5
    assert measured.latency.total == measured.requests
    assert measured.groups["us"].cpu_s > 0
    assert measured.cpu_us_per_request("us") == pytest.approx(measured.groups["us"].cpu_s / measured.requests * 1e6)
    assert {"start", "warm-up", "done"} <= {one.phase for one in seen}
    assert seen[-1].requests <= server.served
    assert Measurement.from_json(json.loads(json.dumps(measured.to_json()))) == measured


def test_a_name_that_nobody_has_is_said() -> None:
    """Before anything is sent, in a sentence."""
    with pytest.raises(LoadFailed, match="cannot be used"):
        run(Target("http://nobody.invalid", "k", "m"), Load(name="x", connections=1, seconds=0.1, warm_up_s=0))


def test_a_watched_process_that_is_gone_is_said(server: Server) -> None:
    """Before or in the middle: no figure is made of a process that was not there all the time."""
    load = Load(name="x", connections=1, seconds=0.5, warm_up_s=0.2)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    with pytest.raises(LoadFailed, match=f"Process {gone.pid} of theirs"):
        run(server.target, load, watch={"theirs": [gone.pid]})
    going = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def end(progress: Progress) -> None:
        if progress.phase == "measure":
            going.kill()
            going.wait()

    with pytest.raises(LoadFailed, match=f"Process {going.pid} of theirs"):
        run(server.target, load, watch={"theirs": [going.pid]}, progress=end)


def test_cpu_and_memory_are_those_of_a_process_and_its_children() -> None:
    """A child that works and a child that holds memory are seen in the group of their parent, and in no other."""
    busy = (
        "import sys, time; print(flush=True); sys.stdin.readline(); begun_s = time.process_time()\n"
        "while time.process_time() - begun_s < 0.3: pass\n"
        "print(flush=True); time.sleep(60)"
    )
    large = "import time; kept = b'x' * 50_000_000; print(flush=True); time.sleep(60)"
    parent = (
        "import subprocess, sys, time\n"
        f"children = [subprocess.Popen([sys.executable, '-c', code]) for code in ({busy!r}, {large!r})]\n"
        "time.sleep(60)"
    )
    command, both = [sys.executable, "-c", parent], subprocess.PIPE
    idle = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with subprocess.Popen(command, stdin=both, stdout=both, start_new_session=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.read(2) == b"\n\n"
        try:
            watch = Watch({"them": [process.pid], "idle": [idle.pid]})
            watch.begin()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.read(1) == b"\n"
            use = watch.end()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            idle.kill()
            idle.wait()
    assert 0.3 <= use["them"].cpu_s < 0.6
    assert use["them"].rss_peak_bytes > 50_000_000
    assert use["idle"].cpu_s < 0.1
    assert use["idle"].rss_peak_bytes < 50_000_000


def test_figures_per_stream_and_per_core() -> None:
    """The arithmetic that the floors are compared with."""
    load = Load(name="x", connections=2000, stream=True, pace_ms=10)
    empty = {name: Tally().times[name] for name in Tally().times}
    measured = Measurement(
        load=load, seconds=10.0, requests=0, events=1_500_000, statuses={}, errors={"a": 2, "b": 3}, cut=2000,
        open_mean=2000.0, groups={"g": GroupUse(5.0, 100_000_000, 180_000_000, 190_000_000)}, **empty,
    )  # fmt: skip
    assert measured.events_per_s == 150_000
    assert measured.due_events_per_s == 200_000
    assert measured.cpu_us_per_event("g") == pytest.approx(3.333, abs=0.001)
    assert measured.events_per_core_s("g") == 300_000
    assert measured.cpu_us_per_request("g") is None
    assert measured.cpu_share("g") == 0.5
    assert measured.bytes_per_open("g") == 40_000
    assert measured.error_count == 5
