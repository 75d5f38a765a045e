"""What a settlement costs that Postgres books without Redis: a pure decision.

Floor: ``ledger.core`` (pure). The hold is not in Redis (any more), so its credit lies in what was frozen when its epoch
was lost; what is missing there is taken from what is available. A charge never exceeds both together: what an
organization cannot pay is a shortfall, as in Redis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Ending = Literal["settle", "void", "reap"]


@dataclass(frozen=True, slots=True)
class Purse:
    """What an organization has in Postgres, in nano-USD."""

    available_nanos: int
    frozen_nanos: int


@dataclass(frozen=True, slots=True)
class BookedHold:
    """What the books have of a hold. ``corrected``: its revision 1 is there too, and both fields include it."""

    kind: str
    charged_nanos: int
    shortfall_nanos: int
    corrected: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """A new row for a hold, and the money that it moves.

    ``amount_nanos``: the charge, taken from frozen after ``cover_nanos`` were moved there from available; below 0 it is
    given back to available. ``hold``: the hold with this row.
    """

    revision: Literal[0, 1]
    amount_nanos: int
    cover_nanos: int
    hold: BookedHold
    purse: Purse


def recover(purse: Purse, booked: BookedHold | None, ending: Ending, price_nanos: int) -> Entry | None:
    """Decide what a settlement adds to the books; None if they have it already.

    Args:
        purse: of the hold's organization.
        booked: what the books have of the hold.
        ending: how it ended; ``reap`` is what is charged when nobody said anything for too long.
        price_nanos: what it costs; of a void nothing, whatever is said here.
    """
    wanted_nanos = 0 if ending == "void" else price_nanos
    if booked is None:
        return _entry(purse, BookedHold(ending, 0, 0), 0, wanted_nanos)
    if ending == "reap" or booked.kind != "reap" or booked.corrected:
        return None
    return _entry(purse, replace(booked, corrected=True), 1, wanted_nanos)


def _entry(purse: Purse, before: BookedHold, revision: Literal[0, 1], wanted_nanos: int) -> Entry:
    missing_nanos = wanted_nanos - before.charged_nanos
    amount_nanos = min(missing_nanos, purse.available_nanos + purse.frozen_nanos)
    hold = replace(
        before,
        charged_nanos=before.charged_nanos + amount_nanos,
        shortfall_nanos=missing_nanos - amount_nanos,
    )
    if amount_nanos <= 0:
        return Entry(
            revision, amount_nanos, 0, hold, replace(purse, available_nanos=purse.available_nanos - amount_nanos)
        )
    cover_nanos = max(0, amount_nanos - purse.frozen_nanos)
    after = Purse(purse.available_nanos - cover_nanos, purse.frozen_nanos + cover_nanos - amount_nanos)
    return Entry(revision, amount_nanos, cover_nanos, hold, after)
