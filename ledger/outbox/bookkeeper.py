"""Between the outbox and Postgres: asks what is booked, has booked what Redis does not know, waits while it is away.

Floor: ``ledger`` edge. One task; everything it does may be repeated. What becomes of a settlement is its host's
business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

from ledger.errors import LedgerError
from ledger.outbox.booked_watch import BookedWatch, Unbooked
from ledger.outbox.values import Books, Item, RecoveryOutcome

ASKED_AT_ONCE = 1000
RECOVERED_AT_ONCE = 200
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

_log = logging.getLogger("ledger.outbox")


class Host(Protocol):
    """Who is told."""

    def are_booked(self, items: Sequence[Unbooked]) -> None:
        """They are in the books."""

    def is_recovered(self, item: Item, outcome: RecoveryOutcome) -> None:
        """The books have dealt with it."""

    async def is_refused(self, item: Item, reason: str) -> bool:
        """The books can't take it, ever. False if that could not be written down, so that it stays here."""
        ...

    async def redeliver(self, items: list[Unbooked]) -> list[Unbooked]:
        """Send these to Redis again. Returns those for which that can't be done now."""
        ...


class Bookkeeper:
    """Asks the books for one outbox.

    Args:
        epochs: the epochs that Redis works under now, by shard. When one changes, Redis has lost something, and what
            was lost with it must be booked before the frozen credit is released.
        ask_every_s: the least time between two rounds of questions.
    """

    def __init__(
        self,
        books: Books,
        watch: BookedWatch,
        host: Host,
        *,
        epochs: Callable[[], tuple[int, ...]],
        ask_every_s: float,
        redeliver_after_s: float,
    ) -> None:
        self.last_error = ""
        self._books = books
        self._watch = watch
        self._host = host
        self._epochs = epochs
        self._seen_epochs = epochs()
        self._ask_every_s = ask_every_s
        self._redeliver_after_s = redeliver_after_s
        self._recovering: deque[Item] = deque()
        self._one_by_one = 0
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._next_round_s = 0.0
        self._failures = 0
        self._well_since_s: float | None = float("-inf")
        """Since when Postgres has answered; None while it does not."""

    @property
    def recovering(self) -> int:
        """Settlements that Redis does not know and Postgres has not taken yet."""
        return len(self._recovering)

    def recover(self, item: Item) -> None:
        """Have this one booked without Redis."""
        self._recovering.append(item)
        self._wake.set()

    def watch(self, items: Sequence[Unbooked]) -> None:
        """Ask for these until they are booked."""
        if not len(self._watch):
            self._wake.set()
        self._watch.add(items, self._loop.time())

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._wake.clear()
            self._heed_epochs()
            failure = None
            more = False
            for step in (self._recover_some, self._ask_some):
                try:
                    more = await step() or more
                except Exception as error:
                    failure = error
            if failure is not None:
                await self._back_off(failure)
            else:
                self._is_well()
                if not more:
                    await self._pause()

    def _heed_epochs(self) -> None:
        epochs = self._epochs()
        if epochs != self._seen_epochs:
            self._seen_epochs = epochs
            self._watch.hurry(self._loop.time())

    async def _recover_some(self) -> bool:
        """One batch. True if there is more."""
        if not self._recovering:
            return False
        batch = list(islice(self._recovering, 1 if self._one_by_one else RECOVERED_AT_ONCE))
        try:
            outcomes = await self._books.recover([item.settlement for item in batch])
        except Exception as error:
            if isinstance(error, LedgerError) and error.retry_is_safe:
                raise
            # One of them is the reason. It shall not stop the others.
            if len(batch) > 1:
                self._one_by_one = len(batch)
                return True
            if not (isinstance(error, LedgerError) and await self._host.is_refused(batch[0], str(error))):
                self._recovering.rotate(-1)
                raise
            self._forget(batch)
            return bool(self._recovering)
        ended = list(zip(batch, outcomes, strict=True))
        self._forget(batch)
        for item, outcome in ended:
            self._host.is_recovered(item, outcome)
        return bool(self._recovering)

    def _forget(self, batch: list[Item]) -> None:
        self._one_by_one = max(0, self._one_by_one - len(batch))
        for item in batch:
            self._recovering.remove(item)

    async def _ask_some(self) -> bool:
        """One question. True if there is more to ask at once."""
        now_s = self._loop.time()
        if now_s < self._next_round_s:
            return False
        due = self._watch.due(now_s, ASKED_AT_ONCE)
        if not due:
            return False
        try:
            booked = await self._books.booked([unbooked.hold_id for unbooked in due])
        except BaseException:
            self._watch.back(due, now_s)
            raise
        self._is_well()
        again: list[Unbooked] = []
        later: list[Unbooked] = []
        ended = [unbooked for unbooked in due if unbooked.hold_id in booked]
        if ended:
            self._host.are_booked(ended)
        for unbooked in due if len(ended) < len(due) else ():
            if unbooked.hold_id in booked:
                continue
            if now_s >= max(unbooked.again_at_s, self._trusted_from_s()):
                again.append(unbooked)
            else:
                later.append(unbooked)
        if again:
            later += await self._host.redeliver(again)
        self._watch.back(later, now_s)
        if len(due) == ASKED_AT_ONCE:
            return True
        self._next_round_s = now_s + self._ask_every_s
        return False

    def _trusted_from_s(self) -> float:
        """After an outage the reconciler has much to book: what is not in the books by then is not lost yet."""
        return self._redeliver_after_s + (self._well_since_s or float("-inf"))

    def _is_well(self) -> None:
        if self._well_since_s is None:
            self._well_since_s = self._loop.time()
            _log.info("The ledger answers again; %d settlements wait for it.", len(self._watch) + self.recovering)
        self._failures = 0

    async def _back_off(self, error: Exception) -> None:
        self.last_error = str(error)
        if not isinstance(error, LedgerError):
            _log.error("The ledger could not be asked about settlements; it is tried again.", exc_info=error)
        else:
            self._well_since_s = None
            if not self._failures:
                _log.warning("%s %d settlements wait in the journal.", error, len(self._watch) + self.recovering)
        delay_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        await asyncio.sleep(delay_s)

    async def _pause(self) -> None:
        pause_s = self._ask_every_s if len(self._watch) else None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
