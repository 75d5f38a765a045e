"""Everything that is attacked: two stores behind proxies, two simulators, a gateway with two workers, two reconcilers.

All are real processes, started the way an operator starts them and stopped by pid. Times are short, and escrow is
small, so that refills, returns and expiries happen all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import asyncpg

from backends.simulator import process as simulator_process
from gateway.settings import Settings
from gateway.stack.environment import environment_of
from gateway.stack.prepare import migrate_all
from gateway.stack.processes import Child, Spec, free_port, lock_holder, tail
from tests.faults.clocks import Clock
from tests.faults.customers import MODEL, Register
from tests.faults.ear import Ear
from tests.faults.proxy import Network
from tests.faults.servers import FaultyPostgres, FaultyRedis

ROOT = Path(__file__).parents[2]
WORKERS = 2
START_S = 60.0
HEARTBEAT_S = 0.5
EXPIRY_S = 6.0
GRACE_S = 5.0

WANTED: dict[str, Any] = {
    "workers": WORKERS,
    "health_interval_s": 0.3,
    "health_timeout_s": 1.0,
    "stream_heartbeat_s": 0.5,
    "commit_stream_s": 0.3,
    "idle_timeout_s": 3.0,
    "hold_expiry_s": EXPIRY_S,
    "hold_heartbeat_s": HEARTBEAT_S,
    "drain_timeout_s": 10.0,
    "resync_s": 3.0,
    "max_staleness_s": 30.0,
    "redis_timeout_s": 2.0,
    "postgres_timeout_s": 4.0,
    "write_timeout_s": 8.0,
    "epoch_grace_s": GRACE_S,
    # Escrow in slices, all as small and quick as they may be.
    "escrow_slice_micros": 300,
    "escrow_horizon_s": 1.0,
    "escrow_idle_s": 3.0,
}
"""Settings by name; one that this version of the gateway does not have is left out."""


class World:
    """The running parts. Make it with :func:`running_world`."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder = folder
        self.shards = shards
        self.network = Network()
        self.clocks = {name: Clock(folder, name) for name in ("redis", "gateway", "worker-0", "worker-1")}
        self.postgres = FaultyPostgres(folder / "postgres", database="faults", durable=True)
        self.redis = FaultyRedis(folder / "redis-a", self.clocks["redis"], shards=shards)
        self.follower = FaultyRedis(folder / "redis-b", self.clocks["redis"], shards=shards)
        self.simulators: list[simulator_process.SimulatorProcess] = []
        self.serve: Child | None = None
        self.standby: Child | None = None

    # -- start and stop --------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything and wait until it serves."""
        self.ear = Ear(self.folder)
        await self.postgres.start()
        await self.redis.start()
        self.to_postgres = self.network.proxy(self.postgres.url)
        self.to_redis = self.network.proxy(self.redis.url)
        self.to_primary = self.network.proxy(self.redis.url)
        """Between the follower and its primary."""
        self.follower.follows = self.to_primary.port
        await self.follower.start()
        await migrate_all(self.postgres.url)
        self.simulators = [simulator_process.start(*_simulator_flags(number)) for number in range(2)]
        self.register = Register(self.postgres.url, self.to_postgres.url, [s.url for s in self.simulators])
        known = {spec.name for spec in fields(Settings)}
        port = free_port()
        self.settings = Settings(
            port=port,
            admin_port=free_port(port + 1),
            data_dir=str(self.folder / "data"),
            database_url=self.to_postgres.url,
            redis_url=self.to_redis.url,
            shards=self.shards,
            **{name: value for name, value in WANTED.items() if name in known},
        )
        self.serve = self._start("serve", "serve")
        await self.wait_serving()
        self.standby = self._start("standby", "reconcile")

    async def close(self) -> None:
        """Stop what runs, in the order that loses nothing."""
        for child in (self.standby, self.serve):
            if child is not None:
                await child.stop(30)
        for simulator in self.simulators:
            simulator.stop()
        await self.follower.stop()
        await self.redis.stop()
        await self.postgres.stop()
        self.network.close()
        self.ear.close()

    def _start(self, name: str, command: str) -> Child:
        environment = environment_of(self.settings) | self.clocks["gateway"].environment
        for slot in range(WORKERS):
            self.clocks[f"worker-{slot}"].set(0)
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent / "hooks"), str(ROOT)])
        environment["PARETA_FAULTS"] = str(self.folder)
        return Child(
            Spec(
                name=name,
                command=[sys.executable, "-m", "gateway", command],
                lock=self.folder / f"{name}.lock",
                environment=environment,
                folder=ROOT,
                log=self.folder / f"{name}.log",
            )
        )

    async def restart_standby(self) -> None:
        """Have the second reconciler run again."""
        if self.standby is None or not self.standby.running:
            self.standby = self._start("standby", "reconcile")

    async def restart_gateway(self) -> None:
        """Have the gateway run again, with the same journals."""
        if self.serve is None or not self.serve.running:
            self.serve = self._start("serve", "serve")
            await self.wait_serving()

    # -- who is who ------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self.settings.port

    def worker_pid(self, slot: int) -> int:
        """The process in a slot; 0 if there is none now."""
        return lock_holder(self._run / f"worker-{slot}.lock") or 0

    def reconciler_pid(self) -> int:
        """The supervisor's reconciler; 0 if there is none now."""
        return lock_holder(self._run / "reconciler.lock") or 0

    def is_ready(self, slot: int) -> bool:
        return (self._run / f"worker-{slot}.ready").exists()

    @property
    def _run(self) -> Path:
        return self.settings.data_path / "run"

    async def wait_serving(self, within_s: float = START_S) -> None:
        """Until every worker says that it serves."""
        assert self.serve is not None
        give_up_s = time.monotonic() + within_s
        while not all(self.worker_pid(slot) and self.is_ready(slot) for slot in range(WORKERS)):
            assert self.serve.running, f"the gateway ended:\n{tail(self.folder / 'serve.log', 30)}"
            assert time.monotonic() < give_up_s, f"no worker serves:\n{tail(self.folder / 'serve.log', 30)}"
            await asyncio.sleep(0.05)

    # -- a look inside, past every proxy ---------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def sql(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection that no fault stands in front of."""
        conn = await asyncpg.connect(self.postgres.url, timeout=20, command_timeout=120)
        try:
            yield conn
        finally:
            await conn.close()

    def broken_hooks(self) -> str:
        """What of the hooks did not fit the product any more; empty if all is well."""
        note = self.folder / "broken-hook"
        return note.read_text() if note.exists() else ""


@contextlib.asynccontextmanager
async def running_world(folder: Path | None = None, *, shards: int = 1) -> AsyncIterator[World]:
    """A world, gone at the end; its folder stays, for whoever has to look at the evidence."""
    if folder is None:
        # No space in its name: the loader splits LD_PRELOAD there.
        folder = Path(tempfile.mkdtemp(prefix="pareta-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    world = World(folder, shards)
    try:
        await world.open()
        yield world
    finally:
        await world.close()


def stop_process(pid: int) -> None:
    """SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)


def continue_process(pid: int) -> None:
    """SIGCONT, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def _simulator_flags(number: int) -> list[str]:
    flags = ["--model", MODEL, "--ttft-ms", "2", "--itl-ms", "2", "--tokens", "20"]
    return [*flags, "--replica", f"sim-{number}"]
