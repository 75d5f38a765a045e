"""Start peers, and send each the same loads, round after round.

A round goes through the scenarios, and each scenario through the peers: what is compared was measured within the same
minute. These peers run all the time; those whose turn it is not are idle, and what they use meanwhile is measured too.

Slow peers come at the end of each round, each by itself: started, measured in all scenarios, ended. A load that is too
much for one of them keeps it busy for minutes, which must not be those in which another is measured.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.load import LoadFailed, Progress, run
from benchmarks.load.watch import Watch
from benchmarks.mock import process as mock_process
from benchmarks.mock.process import MockProcess
from benchmarks.peers.catalog import DIRECT, GATEWAY
from benchmarks.peers.figures import ENGINE, PROXY, STACK, WAITING, Cell, Run
from benchmarks.peers.peer import Peer, PeerFailed, Place, Running, pinned
from benchmarks.peers.scenarios import BURST, LOAD_SHARE, Scenario
from benchmarks.processes import Cores, open_many_files

MODEL = "mock"
QUIET_SHARE = 0.25
"""Of a core, for all peers together; each of them has its clocks."""
QUIET_LOOK_S = 0.25
QUIET_WAIT_S, SLOW_QUIET_WAIT_S = 20.0, 5.0
"""A slow peer disturbs nobody but itself, and is measured at what it reaches."""

LEAST_RATE_PER_S, DEFAULT_RATE_PER_S = 1.0, 50.0
"""Of an open loop: of a peer that finished nothing, and of one that was not measured before."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure.

    Attributes:
        seconds: of each measurement; ``slow_seconds`` for peers that are slow.
    """

    peers: Sequence[Peer]
    scenarios: Sequence[Scenario]
    rounds: int = 3
    seconds: float = 3.0
    slow_seconds: float = 2.5

    def seconds_for(self, peer: Peer) -> float:
        """How long a peer is measured."""
        return self.slow_seconds if peer.is_slow else self.seconds

    @property
    def steps(self) -> int:
        """Measurements in all, if every peer is there."""
        return self.rounds * len(self.scenarios) * len(self.peers)


@dataclass(slots=True)
class Watcher:
    """Who is told how it goes; nobody by default.

    Attributes:
        say: what is being done, in a few words.
        step: one more measurement is done, or will not be.
        progress: where the measurement is.
        measured: the latest cell.
    """

    say: Callable[[str], None] = lambda _: None
    step: Callable[[], None] = lambda: None
    progress: Callable[[Progress], None] = lambda _: None
    measured: Callable[[Cell], None] = lambda _: None


@dataclass(slots=True)
class _Started:
    """The engine, and the peers that run."""

    mock: MockProcess
    cores: Cores
    work: Path
    versions: dict[str, str]
    running: dict[str, Running] = field(default_factory=dict)

    def groups(self, peer: str) -> dict[str, list[int]]:
        """The processes to watch while a peer has its turn."""
        one = self.running[peer]
        found = {STACK: list(one.stack_pids), ENGINE: [self.mock.pid]}
        if one.proxy_pids:
            found[PROXY] = list(one.proxy_pids)
        found[WAITING] = [pid for name, other in self.running.items() if name != peer for pid in other.stack_pids]
        return found


def install(peers: Sequence[Peer], folder: Path, watcher: Watcher) -> dict[str, str]:
    """Install what is not there; returns why a peer cannot be had, by its name."""
    absent = {}
    for peer in peers:
        watcher.say(f"installing {peer.label}")
        try:
            peer.install(folder / peer.name)
        except PeerFailed as error:
            absent[peer.name] = str(error)
    return absent


def side_by_side(plan: Plan, folder: Path, cores: Cores, watcher: Watcher) -> tuple[Run, dict[str, str]]:
    """Measure; returns what came of it, and the version of each peer by its name.

    Args:
        folder: where peers are installed.
        cores: the first of `Cores.measured` is the proxies' own, one at a time.
    """
    open_many_files()
    done = Run(absent=install(plan.peers, folder, watcher))
    versions: dict[str, str] = {}
    fast = [peer for peer in plan.peers if not peer.is_slow]
    slow = [peer for peer in plan.peers if peer.is_slow]
    with pinned(cores.others), _engine(cores, versions) as started, _running(fast, folder, started, watcher, done):
        for number in range(plan.rounds):
            _scenarios(plan, number, fast, started, done, watcher)
            for peer in slow:
                with _running([peer], folder, started, watcher, done):
                    _scenarios(plan, number, [peer], started, done, watcher)
    return done, versions


def _scenarios(plan: Plan, number: int, peers: Sequence[Peer], started: _Started, done: Run, watcher: Watcher) -> None:
    for scenario in plan.scenarios:
        started.mock.pace(itl_ms=scenario.itl_ms)
        for peer in peers:
            if peer.name in started.running:
                _measure(plan, number, scenario, peer, started, done, watcher)
            watcher.step()


def _measure(
    plan: Plan, number: int, scenario: Scenario, peer: Peer, started: _Started, done: Run, watcher: Watcher
) -> None:
    one = started.running[peer.name]
    if scenario.stream and one.no_streams:
        done.gaps[peer.name, scenario.name] = one.no_streams
        return
    watcher.say(f"round {number + 1} of {plan.rounds}: {scenario.label}: {peer.label}")
    rate = open_loop_rate(done, number, peer.name) if scenario.is_open_loop else None
    load = scenario.load(seconds=plan.seconds_for(peer), rate_per_s=rate)
    groups = started.groups(peer.name)
    wait_quiet([pid for running in started.running.values() for pid in running.stack_pids], within_s=_patience_s(peer))
    try:
        measurement = run(one.target, load, watch=groups, cores=started.cores.others, progress=watcher.progress)
    except LoadFailed as error:
        done.gaps[peer.name, scenario.name] = str(error)
        return
    cell = Cell(peer.name, scenario, number, measurement)
    done.cells.append(cell)
    watcher.measured(cell)


def _patience_s(peer: Peer) -> float:
    return SLOW_QUIET_WAIT_S if peer.is_slow else QUIET_WAIT_S


def open_loop_rate(done: Run, number: int, peer: str) -> float:
    """30 % of what a core of the gateway brings; of the peer's own, where that is less.

    So those that can are asked at the same rate, and nobody at more than it can.
    """
    found = {cell.peer: cell.per_core or 0.0 for cell in done.cells if cell.round == number and cell.scenario is BURST}
    rates = [found[name] for name in {peer, GATEWAY} - {DIRECT} if name in found]
    return max(LEAST_RATE_PER_S, LOAD_SHARE * min(rates)) if rates else DEFAULT_RATE_PER_S


def wait_quiet(pids: Sequence[int], *, within_s: float = QUIET_WAIT_S) -> bool:
    """Until processes have done what the last load left them; whether they did."""
    give_up_s = time.monotonic() + within_s
    while time.monotonic() < give_up_s:
        watch = Watch({"all": pids})
        watch.begin()
        begin_s = time.monotonic()
        time.sleep(QUIET_LOOK_S)
        if watch.end()["all"].cpu_s < QUIET_SHARE * (time.monotonic() - begin_s):
            return True
    return False


@contextmanager
def _engine(cores: Cores, versions: dict[str, str]) -> Iterator[_Started]:
    """The mock engine, and an empty folder for what peers write."""
    work = Path(tempfile.mkdtemp(prefix="pareta-peers-"))
    try:
        work.chmod(0o755)  # Postgres, which never runs as root, has to pass through
        with mock_process.running("--model", MODEL) as mock:
            yield _Started(mock, cores, work, versions)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _running(peers: Sequence[Peer], folder: Path, started: _Started, watcher: Watcher, done: Run) -> Iterator[None]:
    """Every one of these peers that is there and starts; ended afterwards."""
    with ExitStack() as cleanup:
        for peer in peers:
            if peer.name in done.absent:
                continue
            watcher.say(f"starting {peer.label}")
            own = started.work / peer.name
            shutil.rmtree(own, ignore_errors=True)
            own.mkdir()
            place = Place(folder / peer.name, own, started.cores.measured[0], started.cores.others)
            started.mock.pace()
            try:
                running = peer.start(started.mock.url, MODEL, place)
            except PeerFailed as error:
                done.absent[peer.name] = str(error)
                continue
            started.running[peer.name] = running
            started.versions[peer.name] = running.version
            cleanup.callback(running.stop)
            cleanup.callback(started.running.pop, peer.name)
        yield
        watcher.say("stopping")
