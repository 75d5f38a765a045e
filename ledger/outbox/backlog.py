"""What the outbox keeps only on the disk: read back a piece at a time, when there is room for it.

Floor: ``ledger`` edge. Two kinds lie there: what waits for Redis beyond ``max_pending`` (all of it after a restart),
and what waits for the books beyond ``max_unbooked``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from ledger.counter.values import Settlement
from ledger.outbox.booked_watch import BookedWatch, Unbooked
from ledger.outbox.journal import JournalUnavailable, ReadBack
from ledger.outbox.queue import DeliveryQueue
from ledger.outbox.set_aside import UNREADABLE_FILE, set_aside
from ledger.outbox.settlement_words import decode
from ledger.outbox.values import Item, OutboxCounts, Shelf

READ_BELOW = 2048
"""More is read back for Redis when fewer than this wait in memory."""

DISK_PAUSE_S = 5.0
"""A disk that refused is left alone for this long."""

_log = logging.getLogger("ledger.outbox")


class Backlog:
    """The records of all journals of one outbox that are not in memory.

    Args:
        shelves: the outbox's own list; it may change.
        queue: what waits for Redis in memory. watch: what waits for the books.
        enqueue: puts a settlement there. watch_for: has it asked for. rouse: has :meth:`read_some` called again.
    """

    def __init__(
        self,
        shelves: Sequence[Shelf],
        queue: DeliveryQueue,
        watch: BookedWatch,
        counts: OutboxCounts,
        *,
        max_pending: int,
        max_unbooked: int,
        enqueue: Callable[[Item], None],
        watch_for: Callable[[Sequence[Unbooked]], None],
        rouse: Callable[[], None],
    ) -> None:
        self.last_error = ""
        self._shelves = shelves
        self._queue = queue
        self._watch = watch
        self._counts = counts
        self._max_pending = max_pending
        self._max_unbooked = max_unbooked
        self._enqueue = enqueue
        self._watch_for = watch_for
        self._rouse = rouse
        self._unreadable: list[tuple[Shelf, int, bytes]] = []
        self._rest_until_s = 0.0

    def has_work_for(self, shelf: Shelf) -> bool:
        """Whether something of it is only on the disk, and there is room for it."""
        if shelf.waiting_on_disk and len(self._queue) <= min(self._max_pending // 2, READ_BELOW):
            return True
        return bool(shelf.delivered_on_disk) and len(self._watch) <= self._max_unbooked // 2

    async def read_some(self) -> bool:
        """Read a piece of each journal, if there is room. False if nothing is to be read now."""
        if asyncio.get_running_loop().time() < self._rest_until_s:
            return False
        found = False
        for shelf in list(self._shelves):
            if not self.has_work_for(shelf):
                continue
            try:
                piece = await shelf.journal.read_back(shelf.cursor)
            except JournalUnavailable as error:
                self._rest(str(error))
                return False
            if piece is None:
                shelf.cursor = 0
            else:
                self._take_in(shelf, piece)
            found = True
        await self._set_unreadable_aside()
        return found

    async def settlements_of(self, items: Sequence[Unbooked]) -> list[tuple[Unbooked, Settlement | None]]:
        """Read back what was delivered before, to deliver it again. None: not now.

        What is gone from the disk, or was booked meanwhile, is not in the answer.
        """
        found: list[tuple[Unbooked, Settlement | None]] = []
        by_shelf: dict[Shelf, dict[int, Unbooked]] = {}
        for unbooked in items:
            if unbooked.settlement is not None:
                found.append((unbooked, unbooked.settlement))
            else:
                by_shelf.setdefault(unbooked.shelf, {})[unbooked.number] = unbooked
        for shelf, wanted in by_shelf.items():
            while wanted:
                try:
                    piece = await shelf.journal.read_back(min(wanted))
                except JournalUnavailable as error:
                    _log.error("%s It is tried again.", error)
                    found += [(unbooked, None) for unbooked in wanted.values()]
                    break
                if piece is None:
                    break
                found += self._found_in(shelf, piece, wanted)
        return found

    def _found_in(
        self, shelf: Shelf, piece: ReadBack, wanted: dict[int, Unbooked]
    ) -> Iterator[tuple[Unbooked, Settlement]]:
        for number in sorted(number for number in wanted if number <= piece.last):
            unbooked = wanted.pop(number)
            if number in piece.records:
                yield unbooked, decode(piece.records[number])
            elif number in piece.lost:
                self._vanished(shelf, number, unbooked.hold_id)

    def _take_in(self, shelf: Shelf, piece: ReadBack) -> None:
        shelf.cursor = piece.last + 1
        for number in piece.lost:
            if number not in shelf.queued and number not in shelf.watched:
                self._vanished(shelf, number, "")
        for number, payload in piece.records.items():
            if number in shelf.queued or number in shelf.watched:
                continue
            if number not in shelf.delivered:
                if len(self._queue) < self._max_pending:
                    self._take_in_waiting(shelf, number, payload)
            elif len(self._watch) < self._max_unbooked:
                shelf.watched.add(number)
                self._watch_for([Unbooked(decode(payload).hold_id, shelf, number, 1, None)])
            elif not shelf.waiting_on_disk:
                shelf.cursor = number
                return

    def _take_in_waiting(self, shelf: Shelf, number: int, payload: bytes) -> None:
        try:
            settlement = decode(payload)
        except ValueError as error:
            _log.error("Record %d of the journal %s is not a settlement: %s.", number, shelf.journal.folder, error)
            shelf.queued.add(number)
            self._unreadable.append((shelf, number, payload))
            return
        self._enqueue(Item(settlement, shelf, number, earlier_run=number < shelf.journal.first_new))

    def _vanished(self, shelf: Shelf, number: int, hold_id: str) -> None:
        self._counts.vanished += 1
        _log.error(
            "Record %d of the journal %s is gone from the disk. %s",
            number,
            shelf.journal.folder,
            f"Redis has confirmed the settlement {hold_id}; should it lose it before Postgres has booked it, only what "
            "its last heartbeat had delivered is charged."
            if number in shelf.delivered
            else "Its hold is charged at what its last heartbeat had delivered.",
        )
        shelf.end(number)

    async def _set_unreadable_aside(self) -> None:
        """Keep records that are no settlement (of another version, say), so that they are not read at every start."""
        records, self._unreadable = self._unreadable, []
        for place, (shelf, number, payload) in enumerate(records):
            if not await self.keep_aside(shelf, payload):
                self._unreadable += records[place:]
                self._rest(self.last_error)
                return
            shelf.end(number)

    async def keep_aside(self, shelf: Shelf, line: bytes) -> bool:
        """Keep a line in the file for records that nobody can use. False if the disk does not take it."""
        try:
            await asyncio.to_thread(set_aside, shelf.journal.folder, line)
        except OSError as error:
            self.last_error = f"A record could not be set aside: {error.strerror}."
            return False
        _log.error("A record was set aside in %s.", shelf.journal.folder / UNREADABLE_FILE)
        self._counts.unreadable += 1
        return True

    def _rest(self, reason: str) -> None:
        _log.error("%s It is tried again.", reason)
        loop = asyncio.get_running_loop()
        self._rest_until_s = loop.time() + DISK_PAUSE_S
        loop.call_later(DISK_PAUSE_S, self._rouse)
