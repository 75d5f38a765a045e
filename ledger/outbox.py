"""The way of a settlement from a worker to Redis: durable here first, delivered until Redis confirms it.

Floor: ``ledger`` edge, above ``ledger.journal`` and ``ledger.counter``.

``record`` returns when the settlement is on this machine's disk. From then on it is delivered by one pump, in batches,
retried with backoff, and the settlements of one hold in their order. A crash at any step is harmless: what was not
confirmed is delivered again at the next start (:meth:`SettlementOutbox.recover`), or by another worker if this slot
never comes back (:meth:`SettlementOutbox.adopt_orphans`), and Redis recognizes a repeat.

What can be lost: the settlement of a worker killed between the end of a request and the group commit (the hold is then
reaped at its last heartbeat), and one whose disk *and* whose Redis refuse until the process dies.

* The disk refuses: ``record`` then waits for Redis's answer instead of the disk's.
* Redis does not know the hold (its record is older than ``keep_closed_s``, or Redis lost data without changing its
  epoch): the settlement goes to ``unknown.jsonl`` beside the journal, for the guardian or an operator, with an error in
  the log. It is not retried.
* More than ``max_pending`` wait: the journal keeps the rest, and they are read back when there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import orjson

from ledger.counter import Closing, CounterUnavailable, CreditCounter, Settled, Settlement, UnknownHold
from ledger.counter_words import settle_words
from ledger.journal import Journal, JournalLocked, JournalUnavailable

DELIVERED_AT_ONCE = 256
_BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
UNKNOWN_FILE = "unknown.jsonl"
MAX_UNKNOWN_BYTES = 64 * 1024 * 1024

_log = logging.getLogger(__name__)

OnSettled = Callable[[int, int], None]
"""Called with the charge and the shortfall in nano-USD, once for each settlement that was delivered."""


class OutboxUnavailable(Exception):
    """The settlement is neither durable here nor confirmed by Redis; it is still being delivered from memory."""


@dataclass(slots=True, eq=False)
class _Item:
    settlement: Settlement
    journal: Journal
    number: int = 0
    """In the journal; 0 if it is not there."""
    recovered: bool = False
    delivered: asyncio.Future[None] | None = None
    """Only if the disk refused: what ``record`` waits for instead."""


@dataclass(slots=True)
class OutboxCounts:
    """Counters since the start, for metrics."""

    recorded: int = 0
    delivered: int = 0
    retried: int = 0
    recovered: int = 0
    unknown: int = 0
    undurable: int = 0
    spilled: int = 0
    charged_nanos: int = 0
    shortfall_nanos: int = 0


@dataclass(slots=True, eq=False)
class SettlementOutbox:
    """Takes settlements from one worker. Use it from one event loop; the journal is the outbox's from now on.

    Args:
        journal: open, and not used by anyone else.
        on_settled: for metrics.
        max_pending: settlements in memory.
        undurable_wait_s: how long ``record`` waits for Redis when the disk refuses.
    """

    journal: Journal
    counter: CreditCounter
    on_settled: OnSettled | None = None
    max_pending: int = 100_000
    undurable_wait_s: float = 10.0
    counts: OutboxCounts = field(default_factory=OutboxCounts)
    last_error: str = ""

    _lines: dict[str, deque[_Item]] = field(init=False, default_factory=dict)
    """By hold, so that the settlements of one hold keep their order."""
    _turns: deque[str] = field(init=False, default_factory=deque)
    """Holds whose first item waits to be delivered."""
    _in_memory: int = field(init=False, default=0)
    _writing: int = field(init=False, default=0)
    _undurable: int = field(init=False, default=0)
    _unreadable: list[tuple[Journal, int, bytes]] = field(init=False, default_factory=list)
    _spilled: set[Journal] = field(init=False, default_factory=set)
    _adopted: list[Journal] = field(init=False, default_factory=list)
    _wake: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _progress: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _pump: asyncio.Task[None] | None = field(init=False, default=None)
    _failures: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)

    @property
    def pending(self) -> int:
        """Settlements that Redis has not confirmed yet, in memory and on disk."""
        on_disk = self.journal.unconfirmed + sum(journal.unconfirmed for journal in self._adopted)
        return self._writing + self._undurable + on_disk

    async def record(self, settlement: Settlement) -> None:
        """Take the end of a hold (amount 0: a void) and return once it is durable.

        A caller that is cancelled loses nothing: the settlement goes its way all the same.

        Raises:
            OutboxUnavailable: the disk refused and Redis did not answer in time; it is still tried, from memory.
            ValueError: the settlement makes no sense (negative amount, too long).
        """
        if self._closed:
            raise OutboxUnavailable("This outbox was closed.")
        payload = _encode(settlement)
        item = _Item(settlement, self.journal)
        durable: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._writing += 1
        try:
            self.journal.append(payload, partial(self._written, item, durable))
        except JournalUnavailable as error:
            self._written(item, durable, 0, error)
        except ValueError:
            self._writing -= 1
            raise
        self.counts.recorded += 1
        if not await durable:
            await self._until_delivered(item)

    async def recover(self) -> int:
        """Deliver again what earlier runs of this slot left unconfirmed; call it once, at the start.

        Returns how many; they are delivered in the background (:meth:`drain` waits).
        """
        return self._take_over(self.journal)

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
            self._adopted.append(journal)
            found += self._take_over(journal)
        self._rouse()
        return found

    async def drain(self, deadline_s: float) -> int:
        """Wait until nothing is pending, at most ``deadline_s``. Returns what still is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while self.pending:
                    self._progress.clear()
                    await self._progress.wait()
        return self.pending

    async def close(self) -> None:
        """Stop delivering and let go of the journals. What is pending stays in them for the next start."""
        self._closed = True
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        for journal in (self.journal, *self._adopted):
            await journal.close()

    # Into the queue

    def _written(
        self, item: _Item, durable: asyncio.Future[bool], number: int, error: JournalUnavailable | None
    ) -> None:
        self._writing -= 1
        if error is None:
            item.number = number
        else:
            self.counts.undurable += 1
            self._undurable += 1
            self.last_error = str(error)
            item.delivered = durable.get_loop().create_future()
        if not durable.done():
            durable.set_result(error is None)
        self._enqueue(item)

    def _take_over(self, journal: Journal) -> int:
        found = 0
        for number, payload in journal.recovered().items():
            found += 1
            self._enqueue_payload(journal, number, payload)
        self.counts.recovered += found
        return found

    def _enqueue_payload(self, journal: Journal, number: int, payload: bytes) -> None:
        try:
            settlement = _decode(payload)
        except (ValueError, KeyError, TypeError) as error:
            _log.error("Record %d of the journal %s is not a settlement: %s.", number, journal.folder, error)
            self._unreadable.append((journal, number, payload))
            self._rouse()
            return
        self._enqueue(_Item(settlement, journal, number, recovered=True))

    def _enqueue(self, item: _Item) -> None:
        if item.number and self._in_memory >= self.max_pending:
            self.counts.spilled += 1
            self._spilled.add(item.journal)
            return
        self._in_memory += 1
        hold = item.settlement.hold_id
        line = self._lines.get(hold)
        if line is None:
            self._lines[hold] = deque((item,))
            self._turns.append(hold)
        else:
            line.append(item)
        self._rouse()

    def _rouse(self) -> None:
        self._wake.set()
        if self._pump is None and not self._closed:
            self._pump = asyncio.get_running_loop().create_task(self._run(), name="settlement-outbox")

    async def _until_delivered(self, item: _Item) -> None:
        assert item.delivered is not None
        try:
            async with asyncio.timeout(self.undurable_wait_s):
                await asyncio.shield(item.delivered)
        except TimeoutError:
            raise OutboxUnavailable(
                f"The settlement of {item.settlement.hold_id} is neither on disk nor in Redis yet. {self.last_error}"
            ) from None

    # Out of the queue

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._turns:
                await self._deliver()
            await self._refill()
            await self._set_unreadable_aside()
            await self._release_adopted()
            self._progress.set()

    async def _deliver(self) -> None:
        holds = [self._turns.popleft() for _ in range(min(len(self._turns), DELIVERED_AT_ONCE))]
        batch = [self._lines[hold][0] for hold in holds]
        closings: list[Closing] = []
        try:
            closings = await self.counter.close_holds([item.settlement for item in batch])
        except Exception as error:
            _log.exception("A batch of settlements could not be delivered; it is tried again.")
            closings = [CounterUnavailable("unreachable", str(error))] * len(batch)
        failed: list[str] = []
        for item, closing in zip(batch, closings, strict=True):
            if isinstance(closing, CounterUnavailable):
                self.last_error = str(closing)
                failed.append(item.settlement.hold_id)
            elif isinstance(closing, UnknownHold) and item.settlement.amount_nanos and not await self._set_aside(item):
                failed.append(item.settlement.hold_id)
            else:
                self._confirmed(item, closing)
        self._progress.set()
        if failed:
            self.counts.retried += len(failed)
            self._turns.extend(failed)
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

    def _confirmed(self, item: _Item, closing: Closing) -> None:
        hold = item.settlement.hold_id
        line = self._lines[hold]
        line.popleft()
        if line:
            self._turns.append(hold)
        else:
            del self._lines[hold]
        self._in_memory -= 1
        if item.number:
            item.journal.confirm(item.number)
        else:
            self._undurable -= 1
        if item.delivered is not None and not item.delivered.done():
            item.delivered.set_result(None)
        self.counts.delivered += 1
        if isinstance(closing, Settled) and not (item.recovered and closing.verdict == "repeated"):
            self.counts.charged_nanos += closing.charged_nanos
            self.counts.shortfall_nanos += closing.shortfall_nanos
            if self.on_settled is not None:
                try:
                    self.on_settled(closing.charged_nanos, closing.shortfall_nanos)
                except Exception:
                    _log.exception("The listener of settlements failed.")

    async def _set_aside(self, item: _Item) -> bool:
        """Keep a settlement whose hold Redis does not know. False if the disk does not take it."""
        settlement = item.settlement
        _log.error(
            "Redis does not know hold %s of %s: %d nano-USD are not charged; see %s.",
            settlement.hold_id,
            settlement.org_id,
            settlement.amount_nanos,
            item.journal.folder / UNKNOWN_FILE,
        )
        return await self._keep_aside(item.journal, _encode(settlement))

    async def _set_unreadable_aside(self) -> None:
        """Keep records that are no settlement (of another version, say), so that they are not read at every start."""
        records, self._unreadable = self._unreadable, []
        for journal, number, payload in records:
            if await self._keep_aside(journal, payload):
                journal.confirm(number)

    async def _keep_aside(self, journal: Journal, line: bytes) -> bool:
        try:
            await asyncio.to_thread(_append_line, journal.folder / UNKNOWN_FILE, line)
        except OSError as error:
            self.last_error = f"A settlement could not be set aside: {error.strerror}."
            return False
        self.counts.unknown += 1
        return True

    async def _refill(self) -> None:
        """Read back what did not fit into memory."""
        while self._spilled and not self._turns:
            journal = self._spilled.pop()
            here = {item.number for line in self._lines.values() for item in line if item.journal is journal}
            for number, payload in (await journal.reread()).items():
                if number not in here:
                    self._enqueue_payload(journal, number, payload)
            while self._turns:
                await self._deliver()

    async def _release_adopted(self) -> None:
        for journal in [journal for journal in self._adopted if journal.unconfirmed == 0]:
            self._adopted.remove(journal)
            await journal.close()


def _encode(settlement: Settlement) -> bytes:
    settle_words(settlement, "settle")  # what the counter would refuse must not get into the journal
    try:
        return orjson.dumps(
            {
                "hold": settlement.hold_id,
                "org": settlement.org_id,
                "amount": settlement.amount_nanos,
                "refunds": settlement.refunds,
                "opens": settlement.opens,
                "info": settlement.info.decode(),
                "claim": settlement.claim,
                "outcome": settlement.outcome,
            }
        )
    except TypeError as error:
        raise ValueError(f"A settlement that can't be written down: {error}.") from error


def _decode(payload: bytes) -> Settlement:
    row = orjson.loads(payload)
    settlement = Settlement(
        hold_id=row["hold"],
        org_id=row["org"],
        amount_nanos=row["amount"],
        refunds=tuple((name, units) for name, units in row["refunds"]),
        opens=tuple(row["opens"]),
        info=row["info"].encode(),
        # Records of a version without idempotency keys lack these.
        claim=row.get("claim"),
        outcome=row.get("outcome"),
    )
    settle_words(settlement, "settle")
    return settlement


def _append_line(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size + len(line) > MAX_UNKNOWN_BYTES:
            raise OSError(errno.EFBIG, f"more than {MAX_UNKNOWN_BYTES} bytes were set aside already")
        if os.write(descriptor, line + b"\n") != len(line) + 1:
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, "only a part was written")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
