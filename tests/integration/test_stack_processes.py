"""Child processes: never orphaned, never doubled, started again when they die."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gateway.stack import processes
from gateway.stack.keeper import Keeper
from gateway.stack.processes import Child, FolderLock, Spec, StackError, end_leftover, lock_holder

SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
STUBBORN = [
    *(sys.executable, "-S", "-u", "-c"),
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(600)",
]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):
            await asyncio.sleep(0.02)


async def locked(lock: Path) -> int:
    async with asyncio.timeout(20):
        while not (pid := lock_holder(lock)):
            await asyncio.sleep(0.02)
    return pid


def orphan(spec_command: list[str], lock: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """A parent that starts a child as we do, to be killed by the test."""
    code = (
        "import sys, time; from pathlib import Path; from gateway.stack.processes import Child, Spec\n"
        "child = Child(Spec('x', sys.argv[2:], Path(sys.argv[1]))); time.sleep(600)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(lock), *spec_command]), lock


async def test_a_child_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """kill -9 of the parent leaves no orphan: the kernel asks the child to end."""
    parent, lock = orphan(SLEEPER, tmp_path / "with space" / "x.lock")
    child = await locked(lock)
    parent.kill()
    parent.wait()
    await gone(child)


async def test_a_leftover_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """A deaf leftover of a killed run is ended by the next run, and only it."""
    parent, lock = orphan(STUBBORN, tmp_path / "x.lock")
    child = await locked(lock)
    await asyncio.sleep(0.5)  # until it is deaf
    parent.kill()
    parent.wait()
    bystander = Child(Spec("bystander", SLEEPER, tmp_path / "bystander.lock"))
    assert await end_leftover(lock, name="x", stop_signal=signal.SIGTERM, grace_s=0.2)
    assert not alive(child)
    assert bystander.running
    await bystander.kill()


async def test_a_lock_file_with_a_reused_pid_harms_nobody(tmp_path: Path) -> None:
    """The pid in a lock file is a hint: a process that does not hold the lock is never signalled."""
    bystander = Child(Spec("bystander", SLEEPER, tmp_path / "bystander.lock"))
    await locked(tmp_path / "bystander.lock")
    holder = FolderLock(tmp_path / "x.lock")
    (tmp_path / "x.lock").write_text(f"{bystander.pid}\n")
    with pytest.raises(StackError, match="stop it first"):
        await end_leftover(tmp_path / "x.lock", name="x", stop_signal=signal.SIGTERM, grace_s=0.1)
    assert bystander.running
    holder.close()
    await bystander.kill()


async def test_a_second_instance_does_not_start(tmp_path: Path) -> None:
    """Two programs never share a folder, whatever a pid file says: the lock is the kernel's."""
    first = Child(Spec("x", SLEEPER, tmp_path / "x.lock"))
    await locked(tmp_path / "x.lock")
    second = Child(Spec("x", SLEEPER, tmp_path / "x.lock", log=tmp_path / "log"))
    assert await second.wait(20) == 75
    assert "Another process holds" in (tmp_path / "log").read_text()
    assert first.running
    await first.kill()
    assert lock_holder(tmp_path / "x.lock") is None


async def test_a_folder_is_used_by_one_run(tmp_path: Path) -> None:
    """The second run on a folder is told who uses it."""
    lock = FolderLock(tmp_path / "up.lock")
    with pytest.raises(StackError, match=f"in use by another run \\(process {os.getpid()}\\)"):
        FolderLock(tmp_path / "up.lock")
    lock.close()
    FolderLock(tmp_path / "up.lock").close()


async def test_a_program_that_dies_is_started_again(tmp_path: Path) -> None:
    """kill -9 of a kept program brings up another one, and its death is reported once."""
    deaths: list[int] = []

    async def start() -> Child:
        return Child(Spec("x", SLEEPER, tmp_path / "x.lock"))

    keeper = Keeper("x", start, on_death=deaths.append)
    await keeper.open()
    assert keeper.child is not None
    first = keeper.child.pid
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(20):
        while keeper.restarts == 0:
            await asyncio.sleep(0.02)
    assert deaths == [first]
    assert keeper.running
    second = keeper.child.pid
    await keeper.close(5)
    assert not alive(second)
    assert keeper.restarts == 1


async def test_a_program_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    """Stopping is bounded: what ignores the request is killed after its grace."""
    child = Child(Spec("x", STUBBORN, tmp_path / "x.lock", log=tmp_path / "log"))
    async with asyncio.timeout(20):
        while "deaf" not in (tmp_path / "log").read_text():
            await asyncio.sleep(0.02)
    assert await child.stop(0.2) == -signal.SIGKILL


def test_a_port_shared_with_reuseport_counts_as_taken() -> None:
    """SO_REUSEPORT would let a second gateway take half of the first one's requests; the probe sees it."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not processes.port_is_free(port)
        assert processes.free_port(port) != port
    assert processes.port_is_free(port)


def test_private_files_are_private(tmp_path: Path) -> None:
    """A secret is readable for its owner only, also when the file existed with wider permissions."""
    file = tmp_path / "secret"
    file.write_text("old")
    file.chmod(0o644)
    processes.write_private(file, "new")
    assert file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o600


async def test_waiting_for_an_end_is_bounded(tmp_path: Path) -> None:
    """``wait`` with a timeout answers None for a program that still runs."""
    child = Child(Spec("x", SLEEPER, tmp_path / "x.lock"))
    begun = time.monotonic()
    assert await child.wait(0.1) is None
    assert time.monotonic() - begun >= 0.1
    await child.kill()
