"""The way of a settlement from a worker into the books: its journal, its delivery, and help when either fails."""

from ledger.outbox.delivery import SettlementOutbox
from ledger.outbox.values import Books, OutboxCounts, OutboxUnavailable, RecoveryOutcome

__all__ = ["Books", "OutboxCounts", "OutboxUnavailable", "RecoveryOutcome", "SettlementOutbox"]
