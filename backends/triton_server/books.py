"""What a model remembers of its requests, and the socket on which `inspect` reads it.

Each model runs in a process of its own, so the books are asked for over a socket in a folder of the server
(`PARETA_TRITON_STATE`). A process that was killed leaves a socket that nobody answers, and its counts are gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATE_FOLDER = "PARETA_TRITON_STATE"
_KEPT = 500
_TIMEOUT_S = 5.0
COUNTS = ("started", "finished", "cancelled", "failed", "active", "waiting")


class Books:
    """Counters and the last requests of one model. Thread-safe."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(COUNTS, 0)
        self._records: deque[dict[str, Any]] = deque(maxlen=_KEPT)

    def count(self, name: str, change: int = 1) -> None:
        """Change a counter."""
        with self._lock:
            self._counts[name] += change

    def set(self, name: str, value: int) -> None:
        """Replace a counter."""
        with self._lock:
            self._counts[name] = value

    def remember(self, record: dict[str, Any]) -> None:
        """Keep a request; the caller goes on changing its record."""
        with self._lock:
            self._records.append(record)

    def report(self, tag: str) -> dict[str, Any]:
        """Counters, and the requests with a tag (all for an empty one)."""
        with self._lock:
            requests = [{**record} for record in self._records if tag in ("", record["tag"])]
            return {"pid": os.getpid(), **self._counts, "requests": requests}

    def serve(self) -> None:
        """Answer on a socket from now on, in a thread that ends with the process."""
        folder = os.environ.get(STATE_FOLDER)
        if folder is None:
            return
        listener = socket.socket(socket.AF_UNIX)
        with _short(Path(folder)) as short:
            listener.bind(f"{short}/{self.model}.{os.getpid()}.sock")
        listener.listen(16)
        threading.Thread(target=self._answer, args=(listener,), name="books", daemon=True).start()

    def _answer(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            with connection, connection.makefile("rw", encoding="utf-8") as stream:
                try:
                    connection.settimeout(_TIMEOUT_S)
                    stream.write(json.dumps(self.report(stream.readline().rstrip("\n"))))
                    stream.flush()
                except OSError:
                    continue  # whoever asked is gone


def read_all(folder: Path, tag: str) -> dict[str, Any]:
    """The reports of all models that live, by name; a model that was reloaded has the sum of its processes."""
    reports: dict[str, Any] = {}
    for path in sorted(folder.glob("*.sock")):
        try:
            found = _ask(path, tag)
        except (OSError, ValueError):
            path.unlink(missing_ok=True)  # of a process that is gone
            continue
        name = path.name.split(".")[0]
        before = reports.get(name)
        if before is not None:
            found |= {count: found[count] + before[count] for count in COUNTS}
            found["requests"] = before["requests"] + found["requests"]
        reports[name] = found
    return reports


def _ask(path: Path, tag: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection, _short(path.parent) as short:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(f"{short}/{path.name}")
        with connection.makefile("rw", encoding="utf-8") as stream:
            stream.write(tag + "\n")
            stream.flush()
            report: dict[str, Any] = json.loads(stream.read())
            return report


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """A short name for a folder: the path of a socket has 107 characters at most."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{file}"
    finally:
        os.close(file)
