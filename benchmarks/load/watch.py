"""What processes use: CPU time and resident memory of groups of them, as the kernel counts.

Linux only, as the rest of the benchmarks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence

from benchmarks.load.measurement import GroupUse

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_CPUCLOCK_SCHED = 2


class NoSuchProcess(LookupError):
    """A process that was to be watched is not there, or is not there any more."""


class Watch:
    """Looks at groups of processes; their children as of the beginning belong to them, and may end meanwhile.

    Args:
        groups: process ids by the name of a group.

    Memory is counted per process: what processes share, such as the buffers of Postgres, counts for each of them.

    Raises:
        NoSuchProcess: by each method, when one of the processes that were named does not run.
    """

    def __init__(self, groups: Mapping[str, Sequence[int]]) -> None:
        children = _children()
        self._named = {pid: name for name, pids in groups.items() for pid in pids}
        self._groups = {name: _with_descendants(pids, children) for name, pids in groups.items()}
        self._rss_before = self._rss()
        self._samples: list[dict[str, int]] = []
        self._cpu_before_s = self._cpu()
        self._begun_s = 0.0

    def begin(self) -> None:
        """The measurement begins."""
        self._cpu_before_s, self._begun_s = self._cpu(), time.monotonic()
        self._samples = [self._rss()]

    def sample(self) -> None:
        """Look at the memory, now and then."""
        self._samples.append(self._rss())

    def end(self, seconds: float | None = None) -> dict[str, GroupUse]:
        """The measurement is over: what was used since `begin`.

        Args:
            seconds: how long it was to last. CPU time is scaled to it, as who looks at the clock may come late; without
                it CPU time is as it was.
        """
        cpu_s = self._cpu()
        scale = seconds / (time.monotonic() - self._begun_s) if seconds else 1.0
        self.sample()
        use = {}
        for name, pids in self._groups.items():
            rss = [sample[name] for sample in self._samples]
            spent_s = sum(max(0.0, cpu_s[pid] - self._cpu_before_s[pid]) for pid in pids)
            use[name] = GroupUse(spent_s * scale, self._rss_before[name], sum(rss) // len(rss), max(rss))
        return use

    def _cpu(self) -> dict[int, float]:
        found = {pid: cpu_s(pid) for pids in self._groups.values() for pid in pids}
        for pid, name in self._named.items():
            if not found[pid]:
                raise NoSuchProcess(f"Process {pid} of {name}, which was to be watched, does not run.")
        return found

    def _rss(self) -> dict[str, int]:
        return {name: sum(map(rss_bytes, pids)) for name, pids in self._groups.items()}


def cpu_s(pid: int) -> float:
    """CPU time that a process has used, all threads, to the nanosecond; 0 if there is no such process.

    Source: the kernel's clock of another process, as in glibc's ``clock_getcpuclockid``.
    """
    try:
        return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError:
        return 0.0


def rss_bytes(pid: int) -> int:
    """Resident memory of a process; 0 if there is no such process."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            found.setdefault(parent, []).append(int(name))
    return found


def _with_descendants(pids: Sequence[int], children: Mapping[int, Sequence[int]]) -> list[int]:
    found, waiting = [], list(pids)
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.append(pid)
            waiting += children.get(pid, [])
    return found
