"""LiteLLM's proxy: the gateway that most people know. Python; here without its database, as its fastest.

Versions 1.82.7 and 1.82.8 carried a credential stealer and shall never be pinned; a test sees to it. The lock file has
the hash of every package, and the environment is its own.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from benchmarks.load import Target
from benchmarks.peers.install import PINS, pinned_version, python_environment
from benchmarks.peers.peer import Place, Running, running_program, start_program
from gateway.stack.processes import free_port

LOCK = PINS / "litellm.txt"
STOLEN = frozenset({"1.82.7", "1.82.8"})
ENVIRONMENT = {
    # Else it asks the internet for prices at its start.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",
    "DISABLE_ADMIN_UI": "True",
}
WITHOUT = ("DATABASE_URL", "REDIS_URL", "REDIS_HOST")


class LiteLlm:
    """One worker, no database, no log of requests."""

    name = "litellm"
    label = "LiteLLM"
    note = "1 worker, no database, no cache, logs at ERROR, telemetry off; checks one master key, meters nothing"
    is_slow = True

    def __init__(self) -> None:
        self._python = Path()

    def install(self, folder: Path) -> None:
        """The packages of the lock file, in an environment of its own."""
        assert version() not in STOLEN
        self._python = python_environment(folder, LOCK)

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """One process."""
        port = free_port()
        configuration = place.work / "config.yaml"
        master_key = f"sk-{secrets.token_hex(24)}"
        # JSON is YAML.
        configuration.write_text(json.dumps(configuration_of(upstream, model, master_key), indent=2))
        command = [
            *(str(self._python), str(self._python.parent / "litellm"), "--config", str(configuration)),
            *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"),
        ]
        child = start_program("litellm", command, place, environment=ENVIRONMENT, without=WITHOUT)
        return running_program(child, Target(f"http://127.0.0.1:{port}", master_key, model), version())


def configuration_of(upstream: str, model: str, master_key: str) -> dict[str, object]:
    """Its configuration file. It does not start without a master key, which it compares in memory."""
    behind = {"model": f"openai/{model}", "api_base": f"{upstream}/v1", "api_key": "none"}
    return {
        "model_list": [{"model_name": model, "litellm_params": behind}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 600},
        "router_settings": {"num_retries": 0},
        "general_settings": {"master_key": master_key},
    }


def version() -> str:
    """The pinned one."""
    return pinned_version(LOCK, "litellm")
