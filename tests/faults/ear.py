"""Hears what the workers' eyewitness says, through a pipe: a full disk or a kill -9 takes no word of it away."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Ear:
    """``holds``: by the client's name of a try, the holds that workers took for it."""

    def __init__(self, folder: Path) -> None:
        path = folder / "witness"
        os.mkfifo(path)
        # Open for writing as well, so that it never ends while no worker runs.
        self._pipe = os.open(path, os.O_RDWR)
        self._lock = threading.Lock()
        self._holds: dict[str, list[str]] = {}
        self._thread = threading.Thread(target=self._listen, name="ear", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, list[str]]:
        """Everything since the last call."""
        with self._lock:
            taken, self._holds = self._holds, {}
        return taken

    def close(self) -> None:
        os.write(self._pipe, b"the end\n")
        self._thread.join(5)
        os.close(self._pipe)

    def _listen(self) -> None:
        rest = b""
        while True:
            *lines, rest = (rest + os.read(self._pipe, 65536)).split(b"\n")
            with self._lock:
                for line in lines:
                    if line == b"the end":
                        return
                    name, hold_id, _ = line.decode().split()
                    self._holds.setdefault(name, []).append(hold_id)
