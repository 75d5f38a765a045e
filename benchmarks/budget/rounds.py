"""Start a counted worker, ask it the rounds of a case, and say what each unit of it cost.

A worker has chores of its own, by the clock: what they cost while nothing was asked is taken off, for as long as a case
lasted. What a case leaves to be done behind its last answer (settlements, journal) is waited for.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.budget.cases import Case
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
WARM_UP_ROUNDS = 6
IDLE_S = 1.0
QUIET_S = 0.25
"""Settlements are on disk long before, and in Redis."""
_START_S = 240.0
"""Under callgrind a worker starts slowly."""
_ANSWER_S = 120.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Calls of Python functions and of builtins, on the thread of the event loop and on all others."""

    loop: float
    loop_c: float
    others: float
    others_c: float

    def minus(self, other: Counts, times: float = 1.0) -> Counts:
        """What is left without so many times the other."""
        return self._with(other, lambda mine, theirs: mine - times * theirs)

    def per(self, units: float) -> Counts:
        """For each unit."""
        return self._with(self, lambda mine, _: mine / units)

    def _with(self, other: Counts, do: Callable[[float, float], float]) -> Counts:
        return Counts(
            do(self.loop, other.loop),
            do(self.loop_c, other.loop_c),
            do(self.others, other.others),
            do(self.others_c, other.others_c),
        )


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

    def ask(self, case: Case, *, tokens: int, rounds: int) -> None:
        """So many rounds of a case, with answers of so many tokens.

        Raises:
            PeerFailed: a request is not answered as it should be.
        """
        self._mock.pace(itl_ms=case.itl_ms)
        load = Load(
            name=case.name,
            stream=case.stream,
            connections=case.at_once,
            prompt_tokens=Distribution("constant", (PROMPT_TOKENS,)),
            max_tokens=Distribution("constant", (tokens,)),
        )
        # One after the other, so that the prompts of two runs are the same.
        drawn = Requests(self.target, load, seed=1)
        address = urlsplit(self.target.base_url)
        with ExitStack() as cleanup:
            connections = [
                cleanup.enter_context(socket.create_connection((address.hostname, address.port), _ANSWER_S))
                for _ in range(case.at_once)
            ]
            for _ in range(rounds):
                for connection in connections:
                    connection.sendall(drawn.next()[0])
                for connection in connections:
                    _read(connection, case)


def _read(connection: socket.socket, case: Case) -> None:
    """One answer, which has to be a good one."""
    answer = http.client.HTTPResponse(connection, method="POST")
    answer.begin()
    body = answer.read()
    if answer.status != 200 or (case.stream and not body.endswith(b"data: [DONE]\n\n")):
        raise PeerFailed(f"{case.name} was answered with {answer.status}: {body[-200:]!r}")


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
        self._idle_per_s = Counts(0, 0, 0, 0)

    def learn_idle(self) -> None:
        """Count what a worker does without requests."""
        time.sleep(QUIET_S)
        start_s, before = time.monotonic(), self._totals()
        time.sleep(IDLE_S)
        self._idle_per_s = self._totals().minus(before).per(time.monotonic() - start_s)

    def count(self, case: Case) -> Counts:
        """Calls per unit."""
        self._worker.ask(case, tokens=case.less_tokens or case.tokens, rounds=WARM_UP_ROUNDS if not case.itl_ms else 1)
        found = self._whole(case, case.tokens)
        if case.less_tokens:
            found = found.minus(self._whole(case, case.less_tokens))
        return found.per(case.units)

    def names(self, case: Case) -> dict[str, float]:
        """Calls of each function of the event loop's thread per unit; builtins stand in parentheses."""
        self._worker.ask(case, tokens=case.tokens, rounds=1)
        before = self._told("names")
        self._worker.ask(case, tokens=case.tokens, rounds=case.rounds)
        time.sleep(QUIET_S)
        units = case.rounds * case.at_once * (case.tokens if case.less_tokens else 1)
        return {name: (count - before.get(name, 0)) / units for name, count in self._told("names").items()}

    def _whole(self, case: Case, tokens: int) -> Counts:
        time.sleep(QUIET_S)
        start_s, before = time.monotonic(), self._totals()
        self._worker.ask(case, tokens=tokens, rounds=case.rounds)
        time.sleep(QUIET_S)
        return self._totals().minus(before).minus(self._idle_per_s, time.monotonic() - start_s)

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
        found = Counted(worker, cleanup.enter_context(asking.makefile("rw")))
        found.learn_idle()
        yield found
