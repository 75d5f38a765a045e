"""The gateway as an operator starts it: workers that share a port, a reconciler, a control process, the admin listener.

Floor: stack. Each worker, the reconciler and the control process is a process of its own (``python -m gateway worker
--slot N``, ``… reconcile``, ``… control``); this one only watches. A worker that dies is started again in the same
slot, so the journal that it left is replayed by its successor. On SIGTERM the workers drain first, then the control
process ends, then the reconciler books what was settled, then the admin listener goes.

A worker says that it serves by creating the file named in ``PARETA_READY_FILE`` and removes it when it starts to drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from prometheus_client import multiprocess

from gateway.settings import Settings
from gateway.stack.admin import Admin
from gateway.stack.environment import environment_of, without_secrets
from gateway.stack.keeper import Keeper
from gateway.stack.processes import Child, FolderLock, Spec, StackError, end_leftover, port_is_free, tail
from gateway.stack.stopping import StopRequest

log = logging.getLogger("gateway.stack")

READY_FILE = "PARETA_READY_FILE"
_DRAIN_MARGIN_S = 15.0  # after its drain a worker still settles and delivers
_LEFTOVER_GRACE_S = 10.0
RECONCILE_QUIET_S = 10.0
"""How long the reconciler may go on booking after SIGTERM."""
CONTROL_QUIET_S = 10.0


async def serve(settings: Settings) -> int:
    """Run a gateway on external databases until SIGTERM or SIGINT. Returns the exit status.

    Raises:
        StackError: it cannot start; nothing is left running.
    """
    if not settings.database_url or not settings.redis_url:
        raise StackError("serve needs DATABASE_URL and REDIS_URL; `up` runs a local stack with its own databases.")
    stop = StopRequest()
    stop.listen()
    lock = FolderLock(settings.data_path / "up.lock")
    supervisor = Supervisor(settings)
    try:
        await clear_leftovers(settings)
        check_ports(settings)
        await supervisor.open()
        await stop.wait()
    finally:
        await supervisor.close(stop)
        lock.close()
    return 0


def check_ports(settings: Settings) -> None:
    """Refuse ports in use before anything is started.

    Workers bind with SO_REUSEPORT, which would let them share the port of another gateway of the same user: each
    would get a part of the other's requests. So the probe is strict.

    Raises:
        StackError: with the port's name.
    """
    for name, host, port in (
        ("PORT", settings.host, settings.port),
        ("ADMIN_PORT", settings.admin_host, settings.effective_admin_port),
    ):
        if not port_is_free(port, host):
            raise StackError(f"Port {port} on {host} is in use. Stop what listens there, or set {name} to another one.")


async def clear_leftovers(settings: Settings) -> None:
    """End processes that a killed run of this folder left behind. The caller holds the folder's lock.

    Raises:
        StackError: one does not end.
    """
    folder = settings.data_path / "run"
    for lock in sorted(folder.glob("*.lock")):
        name = lock.name.removesuffix(".lock")
        if await end_leftover(lock, name=name, stop_signal=signal.SIGTERM, grace_s=_LEFTOVER_GRACE_S):
            log.warning("%s of an earlier run was still there and has ended", name)


class Supervisor:
    """The running gateway. The caller holds the folder's lock.

    Args:
        settings: with both database URLs filled in.
        log_file: where the processes write; ``None``: this process's own output.
    """

    def __init__(self, settings: Settings, *, log_file: Path | None = None) -> None:
        self._settings = settings
        self._log_file = log_file
        self._run_folder = settings.data_path / "run"
        self._metrics_folder = settings.data_path / "metrics" / f"{int(time.time())}-{os.getpid()}"
        self._environment = {**environment_of(settings), "PROMETHEUS_MULTIPROC_DIR": str(self._metrics_folder)}
        self._workers = [self._worker_keeper(slot) for slot in range(settings.workers)]
        self._reconciler = Keeper(
            "reconciler",
            lambda: self._start("reconciler", "reconcile"),
            on_death=lambda pid: self._bury(pid, "reconciler"),
        )
        self._control = Keeper(
            "control",
            lambda: self._start("control", "control"),
            on_death=lambda pid: self._bury(pid, "control"),
        )
        self._admin: Admin | None = None

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run now, by name."""
        keepers = [*self._workers, self._reconciler, self._control]
        return {keeper.name: keeper.child.pid for keeper in keepers if keeper.child is not None and keeper.running}

    def ready_workers(self) -> int:
        """How many workers serve."""
        return sum(keeper.running and self._ready_file(slot).exists() for slot, keeper in enumerate(self._workers))

    async def open(self) -> None:
        """Start everything, without waiting for workers to be ready.

        Raises:
            StackError: a port is taken or a program cannot be started; call :meth:`close` anyway.
        """
        self._run_folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._metrics_folder.parent, ignore_errors=True)
        self._metrics_folder.mkdir(parents=True)
        self._admin = Admin(self._settings, self._metrics_folder, lambda: (self.ready_workers(), len(self._workers)))
        await self._admin.open()
        await self._reconciler.open()
        await self._control.open()
        for keeper in self._workers:
            await keeper.open()

    async def wait_ready(self, timeout_s: float) -> None:
        """Wait until all workers serve.

        Raises:
            StackError: they do not in time.
        """
        deadline = time.monotonic() + timeout_s
        while (ready := self.ready_workers()) < len(self._workers):
            if time.monotonic() > deadline:
                log_end = f" The end of {self._log_file}:\n{tail(self._log_file)}" if self._log_file else ""
                raise StackError(f"{ready} of {len(self._workers)} workers serve after {timeout_s:g} s.{log_end}")
            await asyncio.sleep(0.05)

    async def close(self, stop: StopRequest) -> None:
        """Drain the workers, let the reconciler book the rest, stop listening. A second signal hurries it."""
        for keeper in self._workers:
            await keeper.release()
        running = [keeper.child for keeper in self._workers if keeper.child is not None and keeper.running]
        for child in running:
            child.signal(signal.SIGTERM)
        await stop.hurried(
            asyncio.gather(*(child.wait() for child in running)), self._settings.drain_timeout_s + _DRAIN_MARGIN_S
        )
        for child in running:
            if child.running:
                log.warning("%s did not drain in time and is killed; its journal stays", child.spec.name)
                await child.kill()
        await self._control.close(CONTROL_QUIET_S)
        await self._reconciler.close(RECONCILE_QUIET_S + _DRAIN_MARGIN_S)
        if self._admin is not None:
            await self._admin.close()
        shutil.rmtree(self._metrics_folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------ one process

    def _worker_keeper(self, slot: int) -> Keeper:
        name = f"worker-{slot}"

        def bury(pid: int) -> None:
            self._ready_file(slot).unlink(missing_ok=True)
            self._bury(pid, "worker")

        return Keeper(name, lambda: self._start(name, "worker", "--slot", str(slot), ready=slot), on_death=bury)

    async def _start(self, name: str, *arguments: str, ready: int | None = None) -> Child:
        # Only the control process asks vendors and buckets.
        environment = dict(self._environment) if arguments[0] == "control" else without_secrets(self._environment)
        if ready is not None:
            environment[READY_FILE] = str(self._ready_file(ready))
            self._ready_file(ready).unlink(missing_ok=True)
        return Child(
            Spec(
                name=name,
                command=[sys.executable, "-m", "gateway", *arguments],
                lock=self._run_folder / f"{name}.lock",
                environment=environment,
                log=self._log_file,
            )
        )

    def _bury(self, pid: int, process: str) -> None:
        # Its counters stay in the sums; its live gauges go.
        multiprocess.mark_process_dead(pid, str(self._metrics_folder))  # type: ignore[no-untyped-call]
        if self._admin is not None:
            self._admin.restarts.labels(process).inc()

    def _ready_file(self, slot: int) -> Path:
        return self._run_folder / f"worker-{slot}.ready"
