"""The way of a settlement from a worker to the books: durable here first, kept until Postgres has it.

Floor: ``ledger`` edge, above ``ledger.outbox.journal`` and ``ledger.counter``.

The life of a settlement has three steps, and its record stays in the journal through all of them:

* **durable**: ``record`` returns when it is on this machine's disk.
* **delivered**: Redis has answered. One pump sends batches, retried with backoff, the settlements of one hold in order.
* **booked**: Postgres has it. Only now is the record confirmed in the journal. ``ledger.outbox.bookkeeper`` asks; what
  is not booked after ``redeliver_after_s`` is sent to Redis again, with growing pauses. A repeat is harmless; a hold
  that Redis had lost, because it came back from an older disk, is settled now.

What Redis does not know (``UnknownHold``: of a lost epoch, or forgotten) is booked by Postgres itself.

A crash at any step is harmless: what was not booked is delivered again at the next start
(:meth:`SettlementOutbox.recover`), or by another worker if this slot never comes back
(:meth:`SettlementOutbox.adopt_orphans`).

Memory is bounded: ``max_pending`` settlements that wait for Redis, ``max_unbooked`` that wait for Postgres at about 300
bytes each; of the others only their numbers are kept, at a bit each, and they are read back from the journal when there
is room (``ledger.outbox.backlog``). On the disk a settlement takes about 610 bytes, more with a stored outcome: with
Postgres away for an hour at 1,000 requests a second, the journals grow by 2.2 GB, and a start after that reads them in
about half a minute.

Where Redis has too little of the organization's credit for a charge, Postgres is asked for more (``ledger.cover``)
before less is charged than was used.

What can be lost: the settlement of a worker killed between the end of a request and the group commit (the hold is then
reaped at its last heartbeat), and one whose disk *and* whose Redis refuse until the process dies. When the disk
refuses, ``record`` waits for Redis's answer instead of the disk's, and the settlement is watched from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ledger.counter import Closing, CounterUnavailable, CreditCounter, OutOfCredit, Settled, Settlement, UnknownHold
from ledger.cover import Answer, Cover
from ledger.outbox.backlog import Backlog
from ledger.outbox.booked_watch import BookedWatch, Unbooked
from ledger.outbox.bookkeeper import Bookkeeper
from ledger.outbox.journal import Journal, JournalLocked, JournalUnavailable
from ledger.outbox.queue import DeliveryQueue
from ledger.outbox.settlement_words import encode
from ledger.outbox.values import Books, Item, OutboxCounts, OutboxUnavailable, RecoveryOutcome, Shelf, runs_of

DELIVERED_AT_ONCE = 256
KEPT_UNDURABLE = 10_000
"""Settlements that the disk refused, and that are kept in memory until they are booked."""

COVER_PAUSE_S = 5.0
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

GATHER_S = 0.005
"""How long a settlement waits for a call to travel with. A call of its own is a write to Redis's disk of its own."""

_log = logging.getLogger(__name__)

OnSettled = Callable[[int, int], None]
"""Called with the charge and the shortfall in nano-USD, once for each settlement."""


@dataclass(slots=True, eq=False)
class SettlementOutbox:
    """Takes settlements from one worker. Use it from one event loop; the journal is the outbox's from now on.

    Args:
        journal: open, and not used by anyone else.
        books: Postgres. None for a counter without a ledger: a settlement then ends when Redis has answered, and what
            Redis does not know is set aside in a file.
        cover: brings more credit to Redis. None: what Redis has is all there is.
        on_settled: for metrics.
        max_pending: settlements in memory that wait for Redis.
        max_unbooked: settlements in memory that wait for Postgres.
        undurable_wait_s: how long ``record`` waits for Redis when the disk refuses.
        ask_every_s: how often Postgres is asked, and how long after its delivery for each.
        redeliver_after_s: how long Postgres may take to book before a settlement is delivered again.
    """

    journal: Journal
    counter: CreditCounter
    books: Books | None = None
    cover: Cover | None = None
    on_settled: OnSettled | None = None
    max_pending: int = 100_000
    max_unbooked: int = 200_000
    undurable_wait_s: float = 10.0
    ask_every_s: float = 1.0
    redeliver_after_s: float = 30.0
    counts: OutboxCounts = field(default_factory=OutboxCounts)
    last_error: str = ""

    _loop: asyncio.AbstractEventLoop = field(init=False)
    _queue: DeliveryQueue = field(init=False, default_factory=DeliveryQueue)
    _watch: BookedWatch = field(init=False)
    _bookkeeper: Bookkeeper | None = field(init=False, default=None)
    _backlog: Backlog = field(init=False)
    _shelves: list[Shelf] = field(init=False)
    """The worker's own first, then adopted ones."""
    _writing: int = field(init=False, default=0)
    _undurable: int = field(init=False, default=0)
    _kept_undurable: int = field(init=False, default=0)
    _wake: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _leave: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _progress: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _tasks: list[asyncio.Task[None]] = field(init=False, default_factory=list)
    _covering: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _failures: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        """Make the parts."""
        self._loop = asyncio.get_running_loop()
        self._shelves = [Shelf(self.journal)]
        self.counter.on_departure(self._leave.set)
        self._watch = BookedWatch(ask_after_s=self.ask_every_s, redeliver_after_s=self.redeliver_after_s)
        if self.books is not None:
            self._bookkeeper = Bookkeeper(
                self.books,
                self._watch,
                self,
                epochs=lambda: tuple(self.counter.epoch_of(shard) for shard in range(self.counter.shards)),
                ask_every_s=self.ask_every_s,
                redeliver_after_s=self.redeliver_after_s,
            )
        self._backlog = Backlog(
            self._shelves,
            self._queue,
            self._watch,
            self.counts,
            max_pending=self.max_pending,
            max_unbooked=self.max_unbooked,
            enqueue=self._enqueue,
            watch_for=self._watch_for,
            rouse=self._rouse,
        )

    @property
    def pending(self) -> int:
        """Settlements that neither Redis nor Postgres has taken yet, in memory and on disk."""
        return self._writing + self._undurable + sum(shelf.waiting for shelf in self._shelves)

    @property
    def unbooked(self) -> int:
        """Settlements that Redis has confirmed and that are not known to be in the books."""
        return self._kept_undurable + sum(len(shelf.delivered) for shelf in self._shelves)

    async def record(self, settlement: Settlement) -> None:
        """Take the end of a hold (amount 0: a void) and return once it is durable.

        A caller that is cancelled loses nothing: the settlement goes its way all the same.

        Raises:
            OutboxUnavailable: the disk refused and Redis did not answer in time; it is still tried, from memory.
            ValueError: the settlement makes no sense (negative amount, too long).
        """
        await self.post(settlement)

    def post(self, settlement: Settlement) -> asyncio.Future[None]:
        """Take the end of a hold, as `record` does, and tell by a future when it is durable, or what `record` raises.

        The future only tells: whoever cancels it stops nothing.
        """
        durable: asyncio.Future[None] = self._loop.create_future()
        if self._closed:
            durable.set_exception(OutboxUnavailable("This outbox was closed."))
            return durable
        item = Item(settlement, self._shelves[0], durable=durable)
        self._writing += 1
        try:
            self.journal.append(encode(settlement), partial(self._written, item))
        except JournalUnavailable as error:
            self._written(item, 0, error)
        except ValueError as error:
            self._writing -= 1
            durable.set_exception(error)
            return durable
        self.counts.recorded += 1
        return durable

    async def written(self) -> None:
        """Wait until everything posted so far is on the disk, or was refused by it."""
        while self._writing:
            self._progress.clear()
            await self._progress.wait()

    async def recover(self) -> int:
        """Deliver again what earlier runs of this slot left unbooked; call it once, at the start.

        Returns how many; they are delivered in the background (:meth:`drain` waits).
        """
        return self._take_over(self._shelves[0])

    async def adopt_orphans(self, root: Path, *, from_slot: int = 0) -> int:
        """Deliver what is left in the journals of workers that never come back.

        Args:
            root: the folder of the ``worker-<slot>`` folders. Those that a living process has locked are left alone.
            from_slot: lower slots have workers that may only be restarting, and are left alone too.

        Returns:
            How many settlements were found; they are delivered in the background.
        """
        found = 0
        for folder in await asyncio.to_thread(lambda: sorted(root.glob("worker-*/"))):
            slot = folder.name.rpartition("-")[2]
            if not slot.isdecimal() or int(slot) < from_slot:
                continue
            try:
                journal = await Journal.open(folder)
            except JournalLocked:
                continue
            except JournalUnavailable as error:
                _log.error("%s", error)
                continue
            self._shelves.append(Shelf(journal))
            found += self._take_over(self._shelves[-1])
        return found

    async def drain(self, deadline_s: float) -> int:
        """Wait until nothing is pending, at most ``deadline_s``. Returns what still is.

        It does not wait for the books: what is not booked stays in the journal for the next start.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.pending:
                    self._progress.clear()
                    await self._progress.wait()
        return self.pending

    async def close(self) -> None:
        """Stop delivering and let go of the journals. What is not booked stays in them for the next start."""
        self._closed = True
        tasks = [*self._tasks, *self._covering]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for shelf in self._shelves:
            await shelf.journal.close()

    # Into memory

    def _written(self, item: Item, number: int, error: JournalUnavailable | None) -> None:
        self._writing -= 1
        if error is None:
            item.number = number
            durable, item.durable = item.durable, None
            if durable is not None and not durable.done():
                durable.set_result(None)
        else:
            self.counts.undurable += 1
            self._undurable += 1
            self.last_error = str(error)
            self._loop.call_later(self.undurable_wait_s, self._not_taken, item)
        if number and error is None and len(self._queue) >= self.max_pending:
            self.counts.spilled += 1
        else:
            self._enqueue(item)
        if not self._writing:
            self._progress.set()

    def _not_taken(self, item: Item) -> None:
        """The disk refused it, and Redis has not answered for long: whoever waits is told, and it is still tried."""
        durable = item.durable
        if durable is not None and not durable.done():
            text = f"The settlement of {item.settlement.hold_id} is neither on disk nor in Redis yet. {self.last_error}"
            durable.set_exception(OutboxUnavailable(text))

    def _enqueue(self, item: Item) -> None:
        if item.number and not item.times_delivered:
            item.shelf.queued.add(item.number)
        self._queue.add(item)
        if not self._wake.is_set():
            self._rouse()

    def _take_over(self, shelf: Shelf) -> int:
        found = shelf.journal.unconfirmed
        self.counts.recovered += found
        self._rouse()
        return found

    # Out of memory

    def _rouse(self) -> None:
        self._wake.set()
        if not self._tasks and not self._closed:
            loop = asyncio.get_running_loop()
            self._tasks.append(loop.create_task(self._run(), name="settlement-outbox"))
            if self._bookkeeper is not None:
                self._tasks.append(loop.create_task(self._bookkeeper.run(), name="settlement-bookkeeper"))

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self._gather()
            more = True
            while more:
                try:
                    if self._queue.ready:
                        await self._deliver()
                    more = await self._backlog.read_some() or self._queue.ready
                    await self._release_adopted()
                except Exception:
                    _log.exception("The outbox stumbled; it goes on.")
                    await asyncio.sleep(_BACKOFF_S[-1])
            self._progress.set()

    async def _gather(self) -> None:
        """Wait for a call that leaves for Redis anyway, or a moment: nobody waits for a settlement that is on disk."""
        self._leave.clear()
        timer = self._loop.call_later(GATHER_S, self._leave.set)
        await self._leave.wait()
        timer.cancel()

    async def _deliver(self) -> None:
        batch = self._queue.take(DELIVERED_AT_ONCE)
        closings: list[Closing] = []
        try:
            clamps = None if self.cover is None else [item.clamp for item in batch]
            closings = await self.counter.close_holds([item.settlement for item in batch], clamps)
        except Exception as error:
            _log.exception("A batch of settlements could not be delivered; it is tried again.")
            closings = [CounterUnavailable("unreachable", str(error))] * len(batch)
        failed: list[Item] = []
        delivered: list[Item] = []
        for item, closing in zip(batch, closings, strict=True):
            if type(closing) is Settled and closing.verdict == "fresh" and not item.times_delivered:
                # What nearly all of them are, without the questions for the others.
                self.counts.delivered += 1
                self._count_charge(closing.charged_nanos, closing.shortfall_nanos)
                delivered.append(item)
            elif isinstance(closing, CounterUnavailable):
                self.last_error = str(closing)
                failed.append(item)
            elif isinstance(closing, OutOfCredit):
                self._seek_cover(item, closing)
            elif not self._is_unknown(item.settlement, closing):
                self._count_delivery(item, closing)
                if isinstance(closing, UnknownHold):
                    self._queue.done(item)
                    self._end(item)
                else:
                    delivered.append(item)
            elif self._bookkeeper is not None:
                self._bookkeeper.recover(item)
            elif await self._backlog.keep_aside(item.shelf, encode(item.settlement)):
                self._queue.done(item)
                self._end(item)
            else:
                failed.append(item)
        self._has_delivered(delivered)
        self._progress.set()
        self._queue.back(failed)
        self.counts.retried += len(failed)
        if len(failed) == len(batch):
            await self._back_off()
        else:
            self._failures = 0

    async def _back_off(self) -> None:
        """Wait, longer each time; something new may shorten the wait, but not below the first step."""
        delay_s = _BACKOFF_S[min(self._failures, len(_BACKOFF_S) - 1)]
        self._failures += 1
        self._wake.clear()
        await asyncio.sleep(_BACKOFF_S[0])
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), delay_s - _BACKOFF_S[0] + 0.001)

    def _seek_cover(self, item: Item, short: OutOfCredit) -> None:
        """Ask Postgres for more credit while the others go on; then the settlement is delivered again."""
        assert self.cover is not None
        task = asyncio.get_running_loop().create_task(self._covered(self.cover, item, short))
        self._covering.add(task)
        task.add_done_callback(self._covering.discard)

    async def _covered(self, cover: Cover, item: Item, short: OutOfCredit) -> None:
        settlement = item.settlement
        try:
            covered = await cover.cover(settlement.org_id, settlement.amount_nanos - short.available_nanos, short)
            if covered.answer is Answer.EXHAUSTED:
                item.clamp = True
            elif covered.answer is not Answer.GRANTED:
                # Nobody is kept waiting by this one; should its hold expire, it becomes a correction.
                await asyncio.sleep(min(covered.retry_after_s, COVER_PAUSE_S))
        except Exception:
            _log.exception("No more credit could be asked for; the settlement is tried again.")
            await asyncio.sleep(COVER_PAUSE_S)
        self._queue.back([item])
        self._rouse()

    def _is_unknown(self, settlement: Settlement, closing: Closing) -> bool:
        """Whether Redis does not have the hold, so that the books must end it."""
        if isinstance(closing, UnknownHold):
            # Old records don't say of which epoch they are; a void that nobody knows then charges nobody.
            return settlement.amount_nanos > 0 or settlement.epoch != 0
        assert not isinstance(closing, CounterUnavailable | OutOfCredit)
        # An epoch begins with an empty Redis: what it says of an older hold is the trace of a void it did not know.
        epoch = self.counter.epoch_of(self.counter.shard_of(settlement.org_id))
        return closing.verdict == "repeated" and settlement.epoch not in (0, epoch)

    def _count_delivery(self, item: Item, closing: Closing) -> None:
        if item.times_delivered == 0:
            self.counts.delivered += 1
            if isinstance(closing, Settled) and not (item.earlier_run and closing.verdict == "repeated"):
                self._count_charge(closing.charged_nanos, closing.shortfall_nanos)
        elif not isinstance(closing, UnknownHold | OutOfCredit | CounterUnavailable) and closing.verdict != "repeated":
            self.counts.resettled += 1
            _log.warning("Redis had lost the settlement of %s; it has it again.", item.settlement.hold_id)

    def _has_delivered(self, items: list[Item]) -> None:
        """Redis has these; without books that is their end."""
        for item in items:
            self._queue.done(item)
        if self._bookkeeper is None:
            for item in items:
                self._end(item)
        elif items:
            self._await_booking(items)

    def _watch_for(self, items: Sequence[Unbooked]) -> None:
        assert self._bookkeeper is not None
        self._bookkeeper.watch(items)

    def _await_booking(self, items: list[Item]) -> None:
        room = self.max_unbooked - len(self._watch)
        watched: list[Unbooked] = []
        for shelf, numbers in _by_shelf((item.shelf, item.number) for item in items[: max(room, 0)]).items():
            for first, last in runs_of(numbers):
                shelf.has_delivered(first, last, watched=True)
        for shelf, numbers in _by_shelf((item.shelf, item.number) for item in items[max(room, 0) :]).items():
            for first, last in runs_of(numbers):
                shelf.has_delivered(first, last, watched=False)
        for place, item in enumerate(items):
            settlement = item.settlement
            if item.number:
                if place < room:
                    watched.append(
                        Unbooked(settlement.hold_id, item.shelf, item.number, item.times_delivered + 1, None)
                    )
                continue
            self._undurable -= item.times_delivered == 0
            if place < room and self._kept_undurable < KEPT_UNDURABLE:
                self._kept_undurable += 1
                watched.append(Unbooked(settlement.hold_id, item.shelf, 0, item.times_delivered + 1, settlement))
            _tell_durable(item)
        if watched:
            self._watch_for(watched)

    def _end(self, item: Item) -> None:
        if item.number:
            item.shelf.end(item.number)
        else:
            self._undurable -= item.times_delivered == 0
        _tell_durable(item)

    def _count_charge(self, charged_nanos: int, shortfall_nanos: int) -> None:
        self.counts.charged_nanos += charged_nanos
        self.counts.shortfall_nanos += shortfall_nanos
        if self.on_settled is not None:
            try:
                self.on_settled(charged_nanos, shortfall_nanos)
            except Exception:
                _log.exception("The listener of settlements failed.")

    async def _release_adopted(self) -> None:
        for shelf in [shelf for shelf in self._shelves[1:] if shelf.journal.unconfirmed == 0]:
            self._shelves.remove(shelf)
            await shelf.journal.close()

    # What the bookkeeper found (``ledger.outbox.bookkeeper.Host``)

    def are_booked(self, items: Sequence[Unbooked]) -> None:
        """They are in the books: their records are not needed any more."""
        self.counts.booked += len(items)
        by_shelf = _by_shelf((unbooked.shelf, unbooked.number) for unbooked in items)
        self._kept_undurable -= len(items) - sum(map(len, by_shelf.values()))
        for shelf, numbers in by_shelf.items():
            for first, last in runs_of(sorted(numbers)):
                shelf.end(first, last)
            if self._backlog.has_work_for(shelf) or (shelf is not self._shelves[0] and not shelf.journal.unconfirmed):
                self._rouse()

    def is_recovered(self, item: Item, outcome: RecoveryOutcome) -> None:
        """The books have ended it without Redis."""
        if outcome.verdict == "booked":
            self.counts.recovered_charges += 1
            if item.times_delivered == 0 and item.settlement.amount_nanos:
                self._count_charge(outcome.charged_nanos, outcome.shortfall_nanos)
        elif outcome.verdict == "repeated":
            self.counts.recovered_repeats += 1
        else:
            self.counts.refused += 1
            _log.error("The books refused the settlement of %s; it is an anomaly there.", item.settlement.hold_id)
        self._queue.done(item)
        self._end(item)
        self._rouse()
        self._progress.set()

    async def is_refused(self, item: Item, reason: str) -> bool:
        """The books can't even keep it as an anomaly: keep it in a file."""
        _log.error("The books refused the settlement of %s: %s", item.settlement.hold_id, reason)
        if not await self._backlog.keep_aside(item.shelf, encode(item.settlement)):
            return False
        self.counts.refused += 1
        self._queue.done(item)
        self._end(item)
        self._rouse()
        self._progress.set()
        return True

    async def redeliver(self, items: list[Unbooked]) -> list[Unbooked]:
        """Send what is not booked to Redis again. Returns what can't be read or has no room now."""
        if len(self._queue) + len(items) > max(self.max_pending, len(items)):
            return items
        later: list[Unbooked] = []
        for unbooked, settlement in await self._backlog.settlements_of(items):
            if settlement is None:
                later.append(unbooked)
                continue
            self.counts.redelivered += 1
            self._kept_undurable -= unbooked.number == 0
            self._enqueue(Item(settlement, unbooked.shelf, unbooked.number, times_delivered=unbooked.times_delivered))
        return later


def _by_shelf(places: Iterable[tuple[Shelf, int]]) -> dict[Shelf, list[int]]:
    """The numbers in each journal; those that the disk refused are in none."""
    found: dict[Shelf, list[int]] = {}
    for shelf, number in places:
        if number:
            found.setdefault(shelf, []).append(number)
    return found


def _tell_durable(item: Item) -> None:
    durable = item.durable
    if durable is not None:
        item.durable = None
        if not durable.done():
            durable.set_result(None)
