"""Following the ledger's epochs: what a process does when Redis does not let it in.

Floor: ``ledger`` edge. It reports the highest event that it has seen, so that the guardian can tell whether Redis has
lost it, and works under a new epoch as soon as the ledger has opened one.
"""

from __future__ import annotations

import asyncio
import logging

from ledger.books.database import Pool
from ledger.books.epochs import current_epochs, witness
from ledger.counter import CreditCounter
from ledger.errors import LedgerError

LOOK_EVERY_S = 2.0
LOOK_SOON_S = 0.1

log = logging.getLogger(__name__)


class EpochFollower:
    """Keeps a counter's epochs true.

    Args:
        pool: where the ledger is.
        counter: gets its epochs from here.
    """

    def __init__(self, pool: Pool, counter: CreditCounter) -> None:
        self._pool = pool
        self._counter = counter
        self._wake = asyncio.Event()
        self._seen: dict[tuple[int, int], int] = {}
        self._reported: dict[tuple[int, int], int] = {}
        counter.on_unsure(self._unsure)

    async def run(self) -> None:
        """Look now and then, and at once when something is wrong, until cancelled."""
        said = ""
        while True:
            try:
                await self._look()
                said = ""
            except LedgerError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("The ledger's epochs cannot be read: %s", said)
            except Exception:
                log.exception("The ledger's epochs cannot be followed; it is tried again.")
            try:
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._wake.wait()
            except TimeoutError:
                continue
            self._wake.clear()
            await asyncio.sleep(LOOK_SOON_S)

    async def _look(self) -> None:
        for (shard, epoch), seq in list(self._seen.items()):
            if seq > self._reported.get((shard, epoch), 0):
                await witness(self._pool, shard, epoch, seq)
                self._reported[shard, epoch] = seq
            if self._seen[shard, epoch] == seq:  # more may have been seen meanwhile
                del self._seen[shard, epoch]
        for shard, epoch in enumerate(await current_epochs(self._pool, self._counter.shards)):
            self._counter.set_epoch(shard, epoch)

    def _unsure(self, shard: int, epoch: int, seq: int) -> None:
        self._seen[shard, epoch] = max(seq, self._seen.get((shard, epoch), 0))
        self._wake.set()
