"""Carry out a load: start worker processes, let them begin together, watch the watched, add everything up.

The workers (`benchmarks.load.worker`) do the sending, each an epoll loop on a core of its own where there is one; they
speak JSON lines on their standard input and output. This process only sleeps meanwhile.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

from benchmarks.load.measurement import GroupUse, Measurement
from benchmarks.load.plan import Load, Target
from benchmarks.load.tally import Tally
from benchmarks.load.watch import NoSuchProcess, Watch

_START_S = 60.0
_HEAD_START_S = 0.05
_SAMPLE_S = 0.5
_REPORT_GRACE_S = 60.0


class LoadFailed(RuntimeError):
    """A load could not be carried out; the text is a sentence for who asked for it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a load is.

    Attributes:
        phase: ``start``, ``warm-up``, ``measure``, ``drain`` or ``done``.
        elapsed_s: since it began, of ``total_s``; more than that while answers drain.
        requests: right answers so far, warm-up included; the same with `events` and `errors`.
        open: requests under way.
    """

    name: str
    phase: str
    elapsed_s: float
    total_s: float
    requests: int = 0
    events: int = 0
    errors: int = 0
    open: int = 0


def run(
    target: Target,
    load: Load,
    *,
    watch: Mapping[str, Sequence[int]] | None = None,
    processes: int = 1,
    cores: Sequence[int] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Measurement:
    """Send a load and measure what comes back. Returns when all of it has ended.

    Args:
        watch: process ids whose CPU time and memory are read, by the name of their group; their children count.
        processes: worker processes among which connections or rate are divided.
        cores: those the workers may run on, one after the other; none leaves it to the kernel.
        progress: is called a few times a second.

    Raises:
        LoadFailed: this is not Linux, a worker could not begin, or died, or a process to watch is not there.
    """
    if sys.platform != "linux":
        raise LoadFailed("The load generator needs Linux: it waits with epoll and reads /proc.")
    processes = max(1, min(processes, load.connections or processes))
    tell = progress or (lambda _: None)
    tell(Progress(load.name, "start", 0.0, load.total_s))
    try:
        with _workers(target, load, processes, cores) as workers:
            watched = Watch(watch or {})
            begin_s = time.monotonic() + _HEAD_START_S
            for worker in workers:
                worker.begin(begin_s)
            reports = _follow(load, workers, watched, begin_s, tell)
    except NoSuchProcess as error:
        raise LoadFailed(str(error)) from None
    return _add_up(load, reports)


# ---------------------------------------------------------------------------------------- while it runs


def _follow(
    load: Load, workers: Sequence[_Worker], watched: Watch, begin_s: float, tell: Callable[[Progress], None]
) -> _Reports:
    """Read what the workers tell until all have reported; meanwhile look at the watched."""
    from_s, to_s = begin_s + load.warm_up_s, begin_s + load.total_s
    give_up_s = to_s + load.drain_s + _REPORT_GRACE_S
    reports = _Reports([], {})
    next_s, is_measuring = from_s, False
    with selectors.DefaultSelector() as selector:
        for worker in workers:
            selector.register(worker.output, selectors.EVENT_READ, worker)
        while len(reports.done) < len(workers):
            now_s = time.monotonic()
            if now_s > give_up_s:
                raise LoadFailed(f"The load {load.name!r} did not end in time.")
            for key, _ in selector.select(max(0.0, min(next_s, give_up_s) - now_s)):
                worker = cast(_Worker, key.data)
                for message in worker.messages():
                    if (report := message.get("report")) is not None:
                        reports.done.append(report)
                        selector.unregister(worker.output)
                    worker.last = message
                tell(_progress(load, workers, time.monotonic() - begin_s))
            now_s = time.monotonic()
            if now_s < next_s:
                continue
            if not is_measuring:
                watched.begin()
                is_measuring = True
            elif now_s >= to_s:
                reports.groups = watched.end(load.seconds)
                next_s = give_up_s
                continue
            else:
                watched.sample()
            next_s = min(to_s, now_s + _SAMPLE_S)
    tell(_progress(load, workers, load.total_s, phase="done"))
    return reports


def _progress(load: Load, workers: Sequence[_Worker], elapsed_s: float, phase: str = "") -> Progress:
    if not phase:
        phase = "warm-up" if elapsed_s < load.warm_up_s else "measure" if elapsed_s < load.total_s else "drain"
    sums = {
        name: sum(worker.last.get(name, 0) for worker in workers) for name in ("requests", "events", "errors", "open")
    }
    return Progress(load.name, phase, elapsed_s, load.total_s, **sums)


@dataclass(slots=True)
class _Reports:
    done: list[dict[str, Any]]
    groups: dict[str, GroupUse]


def _add_up(load: Load, reports: _Reports) -> Measurement:
    tally = Tally()
    for report in reports.done:
        tally.merge(report["tally"])
    return Measurement(
        load=load,
        # The workers measure by the clock that all share, from and to the same moments.
        seconds=load.seconds,
        requests=tally.requests,
        events=tally.events,
        statuses=dict(tally.statuses),
        errors=dict(tally.errors),
        cut=tally.cut,
        open_mean=sum(report["open_mean"] for report in reports.done),
        groups=reports.groups,
        generator_shares=tuple(report["cpu_share"] for report in reports.done),
        **tally.times,
    )


# ---------------------------------------------------------------------------------------- worker processes


class _Worker:
    """One worker process, from the outside."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._rest = b""
        self.output = process.stdout
        self.last: dict[str, Any] = {}

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send it a line."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise LoadFailed("A worker process of the load ended before it began.") from None

    def begin(self, begin_s: float) -> None:
        """Let it begin at a time of the monotonic clock."""
        self.tell({"begin_s": begin_s})

    def messages(self) -> list[dict[str, Any]]:
        """What it has said since; waits for something.

        Raises:
            LoadFailed: it has ended, or says that it cannot go on.
        """
        data = os.read(self.output.fileno(), 1 << 20)
        if not data:
            raise LoadFailed(f"A worker process of the load ended with status {self._process.wait()}.")
        *lines, self._rest = (self._rest + data).split(b"\n")
        messages: list[dict[str, Any]] = [json.loads(line) for line in lines]
        for message in messages:
            if "failed" in message:
                raise LoadFailed(message["failed"])
        return messages

    def wait_ready(self) -> None:
        """Until it has its requests at hand."""
        while not any("ready" in message for message in self.messages()):
            pass

    def end(self) -> None:
        """It is over, one way or the other."""
        if self._process.poll() is None:
            self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait()


@contextmanager
def _workers(target: Target, load: Load, processes: int, cores: Sequence[int] | None) -> Iterator[list[_Worker]]:
    """Worker processes that are ready to begin."""
    workers: list[_Worker] = []
    try:
        for number in range(processes):
            command = [sys.executable, "-m", "benchmarks.load.worker"]
            workers.append(_Worker(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)))
            core = cores[number % len(cores)] if cores else None
            plan = {"target": asdict(target), "load": load.to_json()}
            workers[-1].tell({**plan, "number": number, "processes": processes, "core": core, "parent": os.getpid()})
        for worker in workers:
            worker.wait_ready()
        yield workers
    finally:
        for worker in workers:
            worker.end()
