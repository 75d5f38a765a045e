"""Start a simulator process and wait until it serves: for tests, benchmarks and whoever needs one beside."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

STOP_S = 10


class SimulatorDidNotStart(RuntimeError):
    """The process ended before it served; the text is what it said."""


@dataclass(frozen=True, slots=True)
class SimulatorProcess:
    """A serving simulator."""

    url: str
    process: "subprocess.Popen[str]"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.url.rpartition(":")[2])

    def stop(self) -> int:
        """Ask it to end, and return its exit status; a process that does not heed is killed."""
        self.process.terminate()
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


def start(*flags: str, port: int = 0, prefix: Sequence[str] = ()) -> SimulatorProcess:
    """Start `python -m backends.simulator` with `flags`; returns when it accepts connections.

    Args:
        prefix: a command to run it under, such as `taskset -c 1`.

    Raises:
        SimulatorDidNotStart: if it ended instead.
    """
    command = [*prefix, sys.executable, "-m", "backends.simulator", "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("ready simulator "):
        process.wait()
        process.stdout.close()
        raise SimulatorDidNotStart(line.strip() or f"exit status {process.returncode}")
    return SimulatorProcess(line.split()[-1], process)


@contextmanager
def running(*flags: str, prefix: Sequence[str] = ()) -> Iterator[SimulatorProcess]:
    """A simulator on a free port, stopped at the end."""
    simulator = start(*flags, prefix=prefix)
    try:
        yield simulator
    finally:
        simulator.stop()
