"""Count the calls of each thread of this process, by what is called.

``call`` is a Python function that is entered or resumed, ``c_call`` a builtin that Python code calls. What compiled
code calls inside itself (llhttp, uvloop, hiredis) is not seen. A thread that is to be left out has to be started before
`CallCounter.install`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

Table = dict[CodeType | str, int]
_Hook = Callable[[FrameType, str, Any], None]


class CallCounter:
    """Counts from `install` on, for the thread that installs it and for all that start later, apart."""

    def __init__(self) -> None:
        self._here: tuple[Table, Table] = ({}, {})
        self._others: list[tuple[Table, Table]] = []

    def install(self) -> None:
        """Begin to count."""
        threading.setprofile(self._enter)
        sys.setprofile(_hook(*self._here))

    def totals(self) -> dict[str, list[int]]:
        """``{"loop": [calls, C calls], "others": [calls, C calls]}`` until now; may be asked by any thread."""
        mine, others = self._here, list(self._others)
        return {
            "loop": [_sum(mine[0]), _sum(mine[1])],
            "others": [sum(_sum(table[0]) for table in others), sum(_sum(table[1]) for table in others)],
        }

    def by_name(self) -> dict[str, int]:
        """How often each function was called until now on the thread of `install`; builtins stand in parentheses."""
        calls, c_calls = ({**table} for table in self._here)
        found: dict[str, int] = {}
        for code, count in calls.items():
            assert isinstance(code, CodeType)
            name = f"{code.co_filename}:{code.co_firstlineno} {code.co_name}"
            found[name] = found.get(name, 0) + count
        for builtin, count in c_calls.items():
            found[f"({builtin})"] = count
        return found

    def _enter(self, frame: FrameType, event: str, arg: Any) -> None:
        """The first event of a new thread: from here on it has a hook of its own."""
        tables: tuple[Table, Table] = ({}, {})
        self._others.append(tables)
        hook = _hook(*tables)
        sys.setprofile(hook)
        hook(frame, event, arg)


def _hook(calls: Table, c_calls: Table) -> _Hook:
    """A profile function that counts into these tables: Python's functions by code, builtins by name."""

    def hook(frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            calls[code] = calls.get(code, 0) + 1
        elif event == "c_call":
            name = arg.__qualname__
            c_calls[name] = c_calls.get(name, 0) + 1

    return hook


def _sum(table: Table) -> int:
    while True:
        try:
            return sum(table.values())
        except RuntimeError:  # another thread has just added a name
            continue
