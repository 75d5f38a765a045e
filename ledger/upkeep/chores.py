"""The chores beside booking: what has to be done again and again by whoever leads.

Floor: edge. Each chore is harmless to repeat and harmless to do in two processes at once; that the leader does it only
saves work. A chore that fails is tried again and its error is shown; it never stops the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from ledger.books.database import Pool, acquired
from ledger.books.grants import deliver_grants
from ledger.books.partitions import MonthKeeper, months_ahead
from ledger.books.recovery import reap_carried, release_due
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.errors import LedgerError, LedgerUnavailable
from ledger.proof.blocks import close_blocks
from ledger.proof.drift import DriftWatch
from ledger.upkeep.escrow import EscrowKeeper

REAP_EVERY_S = 1.0
REAP_AT_ONCE = 100
GRANTS_EVERY_S = 0.5
REFILL_EVERY_S = 0.5
RETURNS_EVERY_S = 5.0
RECOVERY_EVERY_S = 1.0
DRIFT_EVERY_S = 5.0
BLOCKS_EVERY_S = 60.0
MAINTAIN_EVERY_S = 600.0
MONTHS_AHEAD = 2
REAP_PAUSE_S = 5.0
"""After Redis was away nobody is reaped for so long: the holds' owners could not renew them, and are about to."""

log = logging.getLogger("pareta.reconciler")

_STANDBY_POLL_S = 1.0
_RETRY_S = 1.0


class Grants(LedgerUnavailable):
    """Redis lacks grants that came before those which wait; the guardian has to look."""


class Chores:
    """The chores of one process.

    Args:
        leads: whether this process books a shard.
    """

    def __init__(
        self,
        pool: Pool,
        counter: CreditCounter,
        months: MonthKeeper,
        escrow: EscrowKeeper,
        *,
        leads: Callable[[int], bool],
    ) -> None:
        self._pool = pool
        self._counter = counter
        self._months = months
        self._leads = leads
        self._drift = DriftWatch(pool, counter, counter.shards)
        self._reap_from_s = 0.0
        self.escrow = escrow
        self.errors: dict[str, str] = {}
        self.reaped_holds = 0
        self.delivered_grants = 0
        self.grant_gaps: tuple[str, ...] = ()
        self._lost_grants: set[tuple[int, int]] = set()
        self.released_nanos = 0
        self.audit_blocks = 0

    @property
    def drift_nanos(self) -> int:
        """What Redis and Postgres disagree on, found at moments when both were quiet; should always be 0."""
        return self._drift.drift_nanos

    def lacks_grants(self, shard: int) -> bool:
        """Whether Redis has lost a grant of the shard's present epoch that it had confirmed."""
        return (shard, self._counter.epoch_of(shard)) in self._lost_grants

    async def run(self, stop: asyncio.Event) -> None:
        """Do them until told to stop."""
        async with asyncio.TaskGroup() as group:
            for name, every_s, chore in (
                ("partitions", MAINTAIN_EVERY_S, self._maintain),
                ("grants", GRANTS_EVERY_S, self._deliver_grants),
                ("refill", REFILL_EVERY_S, self.escrow.refill),
                ("returns", RETURNS_EVERY_S, self.escrow.return_idle),
                ("reaping", REAP_EVERY_S, self._reap),
                ("recovery", RECOVERY_EVERY_S, self._recover),
                ("drift", DRIFT_EVERY_S, self._compare),
                ("audit blocks", BLOCKS_EVERY_S, self._close_blocks),
            ):
                group.create_task(self._repeat(stop, name, every_s, chore))

    async def _repeat(
        self, stop: asyncio.Event, name: str, every_s: float, chore: Callable[[], Awaitable[None]]
    ) -> None:
        while not stop.is_set():
            wait_s = every_s
            if any(self._leads(shard) for shard in range(self._counter.shards)):
                try:
                    await chore()
                    self.errors.pop(name, None)
                except (LedgerError, CounterUnavailable) as error:
                    self.errors[name] = f"{name}: {error}"
                    wait_s = min(every_s, _RETRY_S)
                except Exception as error:  # a bug of ours; it must not end the others, and with them the process
                    log.exception("%s failed", name)
                    self.errors[name] = f"{name}: an unexpected {type(error).__name__}"
            else:
                self.errors.pop(name, None)
                wait_s = min(every_s, _STANDBY_POLL_S)
            await wait(stop, wait_s)

    async def _maintain(self) -> None:
        async with acquired(self._pool, "make the next partitions") as conn:
            await self._months.ensure(conn, months_ahead(datetime.now(UTC), MONTHS_AHEAD))

    async def _deliver_grants(self) -> None:
        epochs = [self._counter.epoch_of(shard) for shard in range(self._counter.shards)]
        delivery = await deliver_grants(self._pool, self._counter)
        self.delivered_grants += delivery.delivered
        self.grant_gaps = delivery.gaps
        # One is marked only when Redis has confirmed it, and the next one is sent after that: a gap is a loss. What
        # was found while an epoch changed is found again, if there is anything.
        gaps = {(shard, epochs[shard]) for shard in map(self._counter.shard_of, delivery.gaps)}
        self._lost_grants = {(shard, epoch) for shard, epoch in gaps if epoch == self._counter.epoch_of(shard)}
        if delivery.gaps:
            raise Grants(f"Redis lacks earlier grants of {len(delivery.gaps)} organizations.")

    async def _reap(self) -> None:
        try:
            if time.monotonic() < self._reap_from_s:
                await self._counter.ping()
                return
            while (reaped := await self._counter.reap(REAP_AT_ONCE)) > 0:
                self.reaped_holds += reaped
        except CounterUnavailable:
            self._reap_from_s = time.monotonic() + REAP_PAUSE_S
            raise

    async def _recover(self) -> None:
        for shard in range(self._counter.shards):
            if self._leads(shard):
                await reap_carried(self._pool, self._months, shard)
                self.released_nanos += (await release_due(self._pool, shard)).released_nanos

    async def _close_blocks(self) -> None:
        self.audit_blocks += await close_blocks(self._pool)

    async def _compare(self) -> None:
        await self._drift.step()


async def wait(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not past the order to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass
