"""What the parts of the outbox share: the items on their way, what is known of each journal, the books, the counts.

Floor: ``ledger`` (no I/O of its own).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ledger.core.number_set import NumberSet
from ledger.counter.values import Settlement
from ledger.outbox.journal import Journal


class OutboxUnavailable(Exception):
    """The settlement is neither durable here nor confirmed by Redis; it is still being delivered from memory."""


class RecoveryOutcome(Protocol):
    """What the books made of a settlement whose hold Redis does not know.

    ``repeated``: they had it before. ``refused``: they cannot hold it, and keep it as an anomaly.
    """

    @property
    def verdict(self) -> Literal["booked", "repeated", "refused"]:
        """What became of it."""
        ...

    @property
    def charged_nanos(self) -> int:
        """Of the hold, in sum."""
        ...

    @property
    def shortfall_nanos(self) -> int:
        """What the account could not pay."""
        ...


class Books(Protocol):
    """Postgres, as the outbox sees it. Both may be asked again and again with the same holds.

    Whatever they raise means that nothing is known, and they are asked again later; a ``LedgerError`` whose
    ``retry_is_safe`` is False means that this very settlement can't be taken, ever.
    """

    async def booked(self, hold_ids: Sequence[str]) -> set[str]:
        """Which of these holds have their settlement in the books (a reap alone does not count)."""
        ...

    async def recover(self, settlements: Sequence[Settlement]) -> Sequence[RecoveryOutcome]:
        """Book these without Redis, each hold once; one outcome for each, in their order."""
        ...


@dataclass(slots=True, eq=False)
class Shelf:
    """What is known of the records of one journal; each number costs bits.

    An unconfirmed record is waiting (to be delivered) or delivered (but not booked); of either kind some are in memory,
    and the others only on the disk.
    """

    journal: Journal
    delivered: NumberSet = field(default_factory=NumberSet)
    queued: NumberSet = field(default_factory=NumberSet)
    """Waiting, and in memory."""
    watched: NumberSet = field(default_factory=NumberSet)
    """Delivered, and in memory."""
    cursor: int = 0
    """Where reading back goes on."""

    @property
    def waiting(self) -> int:
        """Records that were not delivered yet."""
        return self.journal.unconfirmed - len(self.delivered)

    @property
    def waiting_on_disk(self) -> int:
        """Those of them that are not in memory."""
        return self.waiting - len(self.queued)

    @property
    def delivered_on_disk(self) -> int:
        """Records that were delivered, are not booked, and are not in memory."""
        return len(self.delivered) - len(self.watched)

    def has_delivered(self, first: int, last: int, *, watched: bool) -> None:
        """Redis has the records from ``first`` to ``last``. ``watched``: they stay in memory until they are booked."""
        self.queued.discard_run(first, last)
        self.delivered.add_run(first, last)
        if watched:
            self.watched.add_run(first, last)
        else:
            self.watched.discard_run(first, last)

    def end(self, first: int, last: int | None = None) -> None:
        """The records from ``first`` to ``last`` are not needed any more."""
        last = first if last is None else last
        for numbers in (self.queued, self.delivered, self.watched):
            numbers.discard_run(first, last)
        self.journal.confirm(first, last)


@dataclass(slots=True, eq=False)
class Item:
    """A settlement in memory, on its way to Redis, or to Postgres if Redis does not know its hold.

    ``number``: in the journal of its shelf; 0 if the disk refused it. ``earlier_run``: an earlier process recorded it,
    and may have delivered it. ``times_delivered``: by this process. ``durable``: what its caller waits for, until
    it is on the disk; if the disk refuses, until Redis has taken it.
    """

    settlement: Settlement
    shelf: Shelf
    number: int = 0
    earlier_run: bool = False
    times_delivered: int = 0
    durable: asyncio.Future[None] | None = None
    clamp: bool = False
    """Nobody can bring more credit to Redis than it has, so less will do."""


def runs_of(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers, mostly ascending without a hole, as runs: first and last of each, in the order met."""
    runs: list[tuple[int, int]] = []
    first = last = numbers[0]
    for number in numbers[1:]:
        if number != last + 1:
            runs.append((first, last))
            first = number
        last = number
    runs.append((first, last))
    return runs


@dataclass(slots=True)
class OutboxCounts:
    """Counters since the start, for metrics.

    recorded: taken from the worker. delivered: answered by Redis, first time. retried: sent again because Redis did not
    answer. recovered: found in journals at the start. booked: found in the books. redelivered: sent again because they
    were not. resettled: those of them that Redis had lost. recovered_charges: booked by Postgres without Redis;
    recovered_repeats: it had them; refused: it cannot hold them. unreadable: set aside in a file. undurable: refused by
    the disk. spilled: left on the disk because too many waited. vanished: gone from the disk before they were booked.
    charged_nanos, shortfall_nanos: of all that was settled here.
    """

    recorded: int = 0
    delivered: int = 0
    retried: int = 0
    recovered: int = 0
    booked: int = 0
    redelivered: int = 0
    resettled: int = 0
    recovered_charges: int = 0
    recovered_repeats: int = 0
    refused: int = 0
    unreadable: int = 0
    undurable: int = 0
    spilled: int = 0
    vanished: int = 0
    charged_nanos: int = 0
    shortfall_nanos: int = 0
