"""One thread for all streams of a model: a heap of what is due, as an engine's loop is one for its whole batch.

A thread for each request collapses at some hundred streams. Knows time, and nothing of what a stream sends.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

_TICK_S = 0.002
_BATCH = 256
"""Streams woken before new ones are looked at again."""


class Stream(Protocol):
    """Something that wants to be woken at a time."""

    def begin(self, now_s: float) -> float:
        """It runs from now on. Returns when it wants to be woken."""

    def wake(self, now_s: float) -> float | None:
        """Do what is due. Returns when it wants to be woken again, or `None` when it has ended."""


class Scheduler:
    """Runs streams until :meth:`close`.

    Args:
        max_active: how many run at once, 0 for no limit; others wait.
        max_waiting: how many wait.
        changed: told how many run and wait, whenever that may have changed.
    """

    def __init__(self, *, max_active: int, max_waiting: int, changed: Callable[[int, int], None]) -> None:
        self._max_active = max_active
        self._max_waiting = max_waiting
        self._changed = changed
        self._heap: list[tuple[float, int, Stream]] = []
        self._arrived: deque[Stream] = deque()
        self._waiting: deque[Stream] = deque()
        self._active = 0
        self._number = 0
        self._open = True
        self._wanted = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def add(self, stream: Stream) -> bool:
        """Take a stream. Returns whether there was room for it."""
        with self._wanted:
            queued = len(self._arrived) + len(self._waiting)
            if self._max_active and self._active + queued >= self._max_active + self._max_waiting:
                return False
            self._arrived.append(stream)
            self._wanted.notify()
        return True

    def close(self, timeout_s: float) -> None:
        """Let what runs end, but not longer than the timeout."""
        with self._wanted:
            self._open = False
            self._wanted.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while self._take_arrived():
            now_s = time.monotonic()
            active = self._active
            for _ in range(_BATCH):
                if not self._heap or self._heap[0][0] > now_s:
                    break
                _, _, stream = heapq.heappop(self._heap)
                again_s = stream.wake(time.monotonic())
                if again_s is None:
                    self._active -= 1
                else:
                    self._push(again_s, stream)
            if self._active != active:
                self._changed(self._active, len(self._waiting))

    def _take_arrived(self) -> bool:
        """Wait until something is due or new, and begin what is new. Returns `False` when all is over."""
        with self._wanted:
            while not self._arrived:
                if not self._open and not self._heap and not self._waiting:
                    return False
                if self._waiting and self._active < self._max_active:
                    break
                patience_s = max(0.0, self._heap[0][0] - time.monotonic()) if self._heap else None
                if patience_s == 0:
                    return True
                # Waking up costs as much as a token, so tokens that are due together go together.
                self._wanted.wait(None if patience_s is None else max(patience_s, _TICK_S))
            self._waiting.extend(self._arrived)
            self._arrived.clear()
        while self._waiting and (not self._max_active or self._active < self._max_active):
            stream = self._waiting.popleft()
            self._active += 1
            self._push(stream.begin(time.monotonic()), stream)
        self._changed(self._active, len(self._waiting))
        return True

    def _push(self, due_s: float, stream: Stream) -> None:
        self._number += 1
        heapq.heappush(self._heap, (due_s, self._number, stream))
