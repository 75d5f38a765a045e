"""What can go wrong in the ledger, in words a caller can act on.

Floor: ledger, below every edge. Drivers' exceptions are translated into these once (``ledger.books.database``).
A message is one sentence for an operator and names no host, user or password.
"""

from __future__ import annotations


class LedgerError(Exception):
    """Any failure of the ledger. ``retry_is_safe`` says whether the same call may simply be made again."""

    retry_is_safe = False


class LedgerUnavailable(LedgerError):
    """Postgres could not be asked or did not answer in time.

    A write that ends like this may have happened: every write of the ledger is idempotent, so repeat it.
    """

    retry_is_safe = True


class LedgerNotMigrated(LedgerUnavailable):
    """The database answers but has no (or too old a) ledger schema."""


class LedgerConflict(LedgerError):
    """The request contradicts what is already recorded (another amount, an overlapping price)."""


class LedgerRefused(LedgerError):
    """The request is wrong in itself: an amount out of bounds, a rate below zero."""


class UnknownAccount(LedgerRefused):
    """The organization has no accounts in the ledger."""


class Fenced(LedgerError):
    """Another reconciler has taken over this shard; whoever gets this must stop writing."""


class MigrationError(LedgerError):
    """The schema in the database and the migrations in this release don't fit together."""
