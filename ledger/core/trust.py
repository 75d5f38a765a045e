"""Whether a Redis may be trusted with the credit of a shard: the guardian's decision, as a pure function.

Floor: ``ledger.core`` (pure). What the books know is read first and Redis second; Redis only moves forward, so whatever
it lacks then it has really lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

FENCED_EPOCH = 0
"""What a guardian writes into Redis before it opens a new epoch: no caller works under it."""


class Verdict(StrEnum):
    """What is to be done with a shard."""

    TRUST = "trust"
    """It has everything: let callers in."""
    BEGIN = "begin"
    """Neither side was ever used: open the epoch of the books."""
    BEGIN_AGAIN = "begin_again"
    """The epoch of the books was opened and nothing of it ever reached Redis: wipe it and open that epoch."""
    RENEW = "renew"
    """It has lost something: freeze what it had, and open a new epoch."""
    BOOK_AND_RENEW = "book_and_renew"
    """The same, but what it still has and the books lack is to be booked before."""
    REFUSE = "refuse"
    """It does not belong to these books, or the books are older than it: a person has to decide."""


@dataclass(frozen=True, slots=True)
class Books:
    """What Postgres knows of a shard.

    Attributes:
        epoch: the shard's current one.
        seq: the last event of it that is booked; 0 if none is.
        last_event: what that event was (see ``ledger.books.booking``); empty if it is not known.
        witnessed_seq: the highest event of the epoch that any process reported to have seen.
        used: whether credit of this epoch was ever sent to Redis.
    """

    epoch: int
    seq: int
    last_event: str
    witnessed_seq: int
    used: bool


@dataclass(frozen=True, slots=True)
class Found:
    """What Redis says of the shard. ``epoch`` None: it has no counter. ``event``: the entry at the booked position."""

    epoch: int | None
    seq: int
    event: str


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict, and its reason as a sentence for the operator."""

    verdict: Verdict
    reason: str


def decide(books: Books, found: Found) -> Decision:
    """Compare the two."""
    if found.epoch is None:
        if books.used or books.seq:
            return Decision(Verdict.RENEW, "Redis has no counter any more: it was emptied or replaced.")
        return Decision(Verdict.BEGIN, "Neither Redis nor the ledger was used before.")
    if found.epoch > books.epoch:
        return Decision(
            Verdict.REFUSE,
            f"Redis is at epoch {found.epoch}, which this ledger (at epoch {books.epoch}) never opened: Redis belongs "
            "to another ledger, or Postgres was restored from an older state.",
        )
    if found.epoch < books.epoch:
        if books.used or books.seq:
            return Decision(
                Verdict.RENEW, f"Redis went back to epoch {found.epoch}; the ledger has used epoch {books.epoch}."
            )
        return Decision(Verdict.BEGIN_AGAIN, f"Epoch {books.epoch} was opened and has not reached Redis yet.")
    return _same_epoch(books, found)


def _same_epoch(books: Books, found: Found) -> Decision:
    if found.seq and not books.used and not books.seq:
        return Decision(
            Verdict.REFUSE,
            f"Redis has counted {found.seq} events, but this ledger has never sent it any credit: Redis belongs to "
            "another ledger, or Postgres was restored from an older state.",
        )
    if found.seq < books.seq:
        return Decision(Verdict.RENEW, f"Redis went back to event {found.seq}; {books.seq} is booked.")
    if books.seq and books.last_event and found.event != books.last_event:
        return Decision(Verdict.RENEW, f"Event {books.seq} in Redis is not the one that was booked: its past differs.")
    if found.seq < books.witnessed_seq:
        verdict = Verdict.BOOK_AND_RENEW if found.seq > books.seq else Verdict.RENEW
        return Decision(verdict, f"Redis went back to event {found.seq}; {books.witnessed_seq} had been seen.")
    return Decision(Verdict.TRUST, f"Redis has everything up to event {found.seq}.")
