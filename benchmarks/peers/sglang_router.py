"""SGLang's router: compiled (Rust), the router that engines' users put in front of several replicas."""

from __future__ import annotations

from pathlib import Path

from benchmarks.load import Target
from benchmarks.peers.install import PINS, pinned_version, python_environment
from benchmarks.peers.peer import Place, Running, running_program, start_program
from gateway.stack.processes import free_port

LOCK = PINS / "sglang-router.txt"


class SglangRouter:
    """One worker behind it, and everything off that would cost it something or could interrupt the run."""

    name = "sglang-router"
    label = "SGLang's router"
    note = "round robin over one worker; health checks, retries, circuit breaker and request logs off"
    is_slow = False

    def __init__(self) -> None:
        self._python = ""

    def install(self, folder: Path) -> None:
        """The wheel, in an environment of its own."""
        self._python = str(python_environment(folder, LOCK))

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """One process; its threads are as many as it has cores, which is one."""
        port = free_port()
        child = start_program("sglang-router", self.command(upstream, port, free_port()), place)
        return running_program(child, Target(f"http://127.0.0.1:{port}", "none", model), version())

    def command(self, upstream: str, port: int, metrics_port: int) -> list[str]:
        """How it is started."""
        return [
            *(self._python, "-m", "sglang_router.launch_router", "--host", "127.0.0.1", "--port", str(port)),
            *("--worker-urls", upstream, "--policy", "round_robin"),
            *("--disable-health-check", "--disable-retries", "--disable-circuit-breaker"),
            *("--worker-startup-timeout-secs", "60", "--worker-startup-check-interval", "1"),
            *("--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics_port), "--log-level", "error"),
        ]


def version() -> str:
    """The pinned one."""
    return pinned_version(LOCK, "sglang-router")
