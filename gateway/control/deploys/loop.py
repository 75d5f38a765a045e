"""The loop that brings endpoints up: what is wanted stands in Postgres, and is worked on until it is there.

Floor: control. An endpoint that is ``deploying`` or ``starting`` has one task here, in one process (an advisory lock
decides which), until it is live, failed, or nobody wants it any more. Nothing is kept in memory that is not in
Postgres: a process that is killed leaves its endpoints under way, and the next one goes on with them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from gateway.control.database import ControlError
from gateway.control.deploys import store
from gateway.control.deploys.drivers import CannotServe, Driver, until_one_answers
from gateway.control.deploys.store import Deployed
from gateway.control.leading import LedWork
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_MICRO
from ledger.errors import LedgerError

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store
    from ledger.books.ledger import Ledger

KEEP_EVERY_S: Final = 1.0
RETRY_S: Final = 1.0
AT_ONCE: Final = 64
"""Endpoints that are brought up at the same time; the others wait their turn."""
_LOCK: Final = 0x70617265746164  # "paretad": names this job among advisory locks
log = logging.getLogger("pareta.deploys")


class DeployLoop(LedWork):
    """Brings endpoints up.

    Args:
        patience_s: how long engines may take to become ready.
        always: models that are wanted whether or not anybody deploys them.
    """

    def __init__(
        self,
        database: Store,
        ledger: Ledger,
        drivers: Mapping[str, Driver],
        *,
        patience_s: float,
        always: Sequence[str] = (),
    ) -> None:
        super().__init__(database, lock=_LOCK, name="deploys")
        self._ledger = ledger
        self._drivers = drivers
        self._patience_s = patience_s
        self._always = always
        self._keep_s = 0.0

    async def look(self, conn: Connection) -> None:
        """See `LedWork.look`."""
        wanted = {one.id: one for one in await store.under_way(conn)}
        self.drop_unwanted(wanted)
        self.follow(wanted, self._bring_up, at_once=AT_ONCE)
        if time.monotonic() >= self._keep_s:
            await self._keep_drivers(conn)
            self._keep_s = time.monotonic() + KEEP_EVERY_S

    async def _keep_drivers(self, conn: Connection) -> None:
        """Put idle endpoints to sleep, tell drivers which models are wanted, point endpoints to engines that moved."""
        for endpoint_id in await store.put_to_sleep(conn):
            log.info("The endpoint %s was idle and sleeps now.", endpoint_id)
        servings = await store.wanted_servings(conn, self._always)
        for name, driver in self._drivers.items():
            wanted = [serving for serving in servings if serving.driver == name]
            try:
                await driver.keep(wanted)
                if driver.moves:
                    for serving in wanted:
                        await store.point_to(conn, serving.model_id, await driver.addresses(serving))
            except CannotServe as error:
                log.warning("A model that is wanted cannot be served at the moment: %s", error)
            except Exception:
                log.exception("The driver %s failed.", name)

    async def _bring_up(self, endpoint: Deployed) -> None:
        try:
            await self._serve(endpoint)
        except CannotServe as error:
            async with self._database.connection() as conn:
                await store.set_failed(conn, endpoint.id, str(error))
        except (ControlError, LedgerError) as error:
            log.warning("The endpoint %s waits: %s", endpoint.id, error)
            await asyncio.sleep(RETRY_S)
        except Exception:
            log.exception("The endpoint %s cannot be brought up.", endpoint.id)
            async with self._database.connection() as conn:
                await store.set_failed(conn, endpoint.id, "The deploy failed inside the platform. Start it again.")

    async def _serve(self, endpoint: Deployed) -> None:
        begun_s = time.monotonic()
        async with self._database.connection() as conn:
            await store.set_stage(conn, endpoint.id, "allocating")
            await store.expect_start(conn, endpoint.id)
            serving = await store.serving_of(conn, endpoint.model_id) if endpoint.model_id else None
            backends = await store.backends_of(conn, endpoint.id)
        real_model = endpoint.real_model
        if endpoint.model_id is not None:
            # Else an operator named the engines.
            if serving is None or (driver := self._drivers.get(serving.driver)) is None:
                raise CannotServe("This model has no capacity at the moment.")
            backends, real_model = list(await driver.addresses(serving)), serving.upstream
            await self._price(endpoint)
        async with self._database.connection() as conn:
            await store.set_stage(conn, endpoint.id, "starting")
        await until_one_answers(backends, real_model, patience_s=self._patience_s)
        async with self._database.connection() as conn:
            await store.set_live(conn, endpoint.id, backends, real_model=real_model)
            if endpoint.model_id is not None:
                await store.remember_start(conn, endpoint.model_id, time.monotonic() - begun_s)

    async def _price(self, endpoint: Deployed) -> None:
        """Give it the board's price before it is live: no worker may see it without one."""
        assert endpoint.task_id is not None
        assert endpoint.model_id is not None
        async with self._database.connection() as conn:
            micros = await store.flat_price_micros(conn, endpoint.task_id, endpoint.model_id)
        if micros is None:
            raise CannotServe("This model has no price on its task.")
        await self._ledger.set_price(endpoint.id, {Meter.REQUEST: micros * NANOS_PER_MICRO})
