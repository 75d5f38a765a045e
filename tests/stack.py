"""A whole local gateway as a user starts it, for system tests: ``python -m gateway up`` in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.stack import launch as launcher
from gateway.stack.processes import free_port, lock_holder

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 90.0
_OURS = ("PORT", "HOST", "DATA_DIR", "WORKERS", "DATABASE_URL", "REDIS_URL", "ADMIN_PORT", "NEW_KEY", "BACKEND")


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of the gateway."""
    kept = {name: value for name, value in os.environ.items() if name not in _OURS and not name.startswith("PARETA_")}
    return {**kept, **more}


def free_port_pair() -> int:
    """A free port whose neighbour, the admin port, is free as well."""
    while True:
        port = free_port()
        if port < 65535 and free_port(port + 1) == port + 1:
            return port


class Stack:
    """One running `up`. Make it with :meth:`start`; end it with :meth:`stop`."""

    def __init__(self, data_dir: Path, process: subprocess.Popen[str], fields: Mapping[str, str], output: str) -> None:
        self.data_dir = data_dir
        self.process = process
        self.output = output
        self.base_url = fields["base_url"]
        self.api_key = fields["api_key"]
        self.endpoint = fields["endpoint"]
        self.ready_data_dir = fields["data_dir"]

    @classmethod
    def start(
        cls, data_dir: Path, *arguments: str, workers: int = 1, port: int | None = None, **environment: str
    ) -> Stack:
        """Start one and wait for its ready line.

        Args:
            arguments: for ``up``, such as ``--new-key``.
            environment: settings, such as ``PARETA_DRAIN_TIMEOUT_S="2"``.
        """
        process = launch(data_dir, *arguments, workers=workers, port=port or free_port_pair(), **environment)
        assert process.stdout is not None
        lines = []
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and (line := process.stdout.readline()):
            lines.append(line)
            if line.startswith("ready "):
                fields = dict(part.split("=", 1) for part in shlex.split(line)[1:])
                return cls(data_dir, process, fields, "".join(lines))
        process.kill()
        _, errors = process.communicate()
        raise AssertionError(f"up did not become ready:\n{''.join(lines)}\n{errors}\n{gateway_log(data_dir)}")

    @property
    def run_file(self) -> dict[str, Any]:
        """What ``run.json`` says now."""
        content: dict[str, Any] = json.loads((self.data_dir / "run.json").read_text())
        return content

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.run_file['admin_port']}"

    def pids(self) -> dict[str, int]:
        """Every process of the stack that runs, by name, as the kernel's locks tell."""
        found = {"up": self.process.pid}
        for lock in (*self.data_dir.glob("run/*.lock"), *self.data_dir.glob("*/server.lock")):
            name = lock.parent.name if lock.name == "server.lock" else lock.stem
            if pid := lock_holder(lock):
                found[name] = pid
        return found

    def cli(self, *arguments: str) -> Any:
        """Run an operator command with ``--json`` beside the stack and return its answer."""
        command = [sys.executable, "-m", "gateway", *arguments, "--json", "--data-dir", str(self.data_dir)]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60, check=False
        )
        assert done.returncode == 0, f"{arguments} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return json.loads(done.stdout)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = 60) -> int:
        """Ask it to end and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            _, self.errors = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def end(self) -> None:
        """Make sure that it has ended, however the test did."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def log(self) -> str:
        """What the gateway's processes wrote."""
        return gateway_log(self.data_dir)


def launch(data_dir: Path, *arguments: str, port: int, workers: int = 1, **environment: str) -> subprocess.Popen[str]:
    """Start ``up`` without waiting for anything."""
    return subprocess.Popen(
        [
            # Should the tests be killed, so is the stack.
            *(sys.executable, "-I", "-S", launcher.__file__, "--death-signal", "15", "--parent", str(os.getpid())),
            *("--", sys.executable, "-m", "gateway", "up", *arguments),
        ],
        cwd=ROOT,
        # A Triton server is started only where a test is about it.
        env=clean_environment(
            **{"BACKEND": "simulator", **environment}, DATA_DIR=str(data_dir), PORT=str(port), WORKERS=str(workers)
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def gateway_log(data_dir: Path) -> str:
    try:
        return (data_dir / "logs" / "gateway.log").read_text("utf-8", "replace")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


StartStack = Callable[..., Stack]


async def until(true: Any, timeout_s: float = 30.0, every_s: float = 0.05) -> None:
    """Wait until a plain function answers something true."""
    async with asyncio.timeout(timeout_s):
        while not true():
            await asyncio.sleep(every_s)
