"""What the simulator serves on one core: paced chunks, whole streams and small answers a second.

    python -m benchmarks.micro.simulator [--seconds 5] [--streams 300 --streams 800] [--flags "--itl-ms 10"]

Starts a simulator of its own, on core 0 where cores can be chosen, and loads it from this process on another core
with plain sockets and epoll; the reader counts bytes, it parses nothing. The simulator's CPU is read from
``/proc/<pid>/stat``, so that the cost per chunk holds also on a machine that others use.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shlex
import shutil
import socket
import time
from collections.abc import Callable

from backends.simulator.process import SimulatorProcess, running

MODEL = "sim-8b"
_MARK = b"data: {"
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="how long each measurement lasts")
    parser.add_argument("--streams", type=int, action="append", help="concurrent paced streams; repeatable")
    parser.add_argument("--itl-ms", type=float, default=10.0, help="milliseconds between tokens of a paced stream")
    parser.add_argument("--flags", default="", help="further flags for the simulator")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {seconds:g} s each\n")
    prefix: list[str] = []
    if shutil.which("taskset") and len(os.sched_getaffinity(0)) > 1:
        first, *others = sorted(os.sched_getaffinity(0))
        prefix = ["taskset", "-c", str(first)]
        os.sched_setaffinity(0, others)
    flags = ["--model", MODEL, "--context", "1000000", "--ttft-ms", "10", *shlex.split(arguments.flags)]
    print(f"{'load':<44} {'per second':>12} {'CPU':>7} {'us each':>9}")
    with running(*flags, prefix=prefix) as simulator:
        for streams in arguments.streams or [300, 800]:
            for usage in (False, True):
                paced(simulator, streams, arguments.itl_ms, usage=usage, seconds=seconds)
    with running(*flags, "--ttft-ms", "0", "--itl-ms", "0", prefix=prefix) as simulator:
        body: dict[str, object] = {"max_tokens": 64, "ignore_eos": True}
        answers(simulator, "64-token streams sent at once, 64 connections", {**body, "stream": True}, seconds)
        answers(simulator, "16-token answers, 64 connections", {**body, "max_tokens": 16}, seconds)
        embedding: dict[str, object] = {"model": MODEL, "input": "The red ship sails."}
        answers(simulator, "embeddings, 64 connections", embedding, seconds, path="/v1/embeddings")


def paced(simulator: SimulatorProcess, streams: int, itl_ms: float, *, usage: bool, seconds: float) -> None:
    """Streams that get a token every `itl_ms`, with or without continuous usage."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    tokens = int((seconds + 5) * 1000 / itl_ms)
    body = {"stream": True, "max_tokens": tokens, "ignore_eos": True, "sim": {"itl_ms": itl_ms}}
    data = request({**body, **({"stream_options": options} if usage else {})})
    socks = [socket.create_connection(("127.0.0.1", simulator.port)) for _ in range(streams)]
    poll = select.epoll()
    by_number = {sock.fileno(): sock for sock in socks}
    for sock in socks:
        poll.register(sock, select.EPOLLIN)
        sock.sendall(data)

    def read_for(duration_s: float) -> int:
        chunks, until = 0, time.monotonic() + duration_s
        while time.monotonic() < until:
            for number, _ in poll.poll(0.1):
                chunks += by_number[number].recv(1 << 18).count(_MARK)
        return chunks

    read_for(1.0)
    name = f"{streams} streams, a token each {itl_ms:g} ms" + (", usage in each" if usage else "")
    wanted = streams / itl_ms * 1000
    report(simulator, name, lambda: read_for(seconds), wanted=wanted)
    poll.close()
    for sock in socks:
        sock.close()
    time.sleep(0.5)


def answers(
    simulator: SimulatorProcess, name: str, body: dict[str, object], seconds: float, path: str = "/v1/chat/completions"
) -> None:
    """Requests one after the other on each of 64 connections."""
    data = request(body, path)
    socks = [socket.create_connection(("127.0.0.1", simulator.port)) for _ in range(64)]
    streamed = bool(body.get("stream"))
    poll = select.epoll()
    by_number = {sock.fileno(): sock for sock in socks}
    left = dict.fromkeys(by_number, 0)
    for sock in socks:
        poll.register(sock, select.EPOLLIN)
        sock.sendall(data)

    def exchange_for(duration_s: float) -> int:
        done, until = 0, time.monotonic() + duration_s
        while time.monotonic() < until:
            for number, _ in poll.poll(0.1):
                received = by_number[number].recv(1 << 18)
                if streamed:
                    whole = received.endswith(_LAST_CHUNK)
                else:
                    left[number] = rest(received) if left[number] == 0 else left[number] - len(received)
                    whole = left[number] == 0
                if whole:
                    done += 1
                    by_number[number].sendall(data)
        return done

    exchange_for(0.5)
    report(simulator, name, lambda: exchange_for(seconds))
    poll.close()
    for sock in socks:
        sock.close()


def rest(received: bytes) -> int:
    """Bytes of a response that have not come yet."""
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return length - len(body)


def report(simulator: SimulatorProcess, name: str, work: Callable[[], int], wanted: float | None = None) -> None:
    """Print one line of the table."""
    pid = simulator.process.pid
    cpu_s, started_s = cpu_seconds(pid), time.monotonic()
    count = work()
    cpu_s, wall_s = cpu_seconds(pid) - cpu_s, time.monotonic() - started_s
    rate = count / wall_s
    share = f"  of {wanted:,.0f} due" if wanted else ""
    print(f"{name:<44} {rate:>12,.0f} {cpu_s / wall_s:>7.0%} {cpu_s / max(1, count) * 1e6:>9.1f}{share}", flush=True)


def request(body: dict[str, object], path: str = "/v1/chat/completions") -> bytes:
    """A request as bytes."""
    if path.startswith("/v1/chat"):
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me about the sea."}], **body}
    data = json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data


def cpu_seconds(pid: int) -> float:
    """CPU a process has used."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


if __name__ == "__main__":
    main()
