"""Recovery: what the books do without Redis, as callers see it.

Floor: edge. The one door to settlements that Postgres books itself (``ledger.books.recovered``), holds that it keeps
(``ledger.books.carried``), credit that it freezes and releases (``ledger.books.freezing``), and what was seen of an
epoch (``ledger.books.epochs``). Everything here is idempotent, and safe to call from several processes at once.
"""

from __future__ import annotations

from ledger.books.carried import CarriedBeat, carry_holds, reap_carried
from ledger.books.epochs import record_guardian_event, witness, witnessed
from ledger.books.freezing import Released, open_epoch, release_due
from ledger.books.recovered import Recovered, RecoveredOutcome, book_recovered, booked_holds

__all__ = [
    "CarriedBeat",
    "Recovered",
    "RecoveredOutcome",
    "Released",
    "book_recovered",
    "booked_holds",
    "carry_holds",
    "open_epoch",
    "reap_carried",
    "record_guardian_event",
    "release_due",
    "witness",
    "witnessed",
]
