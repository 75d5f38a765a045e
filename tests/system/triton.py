"""A real Triton server for tests, with models that have the tensors of TensorRT-LLM's and vLLM's and answer by order.

A prompt steers the answer: ``<<sim {"tokens": 5}>>``, see ``backends.triton_server.steering``. What the models did is
told by :meth:`TritonService.inspect`.
"""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from backends.triton_server.interfaces import INTERFACES
from gateway.stack.triton import TritonServer
from gateway.stack.triton_install import TritonEnvironment, find_installed, place_for, why_not_here
from tests.services import private_folder, remove, run_here
from tests.stack import ROOT

PATIENCE_S = 30.0
LANGUAGE_MODELS = tuple(name for name, interface in INTERFACES.items() if interface.decoupled)
"""``ensemble``, ``ensemble_old``, ``llmapi``, ``vllm``."""


def sim(**options: Any) -> str:
    """The marker that steers an answer; put it anywhere in a prompt."""
    return f"<<sim {json.dumps(options)}>>"


class TritonService:
    """One server process of a test, which may kill and start it again on the same ports."""

    def __init__(
        self,
        folder: Path,
        environment: TritonEnvironment,
        *,
        models: Sequence[str] = tuple(INTERFACES),
        parameters: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.server = TritonServer(folder, environment, models=models, parameters=parameters)
        try:
            run_here(self.server.start())
        except BaseException:
            remove(folder)
            raise

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC."""
        return f"127.0.0.1:{self.server.grpc_port}"

    @property
    def http_url(self) -> str:
        return self.server.http_url

    @property
    def metrics_url(self) -> str:
        return self.server.metrics_url

    def url(self, model: str) -> str:
        """``triton://host:port/model``."""
        return self.server.url(model)

    @property
    def pid(self) -> int:
        return self.server.child.pid

    @property
    def running(self) -> bool:
        """Whether the server's process is there; on this version about one cancellation in 3,000 ends it."""
        return self.server.child.running

    def inspect(self, model: str, tag: str = "") -> dict[str, Any]:
        """Counts of a model (started, finished, cancelled, failed, active, waiting) and its last ``requests``.

        Args:
            tag: only requests whose marker has this ``tag``.
        """
        report: dict[str, Any] = self.inspect_all(tag)[model]
        return report

    def inspect_all(self, tag: str = "") -> dict[str, Any]:
        """The same for every model whose process lives."""
        content = self._get("/v2/models/inspect/generate", {"tag": tag})
        report: dict[str, Any] = json.loads(json.loads(content)["report"])
        return report

    def request(self, model: str, tag: str, *, state: str | None = None) -> dict[str, Any]:
        """The one request with a tag, once it is in a state; its ``inputs`` are the tensors as they came."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = self.inspect(model, tag)["requests"]
            assert len(found) <= 1, found
            if found and state in (None, found[0]["state"]):
                record: dict[str, Any] = found[0]
                return record
            assert time.monotonic() < deadline, f"no request {tag!r} of {model} is {state}: {found}"
            time.sleep(0.05)

    def wait_quiet(self, timeout_s: float = PATIENCE_S) -> None:
        """Until no model has a stream any more."""
        deadline = time.monotonic() + timeout_s
        while left := {name: r["active"] + r["waiting"] for name, r in self.inspect_all("-").items()}:
            if not any(left.values()):
                return
            assert time.monotonic() < deadline, f"streams are left: {left}"
            time.sleep(0.1)

    def stub_pid(self, model: str) -> int:
        """The process that runs a model."""
        return int(self.inspect(model, "-")["pid"])

    def kill_stub(self, model: str) -> None:
        """SIGKILL to the process that runs a model: its streams hang, and the server still calls it ready."""
        os.kill(self.stub_pid(model), signal.SIGKILL)

    def kill(self) -> None:
        """SIGKILL to the server."""
        run_here(self.server.child.kill())

    def restart(self) -> None:
        """Kill it, if it runs, and start it again on the same ports."""
        self.kill()
        run_here(self.server.start())

    def stop(self) -> None:
        """SIGTERM: a clean shutdown."""
        run_here(self.server.stop())

    def _get(self, path: str, body: dict[str, Any]) -> bytes:
        request = urllib.request.Request(self.http_url + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            content: bytes = answer.read()
            return content


def triton_environment() -> TritonEnvironment:
    """The installed server; a test without one is skipped, and says why."""
    if (reason := why_not_here()) is not None:
        pytest.skip(reason)
    found = find_installed(place_for(ROOT / ".data"))
    if found is None:
        pytest.skip("No Triton server is installed; `sh .ci/set-up triton` does it.")
    return found


@pytest.fixture(scope="session")
def session_triton() -> Iterator[TritonService]:
    """See ``triton_server``."""
    environment = triton_environment()
    folder = private_folder("triton")
    service = TritonService(folder, environment)
    yield service
    service.stop()
    remove(folder)


@pytest.fixture
def triton_server(session_triton: TritonService) -> TritonService:
    """The server that the tests of a session share, with all models. One that was left dead is started again."""
    if not session_triton.running:
        session_triton.restart()
    return session_triton


StartTriton = Callable[..., TritonService]


@pytest.fixture
def start_triton() -> Iterator[StartTriton]:
    """``start_triton(models=…, parameters={"ensemble": {"max_active": "2"}})`` -> a server of this test alone.

    Parameters of a model: ``max_active`` streams at once (0: no limit), ``max_waiting`` beside those, ``ttft_ms``,
    ``itl_ms``.
    """
    started: list[TritonService] = []

    def start(**options: Any) -> TritonService:
        environment = triton_environment()
        started.append(TritonService(private_folder("triton"), environment, **options))
        return started[-1]

    yield start
    for service in started:
        service.stop()
        remove(service.server.folder)
