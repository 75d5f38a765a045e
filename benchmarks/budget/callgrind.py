"""Instructions per unit of a case, counted by callgrind: slow, good to a part in a hundred, without the kernel's."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from benchmarks.budget.cases import Case
from benchmarks.budget.rounds import Worker, folder, running
from benchmarks.peers.peer import PeerFailed

IDLE_S = 5.0
_MOST_ROUNDS = 20
_DUMP_S = 60.0
_TOTAL = re.compile(r"^(?:totals|summary): ([0-9]+)", re.MULTILINE)


def is_here() -> bool:
    """Whether valgrind is installed."""
    return shutil.which("valgrind") is not None and shutil.which("callgrind_control") is not None


def instructions(cases: Sequence[Case]) -> dict[str, int]:
    """Instructions of the whole worker process per unit of each case, its chores of that time taken off.

    Raises:
        PeerFailed: the worker does not start under valgrind.
    """
    with ExitStack() as cleanup:
        work = cleanup.enter_context(folder())
        out = work / "callgrind.out"
        # Not `--instr-atstart=no`: what valgrind has translated before it counts is translated again.
        valgrind = shutil.which("valgrind")
        assert valgrind is not None
        prefix = (valgrind, "--tool=callgrind", "--quiet", f"--callgrind-out-file={out}")
        worker = cleanup.enter_context(running(prefix=prefix, work=work))
        counting = _Counting(worker, work)
        start_s = time.monotonic()
        counting.begin()
        time.sleep(IDLE_S)
        idle_per_s = counting.end() / (time.monotonic() - start_s)
        return {case.name: round(_of_case(worker, counting, case, idle_per_s)) for case in cases}


def _of_case(worker: Worker, counting: _Counting, case: Case, idle_per_s: float) -> float:
    few = replace(case, rounds=min(case.rounds, _MOST_ROUNDS))
    marks = 0
    start_s = 0.0
    spent = 0.0

    def mark() -> None:
        nonlocal marks, start_s, spent
        if marks == 0:
            start_s = time.monotonic()
            counting.begin()
        elif marks == few.rounds:
            spent = counting.end() - idle_per_s * (time.monotonic() - start_s)
        marks += 1

    worker.ask(few, mark)
    return spent / (few.rounds * few.at_once)


class _Counting:
    """Tells callgrind when to begin and to end."""

    def __init__(self, worker: Worker, work: Path) -> None:
        self._pid, self._work = worker.pid, work

    def begin(self) -> None:
        """From zero."""
        self._control("--zero")

    def end(self) -> int:
        """How many instructions there were since."""
        before = self._dumps()
        self._control("--dump")
        give_up_s = time.monotonic() + _DUMP_S
        while not (new := self._dumps() - before) or not (found := _TOTAL.findall(new.pop().read_text())):
            if time.monotonic() > give_up_s:
                raise PeerFailed("callgrind does not say what it has counted.")
            time.sleep(0.05)
        return int(found[-1])

    def _dumps(self) -> set[Path]:
        return set(self._work.glob("callgrind.out*"))

    def _control(self, what: str) -> None:
        subprocess.run(["callgrind_control", what, str(self._pid)], check=True, capture_output=True, timeout=_DUMP_S)
