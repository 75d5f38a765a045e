"""Watching endpoints from the platform's side: when no engine of a live one answers, that is an outage.

Floor: control. Engines are probed by address, once for all endpoints that share them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import orjson

from gateway.control.database import ControlError
from gateway.control.deploys.drivers import PROBE_S, backend_of
from gateway.control.deploys.store import ServingBackend

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store

EVERY_S: Final = 5.0
AT_ONCE: Final = 32
_LOCK: Final = 0x706172657466  # "paretf": names this job among advisory locks
log = logging.getLogger("pareta.outages")


class OutageWatch:
    """Writes down when live endpoints are down."""

    def __init__(self, database: Store) -> None:
        self._database = database
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                async with self._database.connection() as conn:
                    if await conn.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                        try:
                            await self.look(conn)
                        finally:
                            await conn.fetchval("SELECT pg_advisory_unlock($1)", _LOCK)
            except ControlError as error:
                log.info("Outages are not seen at the moment: %s", error)
            except Exception:
                log.exception("Outages cannot be seen.")
            await asyncio.sleep(EVERY_S)

    async def look(self, conn: Connection) -> None:
        """Probe all engines of live endpoints once, and write down what has changed."""
        rows = await conn.fetch(
            "SELECT e.id, e.real_model, b.url, b.kind, b.options FROM control.endpoint e"
            " JOIN control.backend b ON b.endpoint_id = e.id AND b.state = 'active'"
            " WHERE e.deleted_at IS NULL AND e.status = 'live'"
        )
        engines = {(row["url"], row["real_model"]): row for row in rows}
        probes = (self._answers(row["kind"], row["options"], *key) for key, row in engines.items())
        answers = dict(zip(engines, await asyncio.gather(*probes), strict=True))
        up: dict[str, bool] = {}
        for row in rows:
            up[row["id"]] = up.get(row["id"], False) or answers[row["url"], row["real_model"]]
        await conn.execute(
            "INSERT INTO control.endpoint_outage (endpoint_id, from_at)"
            " SELECT id, now() FROM unnest($1::text[]) AS u (id) ON CONFLICT DO NOTHING",
            [endpoint_id for endpoint_id, is_up in up.items() if not is_up],
        )
        # One that is not live any more is not down, it is stopped.
        await conn.execute(
            "UPDATE control.endpoint_outage SET to_at = greatest(now(), from_at) WHERE to_at IS NULL"
            " AND NOT endpoint_id = ANY($1::text[])",
            [endpoint_id for endpoint_id, is_up in up.items() if not is_up],
        )

    async def _answers(self, kind: str, options: str, url: str, model: str) -> bool:
        async with self._turns:
            backend = backend_of(ServingBackend(url, kind, orjson.loads(options)), model)
            try:
                return await backend.probe(PROBE_S)
            finally:
                await backend.close()
