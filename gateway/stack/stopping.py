"""The wish to stop: SIGINT, SIGTERM and a closed terminal as something to wait for.

Floor: stack.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable
from typing import Any

_PAIR_S = 1.0


class StopRequest:
    """Set by the first signal; a second one, at least a second later, asks to hurry.

    Signals come in pairs where nobody means haste: a SIGTERM to the whole process group reaches this process once
    directly and once through `make`.
    """

    def __init__(self) -> None:
        self._first_s = 0.0
        self._asked = asyncio.Event()
        self._hurry = asyncio.Event()

    def listen(self) -> None:
        """Take over SIGINT, SIGTERM and, unless it is ignored (nohup), SIGHUP of this process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self.ask)

    def ask(self) -> None:
        """Ask to stop; ask again to hurry."""
        now_s = time.monotonic()
        if not self._asked.is_set():
            self._first_s = now_s
            self._asked.set()
        elif now_s - self._first_s >= _PAIR_S:
            self._hurry.set()

    @property
    def asked(self) -> bool:
        """Whether anybody asked to stop."""
        return self._asked.is_set()

    async def wait(self) -> None:
        """Until somebody asks to stop."""
        await self._asked.wait()

    async def hurried(self, work: Awaitable[Any], timeout_s: float) -> None:
        """Let work run to its end, but not past the timeout, and not past a request to hurry."""
        task = asyncio.ensure_future(work)
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait([task, hurry], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for waiting in (task, hurry):
            waiting.cancel()
        await asyncio.gather(task, hurry, return_exceptions=True)
