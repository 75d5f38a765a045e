"""Keep one program running: start it again, ever slower, when it dies.

Floor: stack. Knows nothing of what the program does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from gateway.stack.processes import Child, StackError

log = logging.getLogger("gateway.stack")

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_HEALTHY_AFTER_S = 30.0


class Keeper:
    """One program that is meant to run until :meth:`close`.

    Args:
        name: for the log.
        start: starts it and returns when it has started; may raise :class:`StackError`.
        on_death: told the pid of each instance that ended by itself.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[], Awaitable[Child]],
        *,
        on_death: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._start = start
        self._on_death = on_death
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def child(self) -> Child | None:
        """The instance that was started last."""
        return self._child

    @property
    def running(self) -> bool:
        """Whether an instance runs now."""
        return self._child is not None and self._child.running

    async def open(self) -> None:
        """Start it; from now on it is kept running.

        Raises:
            StackError: the first start failed.
        """
        self._child = await self._start()
        self._watch = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def release(self) -> None:
        """Stop watching: its end is expected from now on."""
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None

    async def close(self, grace_s: float) -> None:
        """Stop watching and end it: ask, wait, then kill."""
        await self.release()
        if self._child is not None:
            await self._child.stop(grace_s)

    async def _keep(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            assert self._child is not None, "open() starts the first one"
            status = await self._child.wait()
            self._on_death(self._child.pid)
            if time.monotonic() - self._child.started_s > _HEALTHY_AFTER_S:
                pause_s = _FIRST_PAUSE_S
            log.warning("%s ended (%s); starting it again in %.1f s", self.name, _why(status), pause_s)
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                try:
                    self._child = await self._start()
                except (StackError, OSError) as error:
                    log.error("%s could not be started again, next try in %.1f s: %s", self.name, pause_s, error)
                else:
                    self.restarts += 1
                    break


def _why(status: int | None) -> str:
    return f"killed by signal {-status}" if status is not None and status < 0 else f"exit status {status}"
