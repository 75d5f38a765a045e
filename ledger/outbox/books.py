"""The books as the outbox asks them: Postgres, through ``ledger.books.recovery``.

Floor: ``ledger`` edge. Only words are changed here.
"""

from __future__ import annotations

from collections.abc import Sequence

from ledger.books.database import Pool
from ledger.books.partitions import MonthKeeper
from ledger.books.recovery import Recovered, RecoveredOutcome, book_recovered, booked_holds
from ledger.counter import CreditCounter
from ledger.counter.values import Settlement


class LedgerBooks:
    """``ledger.outbox.values.Books`` over Postgres. ``counter`` only says in which shard an organization is."""

    def __init__(self, pool: Pool, months: MonthKeeper, counter: CreditCounter) -> None:
        self._pool = pool
        self._months = months
        self._counter = counter

    async def booked(self, hold_ids: Sequence[str]) -> set[str]:
        """Which of these holds have their settlement in the books.

        Raises:
            LedgerUnavailable.
        """
        return await booked_holds(self._pool, hold_ids)

    async def recover(self, settlements: Sequence[Settlement]) -> list[RecoveredOutcome]:
        """Book these without Redis; one outcome for each.

        Raises:
            LedgerUnavailable: repeat all of them.
        """
        items = [
            Recovered(
                hold_id=settlement.hold_id,
                org_id=settlement.org_id,
                shard=self._counter.shard_of(settlement.org_id),
                epoch=settlement.epoch,
                amount_nanos=settlement.amount_nanos,
                info=settlement.info,
                kind="settle" if settlement.amount_nanos else "void",
            )
            for settlement in settlements
        ]
        return await book_recovered(self._pool, self._months, items)
