"""Faults of Postgres: crashes in the middle of commits, an outage, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time

from gateway.stack.processes import StackError
from tests.faults.fault import DidNotFire, Fault, Scene, until
from tests.faults.servers import limit_files

POSTGRES = frozenset({"postgres"})


class PostgresFault(Fault):
    """Heals by having a server that answers behind its proxy."""

    parts = POSTGRES

    async def heal(self, scene: Scene) -> None:
        world = scene.world
        world.to_postgres.mend()
        if not world.postgres.child.running:
            await world.postgres.start()


class KilledPostgres(PostgresFault):
    """11: kill -9 of everything while transactions commit: of all processes at once, or of one backend."""

    number, name = "11", "Postgres killed in mid-commit"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world = scene.world
        if rng.random() < 0.5:
            backend = await self._busy_backend(scene)
            with contextlib.suppress(ProcessLookupError):
                os.kill(backend, signal.SIGKILL)
            self.happened(f"backend {backend} killed in mid-transaction")
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            return
        await self._busy_backend(scene)
        processes = await world.postgres.crash()
        self.happened(f"{processes} processes killed")
        await asyncio.sleep(rng.uniform(0.1, 2.0))
        await world.postgres.start()

    async def _busy_backend(self, scene: Scene) -> int:
        """A backend that has written and not committed yet, or that of the reconciler."""
        async with scene.world.sql() as conn, asyncio.timeout(10):
            for _ in range(200):
                row = await conn.fetchrow(
                    """SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()
                        ORDER BY backend_xid IS NOT NULL DESC, application_name = 'pareta-reconciler' DESC,
                                 state_change DESC LIMIT 1"""
                )
                busy = await conn.fetchval(
                    "SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()"
                )
                if row is not None and busy:
                    return int(row["pid"])
                await asyncio.sleep(0.002)
        if row is None:
            raise DidNotFire("nobody is connected")
        return int(row["pid"])


class AwayPostgres(PostgresFault):
    """12: an outage until escrow is spent: then 503, never 402, and when it is over everything drains."""

    number, name = "12", "Postgres away until escrow is spent"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world = scene.world
        refused, down = world.to_postgres.refused, len(scene.load.down_s)
        world.to_postgres.refuse()
        away_s = time.time()
        await until(lambda: len(scene.load.down_s) >= down + 3, within_s=rng.uniform(8, 14))
        await asyncio.sleep(rng.uniform(0.5, 3.0))
        count = world.to_postgres.refused - refused
        self.unanswering_s = (away_s, time.time())
        world.to_postgres.mend()
        if not count:
            raise DidNotFire("nobody wanted to connect")
        self.happened(f"{count} connections refused, 503 in {len(scene.load.down_s) - down} s")


class SilentPostgres(PostgresFault):
    """12b: it does not refuse, it says nothing; whoever asks waits for his deadline."""

    number, name = "12b", "Postgres silent"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        proxy = scene.world.to_postgres
        before = proxy.held_back
        proxy.freeze()
        frozen_s = time.time()
        await asyncio.sleep(rng.uniform(5.0, 9.0))
        self.unanswering_s = (frozen_s, time.time())
        proxy.mend()
        if proxy.held_back == before:
            raise DidNotFire("nobody asked")
        self.happened(f"{proxy.held_back - before} pieces of questions kept waiting")


class FullDisk(PostgresFault):
    """13: nothing more fits. Postgres must stop rather than lose what it has promised."""

    number, name = "13", "disk of Postgres full"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        postgres = scene.world.postgres
        log = postgres.log
        size = log.stat().st_size
        limit_files(postgres.pids, 4096 * rng.randint(0, 2))
        said = lambda: b"File too large" in _since(log, size)  # noqa: E731
        fired = await until(lambda: said() or not postgres.child.running, within_s=10)
        await asyncio.sleep(rng.uniform(0.5, 2.0))
        limit_files(postgres.pids, None)
        if not fired:
            raise DidNotFire("nothing was written")
        self.happened("refused to write" if said() else "stopped")

    async def heal(self, scene: Scene) -> None:
        postgres = scene.world.postgres
        limit_files(postgres.pids, None)
        # After a panic it starts itself again; one that gave up is started by its operator.
        with contextlib.suppress(StackError):
            await super().heal(scene)
        if not postgres.child.running:
            await postgres.start()


def _since(path: object, size: int) -> bytes:
    with open(str(path), "rb") as file:
        file.seek(size)
        return file.read()
