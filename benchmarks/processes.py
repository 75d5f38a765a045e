"""What processes of a benchmark have in common: cores of their own, many files, an end with their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
from dataclasses import dataclass

_PR_SET_PDEATHSIG = 1
_MANY_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores do what.

    Attributes:
        measured: those of what is measured, one for each of its workers.
        others: those of all else. The same as `measured` where there is only one core.
    """

    measured: tuple[int, ...]
    others: tuple[int, ...]

    @property
    def are_shared(self) -> bool:
        """Whether what is measured has no core of its own."""
        return bool(set(self.measured) & set(self.others))


def choose_cores(workers: int) -> Cores:
    """Divide the cores that this process may use; the measured ones come first."""
    allowed = sorted(os.sched_getaffinity(0))
    count = min(workers, len(allowed) - 1)
    return Cores(tuple(allowed[:count]), tuple(allowed[count:])) if count else Cores(tuple(allowed), tuple(allowed))


def pin(pid: int, cores: tuple[int, ...]) -> None:
    """Let a process, with all threads that it has, run on these cores only."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread), cores)


def open_many_files() -> int:
    """Raise the limit of open files as far as this user may, and return it; children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (max(most, _MANY_FILES), most):  # root may go beyond the limit that it was given
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent does, however that ends; Ctrl-C is the parent's alone.

    Args:
        parent: the process that started this one; 0 if nobody did who wants it to end.
    """
    if not parent:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        sys.exit(0)
