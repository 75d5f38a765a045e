"""A double of the books, for what the outbox does by itself; money is tested with the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ledger.books.recovery import RecoveredOutcome
from ledger.counter import Settlement
from ledger.errors import LedgerRefused, LedgerUnavailable


@dataclass
class PaperBooks:
    """Books what the test says. ``prompt``: whatever is asked for was booked a moment ago."""

    prompt: bool = True
    away: bool = False
    in_books: set[str] = field(default_factory=set)
    poison: str = ""
    recovered: list[Settlement] = field(default_factory=list)
    questions: list[int] = field(default_factory=list)
    tries: int = 0

    async def booked(self, hold_ids: Sequence[str]) -> set[str]:
        self.tries += 1
        if self.away:
            raise LedgerUnavailable("The ledger could not look: Postgres cannot be reached.")
        self.questions.append(len(hold_ids))
        if self.prompt:
            self.in_books.update(hold_ids)
        return self.in_books & set(hold_ids)

    async def recover(self, settlements: Sequence[Settlement]) -> list[RecoveredOutcome]:
        self.tries += 1
        if self.away:
            raise LedgerUnavailable("The ledger could not book: Postgres cannot be reached.")
        if any(settlement.hold_id == self.poison for settlement in settlements):
            raise LedgerRefused("The ledger could not book: a value is out of bounds.")
        outcomes = []
        for settlement in settlements:
            if settlement.hold_id in self.in_books:
                outcomes.append(RecoveredOutcome("repeated", settlement.amount_nanos))
            else:
                self.in_books.add(settlement.hold_id)
                self.recovered.append(settlement)
                outcomes.append(RecoveredOutcome("booked", settlement.amount_nanos))
        return outcomes
