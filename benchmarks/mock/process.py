"""Start a mock engine in a process of its own, and change its pace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

STOP_S = 10
_CONTROL_S = 30
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Goes to loopback whatever proxy the environment names."""


class MockDidNotStart(RuntimeError):
    """The process ended before it served."""


@dataclass(frozen=True, slots=True)
class MockProcess:
    """A serving mock engine."""

    url: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def pace(self, *, ttft_ms: float = 0.0, itl_ms: float = 0.0, by_hand: bool = False) -> None:
        """Change the pace of all that is asked from now on.

        Args:
            by_hand: streams get their first token at once, and each further one by `turn`.
        """
        # By hand any time between tokens will do, but none would mean all at once.
        pace = {"ttft_ms": ttft_ms, "itl_ms": 1.0 if by_hand else itl_ms, "by_hand": by_hand}
        self._tell("pace", pace)

    def turn(self) -> None:
        """A token for each stream that is paced by hand."""
        self._tell("turn", {})

    def _tell(self, what: str, content: object) -> None:
        body = json.dumps(content).encode()
        with _OPENER.open(f"{self.url}/mock/{what}", data=body, timeout=_CONTROL_S) as answer:
            answer.read()

    def stop(self) -> None:
        """Let it end."""
        self.process.terminate()
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextmanager
def running(*flags: str, prefix: Sequence[str] = ()) -> Iterator[MockProcess]:
    """A mock engine on a free port, stopped at the end.

    Args:
        flags: of ``python -m benchmarks.mock``.
        prefix: a command to run it under, such as ``taskset -c 1``.

    Raises:
        MockDidNotStart: if it ended instead.
    """
    command = [*prefix, sys.executable, "-m", "benchmarks.mock", "--parent", str(os.getpid()), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    mock = MockProcess(line.split()[-1] if line else "", process)
    try:
        if not line.startswith("ready mock "):
            raise MockDidNotStart(f"The mock engine ended with status {process.wait()}.")
        yield mock
    finally:
        mock.stop()
