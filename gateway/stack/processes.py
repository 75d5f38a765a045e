"""Child processes, locks and free ports: what everything in the stack is started with.

Floor: stack. A :class:`Child` is one program started through :mod:`gateway.stack.launch`: it has a lock file that
proves whether it runs, a log file, and a signal that the kernel sends it should its parent be killed. This
module must not know what the programs are.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from gateway.stack import launch

_LAUNCH = Path(launch.__file__)
_POLL_S = 0.02
_FIRST_PORT, _LAST_PORT, _PORT_TRIES = 20_000, 32_000, 1000


class StackError(Exception):
    """The stack cannot do what was asked; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Spec:
    """How to start one program.

    ``lock`` is the file that proves it runs. ``stop_signal`` asks it to end, also when this process dies.
    ``identity`` are options of :mod:`gateway.stack.launch` that give up root. ``log`` is appended to; without
    one the program shares this process's standard output and error. ``outlives_parent``: it is not asked to end when
    this process dies; whoever comes after finds it by its lock.
    """

    name: str
    command: Sequence[str]
    lock: Path
    stop_signal: signal.Signals = signal.SIGTERM
    identity: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
    log: Path | None = None
    outlives_parent: bool = False


class Child:
    """One running program that this process started and will end."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._popen = _spawn(spec)
        self.started_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def exit_status(self) -> int | None:
        """Its exit status (negative: the signal that ended it), or ``None`` while it runs."""
        return self._popen.poll()

    @property
    def running(self) -> bool:
        """Whether it still runs."""
        return self.exit_status() is None

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        # Popen knows whether the pid was reaped, so a reused pid can never be hit.
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for its end. Returns the exit status, or ``None`` when the time is over first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._end()
        return self.exit_status()

    async def _end(self) -> None:
        """Return when it has ended. While this waits nothing wakes up, where the system can tell (Linux)."""
        if self.exit_status() is not None:
            return
        try:
            # It was not reaped, so the number is still its own.
            handle = os.pidfd_open(self.pid)
        except (AttributeError, OSError):
            while self.exit_status() is None:  # noqa: ASYNC110 (there is no event to wait for)
                await asyncio.sleep(_POLL_S)
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(handle, ended.set)
            await ended.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)

    async def stop(self, grace_s: float) -> int | None:
        """Ask it to end, wait, and kill what is left."""
        self.signal(self.spec.stop_signal)
        if await self.wait(grace_s) is None:
            await self.kill()
        return self.exit_status()

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        await self.wait()


_OURS = ("PARETA_", "AWS_", "DATABASE_URL", "REDIS_URL", "OPENAI_", "ANTHROPIC_", "GEMINI_", "PROMETHEUS_")


def _harmless(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment for programs of others: without our settings, our databases and the operator's keys."""
    return {name: value for name, value in environment.items() if not name.startswith(_OURS)}


def _spawn(spec: Spec) -> subprocess.Popen[bytes]:
    spec.lock.parent.mkdir(parents=True, exist_ok=True)
    options = ["--lock", str(spec.lock.absolute()), *spec.identity]
    if not spec.outlives_parent:
        options += ["--death-signal", str(int(spec.stop_signal)), "--parent", str(os.getpid())]
    with contextlib.ExitStack() as files:
        out: IO[bytes] | int | None = None
        if spec.log is not None:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            out = files.enter_context(open(os.open(spec.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab"))
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(_LAUNCH), *options, "--", *spec.command],
            env={**(_harmless(os.environ) if spec.outlives_parent else os.environ), **spec.environment},
            cwd=spec.folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            # A terminal's Ctrl-C goes to the whole foreground group; only the parent shall hear it and drain.
            start_new_session=True,
        )


class FolderLock:
    """An exclusive advisory lock on a file, held by this process until it is closed or dies."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode("ascii", "replace").strip()
            os.close(self._file)
            raise StackError(f"{path.parent} is in use by another run (process {holder or 'unknown'}).") from error
        os.ftruncate(self._file, 0)
        os.write(self._file, b"%d\n" % os.getpid())

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)


def lock_holder(path: Path) -> int | None:
    """The process that holds a lock file, or ``None`` when nobody does.

    The pid is the one written by the first holder; it is 0 when the lock is held but the file does not say by whom.
    """
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        text = os.read(file, 32).strip()
        return int(text) if text.isdigit() else 0
    else:
        return None
    finally:
        os.close(file)


async def end_leftover(lock: Path, *, name: str, stop_signal: signal.Signals, grace_s: float) -> bool:
    """End a program that an earlier, killed run of ours left behind. Returns whether there was one.

    Only for a caller that holds the folder's own lock: then whoever holds this one has no parent any more. All our
    programs survive a kill -9 without loss, so that is the last resort.

    Raises:
        StackError: it does not end.
    """
    holder = lock_holder(lock)
    if holder is None:
        return False
    # The kernel has already asked it to end (launch.py, step 3), so the first step is only a wait.
    for number, patience_s in ((None, 1.0), (stop_signal, grace_s), (signal.SIGKILL, 5.0)):
        if number is not None and holder and _has_open(holder, lock):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(holder, number)
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            if lock_holder(lock) is None:
                return True
            await asyncio.sleep(0.05)
    raise StackError(
        f"A {name} of an earlier run still runs (process {holder or 'unknown'}) and does not end: stop it first."
    )


def _has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open; a pid in a file may have been given to somebody else since."""
    try:
        links = list(Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return not Path("/proc/self/fd").exists()  # no procfs: trust the file
    wanted = path.resolve()
    for link in links:
        with contextlib.suppress(OSError):
            if Path(os.readlink(link)) == wanted:
                return True
    return False


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens on a TCP port.

    The probe binds without SO_REUSEPORT, so it also sees listeners that share the port; SO_REUSEADDR keeps
    connections in TIME_WAIT from looking like a listener.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def free_port(preferred: int | None = None) -> int:
    """A free TCP port on loopback: the preferred one where possible.

    It lies below the range from which systems take ports of outgoing connections, or such a connection could sit on it
    just when the server behind it is to be started again.
    """
    if preferred and port_is_free(preferred):
        return preferred
    for _ in range(_PORT_TRIES):
        port = _FIRST_PORT + secrets.randbelow(_LAST_PORT - _FIRST_PORT)
        if port_is_free(port):
            return port
    raise StackError("There is no free port on this machine.")


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step; only its owner may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def tail(path: Path, lines: int = 5) -> str:
    """The last lines of a log, for an error message."""
    try:
        return "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""
