"""Says which endpoints are used, of those that may be put to sleep, and wakes those that are called while they sleep.

Floor: edges. A request only marks its endpoint; what was marked, and what has requests running, is written to Postgres
every other second. A sleeping endpoint is woken at once. Where Postgres is away nothing is lost but time: nobody can
put an endpoint to sleep then, and marks are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection
from typing import Final

from ledger.books.database import Pool, acquired
from ledger.errors import LedgerError

log = logging.getLogger("pareta.uses")

SAY_EVERY_S: Final = 2.0
"""Well below the shortest time after which an endpoint is put to sleep: 10 s, see `serving set --idle-stop`."""

_SAY: Final = """
INSERT INTO control.endpoint_use AS u (endpoint_id, used_at)
SELECT e.id, now() FROM control.endpoint e WHERE e.id = ANY($1::text[]) ORDER BY e.id
ON CONFLICT (endpoint_id) DO UPDATE SET used_at = greatest(u.used_at, EXCLUDED.used_at)
"""
# Whoever is first wakes it; for the others there is nothing left to do.
_WAKE: Final = """
UPDATE control.endpoint SET status = 'starting', stage = NULL, status_detail = NULL
 WHERE id = ANY($1::text[]) AND asleep AND deleted_at IS NULL
"""


class EndpointUses:
    """The uses of one worker.

    Args:
        running: ids of endpoints that may be put to sleep and have requests in progress.
    """

    def __init__(self, pool: Pool, running: Callable[[], Collection[str]]) -> None:
        self._pool = pool
        self._running = running
        self._used: set[str] = set()
        self._sleeping_called = asyncio.Event()

    def used(self, endpoint_id: str) -> None:
        """A request begins."""
        self._used.add(endpoint_id)

    def wanted(self, endpoint_id: str) -> None:
        """Somebody calls an endpoint that sleeps."""
        self._used.add(endpoint_id)
        self._sleeping_called.set()

    async def run(self) -> None:
        """Say it until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._sleeping_called.wait(), SAY_EVERY_S)
            self._sleeping_called.clear()
            used, self._used = self._used, set()
            ids = sorted(used.union(self._running()))
            if not ids:
                continue
            try:
                async with acquired(self._pool, "say which endpoints are used") as conn, conn.transaction():
                    await conn.execute(_SAY, ids)
                    await conn.execute(_WAKE, ids)
            except LedgerError as error:
                self._used |= used
                log.info("Uses of endpoints are not written at the moment: %s", error)
                await asyncio.sleep(SAY_EVERY_S)
            except Exception:
                # A bug of ours must not put endpoints to sleep that are used.
                self._used |= used
                log.exception("Uses of endpoints cannot be written.")
                await asyncio.sleep(SAY_EVERY_S)
