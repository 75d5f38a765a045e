"""Work that one process does at a time, whoever holds its lock: the loops of deploys and of eval runs.

Floor: control. What is wanted stands in Postgres. One who leads looks at it several times a second and has a task for
each piece; one who does not stands by. Nothing is kept in memory that is not in Postgres, so that whoever comes next
goes on.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gateway.control.database import ControlError

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store

LOOK_EVERY_S: Final = 0.25
STAND_BY_S: Final = 1.0
log = logging.getLogger("pareta.control")

Piece = TypeVar("Piece")


class LedWork(ABC):
    """A loop that leads or stands by.

    Args:
        lock: names this work among Postgres' advisory locks.
        name: of the work, for the log.
    """

    def __init__(self, database: Store, *, lock: int, name: str) -> None:
        self._database = database
        self._lock = lock
        self._name = name
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()

    @abstractmethod
    async def look(self, conn: Connection) -> None:
        """See what is wanted, and have it done. Called again and again while this process leads."""

    def rouse(self) -> None:
        """Look at once: something was asked for."""
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled. A Postgres that is away is waited for; a bug of ours does not end the work for ever."""
        said = ""
        try:
            while True:
                try:
                    await self._lead()
                    said = ""
                except ControlError as error:
                    if str(error) != said:
                        said = str(error)
                        log.warning("The work on %s waits: %s", self._name, error)
                except Exception:
                    log.exception("The work on %s stumbled.", self._name)
                await self._end_tasks()
                await asyncio.sleep(STAND_BY_S)
        finally:
            await self._end_tasks()

    def follow(
        self, wanted: Mapping[str, Piece], work: Callable[[Piece], Coroutine[Any, Any, None]], *, at_once: int
    ) -> None:
        """Have a task for each piece that is wanted, so many at a time."""
        for piece_id, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[piece_id]
        for piece_id, piece in wanted.items():
            if piece_id not in self._tasks and len(self._tasks) < at_once:
                self._tasks[piece_id] = asyncio.create_task(work(piece), name=f"{self._name} {piece_id}")

    def drop_unwanted(self, wanted: Mapping[str, object]) -> None:
        """Cancel the tasks of pieces that nobody wants any more."""
        for piece_id, task in self._tasks.items():
            if piece_id not in wanted:
                task.cancel()

    async def _lead(self) -> None:
        """Work for as long as this process holds the lock."""
        async with self._database.connection() as conn:
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", self._lock):
                return
            try:
                while True:
                    await self.look(conn)
                    self._wake.clear()
                    try:
                        await asyncio.wait_for(self._wake.wait(), LOOK_EVERY_S)
                    except TimeoutError:
                        continue
            finally:
                await conn.fetchval("SELECT pg_advisory_unlock($1)", self._lock)

    async def _end_tasks(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._tasks.clear()
