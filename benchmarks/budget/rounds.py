"""Start a counted worker, ask it the rounds of a case, and say what a unit of it cost in the median round.

The median: a worker has chores of its own, by the clock, and they fall upon rounds now and then. What a round leaves to
be done behind its answers (settlements, journal) is counted with the next one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from benchmarks.budget.cases import WARM_UP_ROUNDS, Case
from benchmarks.load import Distribution, Load, Target
from benchmarks.load.requests import Requests
from benchmarks.mock import process as mock_process
from benchmarks.mock.process import MockProcess
from benchmarks.peers.gateway_stack import MeteredGateway
from benchmarks.peers.peer import STOP_S, UNPROXIED, PeerFailed, Place
from benchmarks.processes import choose_cores
from gateway.settings import Settings
from gateway.stack.environment import environment_of
from gateway.stack.processes import Child, Spec, tail

MODEL = "mock"
PROMPT_TOKENS = 32
_START_S = 240.0
"""Under callgrind a worker starts slowly."""
_ANSWER_S = 120.0


class Counts(NamedTuple):
    """Calls of Python functions and of builtins, on the thread of the event loop and on all others."""

    loop: float
    loop_c: float
    others: float
    others_c: float

    def minus(self, other: Counts) -> Counts:
        """What came after the other."""
        return Counts(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))


class CountedGateway(MeteredGateway):
    """`MeteredGateway`, but its one worker is ours, and no supervisor stands over it.

    Args:
        arguments: of `benchmarks.budget.worker`.
        prefix: a command to run the worker under.
    """

    def __init__(self, *arguments: str, prefix: tuple[str, ...] = ()) -> None:
        self._arguments, self._prefix = arguments, prefix

    def _serve(self, settings: Settings, place: Place, cleanup: ExitStack) -> tuple[Child, int]:
        metrics, ready = place.work / "metrics", place.work / "ready"
        metrics.mkdir()
        # What the supervisor gives its workers.
        own = {"PARETA_READY_FILE": str(ready), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}

        def start(name: str, *command: str, **more: str) -> Child:
            child = Child(
                Spec(
                    name=name,
                    command=command,
                    lock=place.work / f"{name}.lock",
                    environment={**UNPROXIED, **environment_of(settings), **more},
                    log=place.work / "serve.log",
                )
            )
            cleanup.callback(lambda: asyncio.run(child.stop(STOP_S)))
            return child

        start("reconcile", sys.executable, "-m", "gateway", "reconcile")
        worker = start(
            "worker", *self._prefix, sys.executable, "-m", "benchmarks.budget.worker", *self._arguments, **own
        )
        give_up_s = time.monotonic() + _START_S
        while not ready.exists():
            if not worker.running or time.monotonic() > give_up_s:
                raise PeerFailed(f"The worker does not serve. {tail(place.work / 'serve.log', 5)}")
            time.sleep(0.02)
        return worker, worker.pid


class Worker:
    """A running worker, and the engine behind it.

    Attributes:
        pid: of the worker.
        target: how a client addresses it.
    """

    def __init__(self, pid: int, target: Target, mock: MockProcess) -> None:
        self.pid, self.target = pid, target
        self._mock = mock

    def ask(self, case: Case, mark: Callable[[], None]) -> None:
        """All rounds of a case; ``mark`` is called behind the warm-up and behind each round.

        Raises:
            PeerFailed: a request is not answered as it should be.
        """
        self._mock.pace(by_hand=case.is_paced)
        load = Load(
            name=case.name,
            stream=case.stream,
            connections=case.at_once,
            prompt_tokens=Distribution("constant", (PROMPT_TOKENS,)),
            max_tokens=Distribution("constant", (case.tokens,)),
        )
        requests = Requests(self.target, load, seed=1)
        address = urlsplit(self.target.base_url)
        with ExitStack() as cleanup:
            connections = [
                cleanup.enter_context(socket.create_connection((address.hostname, address.port), _ANSWER_S))
                for _ in range(case.at_once)
            ]
            if case.is_paced:
                self._ask_tokens(connections, requests, case, mark)
                return
            for number in range(1 - WARM_UP_ROUNDS, case.rounds + 1):
                for answer in _sent(connections, requests, case):
                    answer.read_all()
                if number >= 0:
                    mark()

    def _ask_tokens(
        self, connections: Sequence[socket.socket], requests: Requests, case: Case, mark: Callable[[], None]
    ) -> None:
        answers = _sent(connections, requests, case)
        for answer in answers:
            answer.read_events(2)  # the role and the first token
        for number in range(1 - WARM_UP_ROUNDS, case.rounds + 1):
            self._mock.turn()
            for answer in answers:
                answer.read_event()
            if number >= 0:
                mark()
        self._mock.turn()
        for answer in answers:
            answer.read_all()


def _sent(connections: Sequence[socket.socket], requests: Requests, case: Case) -> list[_Answer]:
    """Send a request on each, and only then look for answers."""
    for connection in connections:
        connection.sendall(requests.next()[0])
    return [_Answer(connection, is_stream=case.stream) for connection in connections]


class _Answer:
    """What comes back on a connection, which has to be a good answer."""

    def __init__(self, connection: socket.socket, *, is_stream: bool) -> None:
        self._connection = connection
        self._is_stream = is_stream
        self._raw = b""
        self._events = 0

    def read_events(self, count: int) -> None:
        """Read until so many events more have come."""
        self._events += count
        while self._raw.count(b"data: ") < self._events:
            self._read()

    def read_event(self) -> None:
        """Read until another event has come."""
        self.read_events(1)

    def read_all(self) -> None:
        """Read to the end."""
        while not self._is_whole():
            self._read()

    def _is_whole(self) -> bool:
        head, blank, body = self._raw.partition(b"\r\n\r\n")
        if not blank:
            return False
        if not head.startswith(b"HTTP/1.1 200 "):
            raise PeerFailed(f"A request was answered by {self._raw[:300]!r}")
        if self._is_stream:
            return b"data: [DONE]\n\n" in body and body.endswith(b"\r\n0\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: *([0-9]+)", head, re.IGNORECASE)
        return length is not None and len(body) >= int(length[1])

    def _read(self) -> None:
        data = self._connection.recv(1 << 20)
        if not data:
            raise PeerFailed(f"The gateway hung up behind {self._raw[-300:]!r}")
        self._raw += data


@contextmanager
def running(*arguments: str, prefix: tuple[str, ...] = (), work: Path) -> Iterator[Worker]:
    """A worker with everything around it, on loopback, gone at the end.

    Args:
        arguments: of `benchmarks.budget.worker`.
        prefix: a command to run the worker under.
        work: an empty folder for its data.

    Raises:
        PeerFailed: something does not start.
    """
    cores = choose_cores(1)
    place = Place(installed=work, work=work, proxy_core=cores.measured[0], other_cores=cores.others)
    with ExitStack() as cleanup:
        mock = cleanup.enter_context(mock_process.running("--model", MODEL))
        started = CountedGateway(*arguments, prefix=prefix).start(mock.url, MODEL, place)
        cleanup.callback(started.stop)
        yield Worker(started.proxy_pids[0], started.target, mock)


class Counted:
    """Asks a worker what it has counted."""

    def __init__(self, worker: Worker, lines: Any) -> None:
        self._worker, self._lines = worker, lines

    def count(self, case: Case) -> Counts:
        """Calls per unit, in the median round."""
        totals: list[Counts] = []
        self._worker.ask(case, lambda: totals.append(self._totals()))
        spent = [after.minus(before) for before, after in pairwise(totals)]
        return Counts(*(statistics.median(counts) / case.at_once for counts in zip(*spent, strict=True)))

    def names(self, case: Case) -> dict[str, float]:
        """Calls of each function of the event loop's thread per unit, in the mean; builtins stand in parentheses."""
        told: list[Mapping[str, int]] = []
        self._worker.ask(case, lambda: told.append(self._told("names")))
        before, after, units = told[0], told[-1], case.rounds * case.at_once
        return {name: (count - before.get(name, 0)) / units for name, count in after.items()}

    def _totals(self) -> Counts:
        told = self._told("totals")
        return Counts(*told["loop"], *told["others"])

    def _told(self, what: str) -> Mapping[str, Any]:
        self._lines.write(what + "\n")
        self._lines.flush()
        told: dict[str, Any] = json.loads(self._lines.readline())
        return told


@contextmanager
def folder() -> Iterator[Path]:
    """A folder that is gone at the end."""
    made = Path(tempfile.mkdtemp(prefix="pareta-budget-"))
    try:
        made.chmod(0o755)  # Postgres, which never runs as root, has to pass through
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def counted() -> Iterator[Counted]:
    """A worker that is counted, warmed up.

    Raises:
        PeerFailed: something does not start.
    """
    allowed = os.sched_getaffinity(0)
    with ExitStack() as cleanup:
        cleanup.callback(os.sched_setaffinity, 0, allowed)
        work = cleanup.enter_context(folder())
        path = work / "counts.sock"
        worker = cleanup.enter_context(running(str(path), work=work))
        asking = cleanup.enter_context(socket.socket(socket.AF_UNIX))
        asking.connect(str(path))
        yield Counted(worker, cleanup.enter_context(asking.makefile("rw")))
