"""Clocks that jump: the library libfaketime in front of the C library of a running program.

Only where its wheel has a library for this machine (x86-64 Linux); elsewhere ``WHY_NOT`` says why clocks stand still.
"""

from __future__ import annotations

import importlib.util
import platform
import shutil
import sys
from pathlib import Path

_LIBRARY = Path("vendor/libfaketime/src/libfaketime.so.1")


def _find() -> tuple[Path | None, str]:
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None, f"the wheel of libfaketime has no library for {sys.platform} on {platform.machine()}"
    found = importlib.util.find_spec("libfaketime")
    for place in (found.submodule_search_locations or []) if found is not None else []:
        if (library := Path(place) / _LIBRARY).is_file():
            return library, ""
    return None, "libfaketime is not installed (it is in the extra `dev`)"


LIBRARY, WHY_NOT = _find()


class Clock:
    """The clock of the programs that are started with :attr:`environment`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._file = folder / f"clock-{name}"
        self._folder = folder
        self.offset_s = 0

    @property
    def environment(self) -> dict[str, str]:
        """What a program must be started with; empty where clocks cannot jump."""
        if LIBRARY is None:
            return {}
        # The loader splits the variable at spaces, and the place of the wheel may have some.
        library = self._folder / "libfaketime.so.1"
        if not library.exists():
            shutil.copy(LIBRARY, library)
        self.set(self.offset_s)
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, offset_s: int) -> None:
        """Be so many seconds ahead of (or, below zero, behind) the real time; in force within about two seconds."""
        self.offset_s = offset_s
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(f"{offset_s:+d}\n")
        new.rename(self._file)
