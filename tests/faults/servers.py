"""The two stores of the suite: a durable Postgres, and two durable Redis of which one follows the other.

The embedded servers of the stack, with what only a test needs: replication, clocks, crashes and small disks.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import Any

import redis.asyncio

from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from gateway.stack.processes import Child, write_private
from tests.faults.clocks import Clock

PASSWORD = "faults-only-on-loopback"
META = "pareta:{%d}:meta"


class FaultyRedis(EmbeddedRedis):
    """A Redis that may follow another one, and whose clock may jump."""

    def __init__(self, folder: Path, clock: Clock, *, shards: int) -> None:
        super().__init__(folder, durable=True)
        self.shards = shards
        self.clock = clock
        self.follows: int | None = None
        """The port of its primary."""
        folder.mkdir(parents=True)
        write_private(folder / "password", PASSWORD + "\n")

    @property
    def appended(self) -> Path:
        """The append-only file."""
        return self.folder / "appendonly.aof"

    @property
    def pid(self) -> int:
        return self.child.pid

    def _configuration(self) -> str:
        lines = [f"masterauth {PASSWORD}", "repl-diskless-sync no", "repl-timeout 120"]
        if self.follows is not None:
            lines.append(f"replicaof 127.0.0.1 {self.follows}")
        return super()._configuration() + "".join(f"{line}\n" for line in lines)

    def _spawn(self, program: str) -> Child:
        child_of = super()._spawn
        # The parent has no place for an environment, and the spawn copies ours at once.
        with environment(self.clock.environment):
            return child_of(program)

    async def command(self, *words: Any) -> Any:
        """One command on a connection of its own."""
        client = redis.asyncio.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)
        try:
            return await client.execute_command(*words)
        finally:
            await client.aclose()

    async def seq(self) -> int:
        """How many events it has seen, in all shards."""
        numbers = [await self.command("HGET", META % shard, "seq") for shard in range(self.shards)]
        return sum(int(number or 0) for number in numbers)


class FaultyPostgres(EmbeddedPostgres):
    """A durable Postgres that can be crashed as a whole."""

    @property
    def pids(self) -> list[int]:
        """The server and all of its processes."""
        return [self.child.pid, *children_of(self.child.pid)]

    async def crash(self) -> int:
        """SIGKILL to every process at once; returns how many there were."""
        pids = self.pids
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await self.child.wait()
        return len(pids)


class CannotHappen(Exception):
    """This machine does not allow a fault; the text says why."""


@contextlib.contextmanager
def _permitted(size_bytes: int | None) -> Any:
    try:
        yield
    except PermissionError as error:
        if size_bytes is None:  # then it was never set either
            return
        raise CannotHappen(f"this machine does not allow it: {error}") from error


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Any:
    """Set variables of this process for a moment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name in brackets may hold anything; after it come the state and the parent.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def limit_files(pids: list[int], size_bytes: int | None) -> int:
    """Let no file of these processes grow beyond a size: a full disk (EFBIG for ENOSPC). ``None`` lifts it.

    Works because all our programs ignore SIGXFSZ: Postgres by its own will, the others because the Python that starts
    them does, and that survives ``exec``.
    """
    if not hasattr(resource, "prlimit"):
        if size_bytes is None:
            return 0
        raise CannotHappen("this system cannot change the limits of a running program")
    limited = 0
    for pid in pids:
        with contextlib.suppress(ProcessLookupError), _permitted(size_bytes):
            _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if size_bytes is None else size_bytes, hard))
            limited += 1
    return limited
