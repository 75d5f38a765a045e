"""One replica as the router sees it: a backend, its open requests, and its health kept fresh by probes.

Floor: edge. Probes run only while a replica is in use, so that ten thousand quiet endpoints cost nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
from types import TracebackType

from backends.load import LoadSource
from backends.protocol import Backend
from backends.wire.breaker import Breaker
from backends.wire.failure import BackendFailure

LOAD_IS_OLD_AFTER = 3
"""Intervals without news of it."""

QUIET_AFTER_S = 300.0
"""Without a request for this long the probes stop; the next request starts them again."""


class Replica:
    """A backend with its state.

    ``with replica as backend:`` counts a request while it is open, and learns from how it ends.

    Args:
        replica_id: the operator's id of it.
        backend: the port.
        interval_s: time between probes.
        timeout_s: deadline of one probe.
        load: tells, as often as it is probed, how busy it is.
    """

    def __init__(
        self,
        replica_id: str,
        backend: Backend,
        *,
        interval_s: float,
        timeout_s: float,
        load: LoadSource | None = None,
    ) -> None:
        self.id = replica_id
        self.backend = backend
        self.outstanding = 0
        self.breaker = Breaker()
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._load = load
        self._waiting = 0
        self._waiting_at_s = -math.inf
        self._was_used = False
        self._probing: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        """Whether it should be asked."""
        return self.breaker.is_up

    @property
    def waiting(self) -> int:
        """Requests, also of others, that it says it has not begun; 0 when its word is old."""
        if self._load is None or not self._waiting:
            return 0
        age_s = asyncio.get_running_loop().time() - self._waiting_at_s
        return self._waiting if age_s <= LOAD_IS_OLD_AFTER * self._interval_s + self._timeout_s else 0

    def __enter__(self) -> Backend:
        self.outstanding += 1
        self.watch()
        return self.backend

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.outstanding -= 1
        if error is None:
            self.breaker.answered()
        elif isinstance(error, BackendFailure):
            self.breaker.failed(error)

    def watch(self) -> None:
        """Make sure that probes are running."""
        self._was_used = True
        if self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._probe_while_used())
            self._probing.add_done_callback(self._probed_enough)

    async def close(self) -> None:
        """Stop the probes and drop idle connections."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        if self._load is not None:
            await self._load.close()
        await self.backend.close()

    async def _probe_while_used(self) -> None:
        loop = asyncio.get_running_loop()
        used_at_s = loop.time()
        while self._was_used or loop.time() - used_at_s < QUIET_AFTER_S:
            # Spread out, so that many workers do not probe in step.
            await asyncio.sleep(self._interval_s * random.uniform(0.8, 1.2))  # noqa: S311
            if self._was_used:
                self._was_used, used_at_s = False, loop.time()
            self.breaker.probed(await self.backend.probe(self._timeout_s))
            if self._load is not None and (load := await self._load.read(self._timeout_s)) is not None:
                self._waiting, self._waiting_at_s = load.waiting, loop.time()
        # Quiet now, and nothing is known any more: the next request finds out.
        self.breaker = Breaker()

    def _probed_enough(self, probing: asyncio.Task[None]) -> None:
        del probing
        self._probing = None
