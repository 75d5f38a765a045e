"""The thread of one journal: its work in the order given, its answers in the event loop.

Floor: ``ledger`` edge. What an executor of the standard library spends on a piece of work (two futures, three locks, a
copied state, a task's step) is more than a group commit's own share; this is a queue, a thread and a callback.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

Told = Callable[["Exception | None"], None]
"""Called in the event loop: None if the work was done, else what it raised."""

_Job = tuple[Callable[[], object], Told | None]

_log = logging.getLogger("ledger.journal")


class DiskThread:
    """One thread that does what it is given, one after the other. It begins with the first piece of work."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: Thread | None = None

    def submit(self, work: Callable[[], object], told: Told | None = None) -> None:
        """Have something done. Without ``told`` what it raises is logged, and no one waits for it."""
        if self._thread is None:
            # A process that ends without `shutdown` shall not wait for a disk: what counts was waited for.
            self._thread = Thread(target=self._run, name="journal", daemon=True)
            self._thread.start()
        self._jobs.put((work, told))

    async def call(self, work: Callable[[], T]) -> T:
        """Have something done and wait for it. Raises what it raises."""
        done: asyncio.Future[None] = self._loop.create_future()
        results: list[T] = []

        def told(error: Exception | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        self.submit(lambda: results.append(work()), told)
        await done
        return results[0]

    def shutdown(self, *, wait: bool = True) -> None:
        """End the thread after all that was submitted."""
        if self._thread is not None:
            self._jobs.put(None)
            if wait:
                self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            work, told = job
            failure: Exception | None = None
            try:
                work()
            except Exception as error:
                failure = error
            if told is not None:
                self._tell(told, failure)
            elif failure is not None:
                _log.error("The disk's thread stumbled.", exc_info=failure)
            # Not to be kept alive while the next piece is waited for.
            del job, work, told, failure

    def _tell(self, told: Told, failure: Exception | None) -> None:
        try:
            self._loop.call_soon_threadsafe(told, failure)
        except RuntimeError:  # the loop is closed, and nobody is left to be told
            _log.warning("The journal's thread finished something after its event loop had ended.")
