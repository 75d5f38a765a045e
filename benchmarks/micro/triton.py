"""What a streamed message of Triton's costs: a whole gateway, metering on, beside the least client there can be.

    python -m benchmarks.micro.triton [--rounds 5] [--streams 1 --streams 16] [--itl-ms 0] [--real] [--json]

Both read the same answers from the same server, in turns. The server (`benchmarks.micro.triton_replay`; with
``--real`` Triton itself with models of this project) runs on the other cores; so do the databases and the client of the
gateway. The least client (`benchmarks.micro.triton_stub`) is the generated stub on ``grpc.aio``, the text decoded,
nothing else. The gateway does all that it does for customers: it reads the request, holds credit, writes the prompt,
decodes, looks for stop texts, writes events to the client's socket, counts, settles and journals.

The figure is CPU time of the process, all its threads, over a known number of messages, the requests' own cost
included. The ratio is the stub's cost divided by the gateway's in the same round: above 1 the gateway is cheaper.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.micro.triton_replay import MODELS
from benchmarks.micro.triton_stub import prompt
from benchmarks.processes import pin
from benchmarks.stack import RATES, BenchStack
from benchmarks.stack import running as running_stack
from gateway.control import endpoints, keys, organizations
from gateway.control.database import new_id, session
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.stack.demo_model import CONTEXT_TOKENS, write_demo_model
from gateway.stack.prepare import open_ledger

TOKENS = 256
"""Of one answer."""
LEAST_MESSAGES = 15_000
"""In one measurement; the kernel counts in hundredths of a second."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_LAST = b"\r\n0\r\n\r\n"
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Cell:
    """One load: microseconds of CPU per message, a figure for each round."""

    model: str
    streams: int
    stub: list[float] = field(default_factory=list)
    gateway: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """Messages a CPU second of the gateway, as a share of the stub's."""
        return [stub / ours for stub, ours in zip(self.stub, self.gateway, strict=True)]


class Stub:
    """The least client, in a process of its own."""

    def __init__(self, target: str, cores: tuple[int, ...]) -> None:
        command = [sys.executable, "-m", "benchmarks.micro.triton_stub", target]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the bare client did not start")
        pin(self._process.pid, cores)

    def cost_us(self, model: str, streams: int, requests: int, itl_ms: int) -> float:
        """Microseconds of its CPU per message."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{model} {streams} {requests} {TOKENS} {itl_ms}\n")
        self._process.stdin.flush()
        count, spent_s = self._process.stdout.readline().split()
        _expect(int(count), requests)
        return float(spent_s) / int(count) * 1e6

    def stop(self) -> None:
        """Let it end."""
        self._process.terminate()
        self._process.wait()


class Customer:
    """Reads streams of the gateway, and looks at nothing but how many there are and where they end."""

    def __init__(self, stack: BenchStack, key: str, endpoint_of: dict[str, str]) -> None:
        self._key, self._endpoint_of = key, endpoint_of
        self._address = ("127.0.0.1", stack.settings.port)
        self._worker = stack.groups()["gateway"][0]

    def cost_us(self, model: str, streams: int, requests: int, itl_ms: int) -> float:
        """Microseconds of the worker's CPU per message."""
        data = self._request(model, itl_ms)
        poll = select.epoll()
        socks = {sock.fileno(): sock for sock in (socket.create_connection(self._address) for _ in range(streams))}
        tails = dict.fromkeys(socks, b"")
        before_s = cpu_s(self._worker)
        asked = events = 0
        for sock in socks.values():
            poll.register(sock, select.EPOLLIN)
            sock.sendall(data)
            asked += 1
        done, heard_s = 0, time.monotonic()
        while done < requests:
            if time.monotonic() - heard_s > _PATIENCE_S:
                raise RuntimeError("the gateway fell silent")
            for number, _ in poll.poll(1.0):
                heard_s = time.monotonic()
                received = socks[number].recv(1 << 18)
                if not received:
                    raise RuntimeError("the gateway hung up")
                # An event may be cut between two reads anywhere in its beginning.
                tail = tails[number]
                events += (tail[-6:] + received).count(b"data: {")
                tails[number] = tail = (tail + received)[-64:]
                if tail.endswith(_LAST):
                    if b"[DONE]" not in tail:
                        raise RuntimeError(f"an answer did not end well: {tail!r}")
                    done += 1
                    tails[number] = b""
                    if asked < requests:
                        asked += 1
                        socks[number].sendall(data)
        spent_s = cpu_s(self._worker) - before_s
        poll.close()
        for sock in socks.values():
            sock.close()
        # Each answer also has an event for the role and one for its end.
        _expect(events - 2 * requests, requests)
        return spent_s / (requests * TOKENS) * 1e6

    def _request(self, model: str, itl_ms: int) -> bytes:
        body = json.dumps({
            "model": self._endpoint_of[model], "stream": True, "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": prompt(itl_ms, TOKENS)}],
        }).encode()  # fmt: skip
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, action="append", help="streams at once; repeatable")
    parser.add_argument("--model", choices=MODELS, action="append", help="an interface; repeatable")
    parser.add_argument("--itl-ms", type=int, default=0, help="pace of each stream; 0: as fast as it is read")
    parser.add_argument("--real", action="store_true", help="against a real Triton server, if one is installed")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    cells = [Cell(model, streams) for model in asked.model or MODELS for streams in asked.streams or (1, 16, 64)]
    console = Console(stderr=True)
    with ExitStack() as cleanup:
        with console.status("starting"):
            stack = cleanup.enter_context(running_stack())
            target = cleanup.enter_context(_real_server(stack) if asked.real else _replay())
            key, endpoint_of = asyncio.run(_endpoints(stack, target))
            stub = Stub(target, stack.cores.measured)
            cleanup.callback(stub.stop)
            customer = Customer(stack, key, endpoint_of)
        _measure(cells, stub, customer, asked.rounds, asked.itl_ms, console)
    _show(cells, as_json=asked.json)


def _measure(cells: list[Cell], stub: Stub, customer: Customer, rounds: int, itl_ms: int, console: Console) -> None:
    for cell in cells:  # everything is loaded, everybody connected
        stub.cost_us(cell.model, cell.streams, cell.streams, 0)
        customer.cost_us(cell.model, cell.streams, cell.streams, 0)
    with console.status("measuring") as status:
        for number in range(rounds):
            for cell in cells:
                status.update(f"round {number + 1} of {rounds}: {cell.model}, {cell.streams} at once")
                requests = max(cell.streams, -(-LEAST_MESSAGES // TOKENS))
                cell.stub.append(stub.cost_us(cell.model, cell.streams, requests, itl_ms))
                cell.gateway.append(customer.cost_us(cell.model, cell.streams, requests, itl_ms))


def _show(cells: list[Cell], *, as_json: bool) -> None:
    if as_json:
        found = [
            {"interface": cell.model, "streams": cell.streams, "stub_us": cell.stub, "gateway_us": cell.gateway}
            for cell in cells
        ]
        print(json.dumps(found))
        return
    table = Table("interface", "streams", "stub, µs", "gateway, µs", "ratio", "least … most")
    for cell in cells:
        ratios = sorted(cell.ratios)
        table.add_row(
            cell.model,
            str(cell.streams),
            f"{statistics.median(cell.stub):.1f}",
            f"{statistics.median(cell.gateway):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{ratios[0]:.2f} … {ratios[-1]:.2f}",
        )
    Console().print(table)


def _expect(messages: int, requests: int) -> None:
    if messages != requests * TOKENS:
        raise RuntimeError(f"{messages} messages came of {requests * TOKENS}")


# -- the servers -------------------------------------------------------------------------------------------------------


@contextmanager
def _replay() -> Iterator[str]:
    """The replay on a free port; yields ``host:port``. It stays on the cores of this process."""
    command = [sys.executable, "-m", "benchmarks.micro.triton_replay", "--parent", str(os.getpid())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("ready replay "):
            raise RuntimeError("the replay did not start")
        yield f"127.0.0.1:{line.split()[-1]}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@contextmanager
def _real_server(stack: BenchStack) -> Iterator[str]:
    """A Triton server with this project's models; yields ``host:port``."""
    from gateway.stack.triton import TritonServer
    from gateway.stack.triton_install import find_installed, place_for

    environment = find_installed(place_for(Path.cwd()))
    if environment is None:
        raise SystemExit("No Triton server is installed here: sh .ci/set-up triton")
    server = TritonServer(stack.settings.data_path / "triton", environment, models=MODELS)
    asyncio.run(server.start())
    try:
        yield f"127.0.0.1:{server.grpc_port}"
    finally:
        asyncio.run(server.stop())


async def _endpoints(stack: BenchStack, target: str) -> tuple[str, dict[str, str]]:
    """An organization with credit and an endpoint for each interface. Returns its key, and endpoints by model."""
    folder = write_demo_model(stack.settings.data_path / "model")
    ids: dict[str, str] = {}
    async with session(stack.settings.database_url) as conn, open_ledger(stack.settings) as (ledger, _):
        organization, _ = await organizations.create(conn, "Triton")
        await ledger.open_accounts(organization.id)
        await ledger.top_up(organization.id, 10**15, "benchmarks")
        for model in MODELS:
            ids[model] = new_id("ep")
            await ledger.set_price(ids[model], RATES)
            backend = NewBackend(f"triton://{target}/{model}", model_folder=str(folder))
            endpoint = NewEndpoint(
                org_id=organization.id,
                id=ids[model],
                real_model=model,
                context_tokens=CONTEXT_TOKENS,
                max_output_tokens=CONTEXT_TOKENS // 2,
                deadline_s=3600,
                backends=(backend,),
            )
            await endpoints.add(conn, endpoint)
        _, key = await keys.mint(conn, organization.id)
    await asyncio.sleep(1.0)  # the worker hears of them
    return key, ids


if __name__ == "__main__":
    main()
