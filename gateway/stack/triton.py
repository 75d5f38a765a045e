"""A Triton server for a laptop or a test: NVIDIA's program, a folder, free ports on loopback, our own models.

Floor: stack. Models are loaded by name (explicit model control) and can be loaded, unloaded and configured anew while
it runs. Its Python stubs, a process for each model, usually notice when the server is gone; one that was just talking
to it may wait for ever, so what holds the server's lock without a server is ended here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import aiohttp

from backends.triton_server.books import STATE_FOLDER, read_all
from backends.triton_server.interfaces import MODELS
from backends.triton_server.repository import MODELS_FOLDER, write_repository
from gateway.stack.processes import Child, Spec, StackError, end_leftover, free_port, port_is_free, tail, write_private
from gateway.stack.triton_install import TritonEnvironment

log = logging.getLogger("gateway.stack")

STATE = "state"
_CHECK_S = 2.0
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 15.0
_STOP_GRACE_S = 3
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (where the server's Python backend keeps its regions)
_BACKENDS = "backends"
_SERVER, _STUB = "tritonserver", "triton_python_b"  # as the kernel cuts their names
_PORTS = ("grpc", "http", "metrics")


class TritonServer:
    """One server in one folder. The caller makes sure that only one run uses the folder (``FolderLock``).

    Args:
        models: names of :data:`backends.triton_server.interfaces.MODELS` to load at the start.
        others: more of them, which lie in its repository to be loaded when somebody wants them.
        parameters: more of them for a model's configuration, by its name.
    """

    def __init__(
        self,
        folder: Path,
        environment: TritonEnvironment,
        *,
        models: Sequence[str],
        others: Sequence[str] = (),
        parameters: Mapping[str, Mapping[str, str]] | None = None,
        log: Path | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.models = tuple(models)
        self._repository = (*models, *others)
        self.log = log or self.folder / "server.log"
        self._environment = environment
        self._parameters = parameters
        self._lock = self.folder / "server.lock"
        self._ports: dict[str, int] = {}
        self._child: Child | None = None

    @property
    def child(self) -> Child:
        """The running server."""
        assert self._child is not None, "not started"
        return self._child

    @property
    def grpc_port(self) -> int:
        """Where it speaks gRPC. Valid after :meth:`start`, and the same after a restart."""
        return self._ports["grpc"]

    @property
    def http_url(self) -> str:
        """Where it speaks HTTP."""
        return f"http://127.0.0.1:{self._ports['http']}"

    @property
    def metrics_url(self) -> str:
        """Its metrics, for Prometheus."""
        return f"http://127.0.0.1:{self._ports['metrics']}/metrics"

    def url(self, model: str) -> str:
        """A model as an operator names it to the gateway."""
        return f"triton://127.0.0.1:{self.grpc_port}/{model}"

    async def start(self) -> None:
        """Start it and wait until every model is ready, and the page of metrics.

        Raises:
            StackError: it does not start.
        """
        if _SERVER not in (holders := _lock_holders(self._lock)).values():
            _kill(holders)
        await end_leftover(self._lock, name="Triton", stop_signal=signal.SIGTERM, grace_s=_STOP_TIMEOUT_S)
        self._sweep()
        write_repository(self.folder, self._repository, parameters=self._parameters)
        (self.folder / STATE).mkdir(mode=0o700, exist_ok=True)
        (self.folder / _BACKENDS).unlink(missing_ok=True)
        (self.folder / _BACKENDS).symlink_to(self._environment.backends, target_is_directory=True)
        # Others know the address by now, so a restart waits for the same ports (the keeper tries again).
        if not self._ports:
            self._ports = self._choose_ports()
        elif taken := [port for port in self._ports.values() if not port_is_free(port)]:
            raise StackError(f"Port {taken[0]}, where the Triton server was, is in use.")
        self._child = Child(self._spec())
        try:
            await self._ready()
        except BaseException:
            await self._child.kill()
            _kill(_lock_holders(self._lock))
            self._sweep()
            raise
        write_private(self.folder / "ports.json", json.dumps(self._ports) + "\n")

    async def stop(self) -> None:
        """Shut down: running requests may finish within a few seconds."""
        if self._child is not None:
            await self._child.stop(_STOP_TIMEOUT_S)
            _kill(_lock_holders(self._lock))
            self._sweep()

    async def keep_models(self) -> None:
        """Load models again whose process has died: the server would go on calling them ready. Runs until cancelled."""
        suspects: set[str] = set()
        while True:
            await asyncio.sleep(_CHECK_S)
            dead = {name for name in self._repository if MODELS[name].decoupled} - await asyncio.to_thread(self._living)
            for model in sorted(dead & suspects):
                await self._reload(model)
            suspects = dead - suspects

    def _living(self) -> set[str]:
        return set(read_all(self.folder / STATE, "-"))

    async def _reload(self, model: str) -> None:
        timeout = aiohttp.ClientTimeout(total=_START_TIMEOUT_S)
        async with aiohttp.ClientSession(self.http_url, timeout=timeout) as client:
            if not await _answers(client, f"/v2/models/{model}/ready"):
                return  # somebody unloaded it, or the server itself is away
            log.warning("the process of Triton's model %s has ended; loading it again", model)
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with client.post(f"/v2/repository/models/{model}/load", json={}) as answer:
                    await answer.read()

    def _choose_ports(self) -> dict[str, int]:
        try:
            earlier = json.loads((self.folder / "ports.json").read_text())
        except (OSError, ValueError):
            earlier = {}
        chosen: dict[str, int] = {}
        for name in _PORTS:
            while (port := free_port(earlier.pop(name, None))) in chosen.values():
                pass
            chosen[name] = port
        return chosen

    def _sweep(self) -> None:
        """Remove shared memory that a killed server left. No process of this folder runs now."""
        for region in _SHARED_MEMORY.glob(f"{self.region_prefix}*"):
            region.unlink(missing_ok=True)

    @property
    def region_prefix(self) -> str:
        """How the names of its shared memory begin."""
        return f"pareta-triton-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]}-"

    def _spec(self) -> Spec:
        env = self._environment
        options = {
            # Relative: the server hands these to a shell, which a space in a path would mislead.
            "model-repository": MODELS_FOLDER,
            "backend-directory": _BACKENDS,
            "model-control-mode": "explicit",
            "allow-gpu-metrics": "false",
            "allow-cpu-metrics": "false",
            "cache-directory": str(env.packages / "pytriton" / "tritonserver" / "caches"),
            "backend-config": f"python,shm-region-prefix-name={self.region_prefix}",
            "http-address": "127.0.0.1",
            "http-port": str(self._ports["http"]),
            "grpc-address": "127.0.0.1",
            "grpc-port": str(self._ports["grpc"]),
            "metrics-address": "127.0.0.1",
            "metrics-port": str(self._ports["metrics"]),
            "exit-timeout-secs": str(_STOP_GRACE_S),
        }
        return Spec(
            name="triton",
            command=[
                str(env.program),
                *(f"--{name}={value}" for name, value in options.items()),
                "--disable-auto-complete-config",
                *(f"--load-model={name}" for name in self.models),
            ],
            lock=self._lock,
            environment={
                # The stub embeds a Python, which finds its libraries by the first `python3` on the PATH.
                "PATH": os.pathsep.join([str(env.root / "bin"), os.environ.get("PATH", os.defpath)]),
                "VIRTUAL_ENV": str(env.root),
                "LD_LIBRARY_PATH": os.pathsep.join(map(str, env.libraries)),
                STATE_FOLDER: str(self.folder / STATE),
            },
            folder=self.folder,
            log=self.log,
        )

    async def _ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(self.http_url, timeout=timeout) as client:
            # The page of metrics comes last: models may be ready before it is served.
            for address in (*(f"/v2/models/{model}/ready" for model in self.models), self.metrics_url):
                while not await _answers(client, address):
                    if not self.child.running or time.monotonic() > deadline:
                        raise StackError(f"Triton did not start. The end of {self.log}:\n{tail(self.log, 15)}")
                    await asyncio.sleep(0.05)


async def _answers(client: aiohttp.ClientSession, address: str) -> bool:
    try:
        async with client.get(address) as answer:
            return answer.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _lock_holders(lock: Path) -> dict[int, str]:
    """The processes that have a lock file open, with the kernel's short names for them."""
    found: dict[int, str] = {}
    held = str(lock.resolve())
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or somebody else's
            if any(os.readlink(file) == held for file in (process / "fd").iterdir()):
                found[int(process.name)] = (process / "comm").read_text().strip()
    return found


def _kill(processes: Mapping[int, str]) -> None:
    for pid, name in processes.items():
        if name == _STUB:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
