"""The life of a hold, as a table and a few pure functions: the model of what ``ledger/lua/ledger.lua`` does.

Floor: ``ledger.core`` (pure). It knows credit, not limits and not clocks: whoever calls says that a hold has expired.
A property test drives this model and a real Redis side by side and demands the same verdicts, amounts and events.

::

    (none) ──take──> HELD ──settle──> SETTLED
      │               │ └──void────> VOID
      │               └────reap────> REAPED ──settle, late──> SETTLED
      └──void──> VOID (tombstone)        └───void, late────> VOID
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from ledger.core.pricing import UNITS_PER_RATE, Quote, hold_nanos


class State(StrEnum):
    """Where a hold stands."""

    HELD = "held"
    SETTLED = "settled"
    VOID = "void"
    REAPED = "reaped"


class Ending(StrEnum):
    """What may end a hold."""

    SETTLE = "settle"
    VOID = "void"
    REAP = "reap"


class Step(StrEnum):
    """What an ending does, given the state it meets."""

    CLOSE = "close"
    """Charge, give back the rest, one event."""
    CORRECT = "correct"
    """Charge the difference to what was reaped, one late event."""
    REPEAT = "repeat"
    """Answer what was recorded."""
    UNKNOWN = "unknown"
    """There is no such hold."""
    TOMBSTONE = "tombstone"
    """There is no such hold, and it can't be taken any more."""
    NOTHING = "nothing"


STEPS: Mapping[tuple[State | None, Ending], Step] = {
    (State.HELD, Ending.SETTLE): Step.CLOSE,
    (State.HELD, Ending.VOID): Step.CLOSE,
    (State.HELD, Ending.REAP): Step.CLOSE,
    (State.REAPED, Ending.SETTLE): Step.CORRECT,
    (State.REAPED, Ending.VOID): Step.CORRECT,
    (State.REAPED, Ending.REAP): Step.NOTHING,
    (State.SETTLED, Ending.SETTLE): Step.REPEAT,
    (State.SETTLED, Ending.VOID): Step.REPEAT,
    (State.SETTLED, Ending.REAP): Step.NOTHING,
    (State.VOID, Ending.SETTLE): Step.REPEAT,
    (State.VOID, Ending.VOID): Step.REPEAT,
    (State.VOID, Ending.REAP): Step.NOTHING,
    (None, Ending.SETTLE): Step.UNKNOWN,
    (None, Ending.VOID): Step.TOMBSTONE,
    (None, Ending.REAP): Step.NOTHING,
}

_CLOSED = {Ending.SETTLE: State.SETTLED, Ending.VOID: State.VOID, Ending.REAP: State.REAPED}


@dataclass(frozen=True, slots=True)
class Account:
    """Escrow of one organization; ``granted = available + held + spent + returned``, all >= 0, nano-USD."""

    available: int = 0
    held: int = 0
    spent: int = 0
    returned: int = 0
    granted: int = 0
    grant_seq: int = 0

    def __post_init__(self) -> None:
        assert min(self.available, self.held, self.spent, self.returned) >= 0
        assert self.granted == self.available + self.held + self.spent + self.returned


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold; amounts in nano-USD. ``accrued``: what the last heartbeat said was delivered."""

    state: State
    org: str
    fingerprint: str
    held: int = 0
    tokens: int = 0
    accrued: int = 0
    charged: int = 0
    short: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """What the ledger is told; ``amount`` of ``late`` is the signed difference."""

    kind: str
    amount: int
    held: int
    short: int


@dataclass(frozen=True, slots=True)
class Taken:
    """After an attempt to take a hold. ``verdict``: ``held``, ``conflict`` or ``out_of_credit``."""

    verdict: str
    account: Account
    hold: Hold | None


@dataclass(frozen=True, slots=True)
class Ended:
    """After an attempt to end a hold.

    ``verdict``: ``fresh``, ``repeated``, ``late``, ``unknown``, ``short`` or ``nothing``.
    """

    verdict: str
    account: Account
    hold: Hold | None
    event: Event | None = None


def affordable_tokens(quote: Quote, available: int, wanted: int) -> int | None:
    """The most of ``wanted`` tokens that ``available`` covers; None if it does not cover one (of those wanted)."""
    room = available - quote.fixed_nanos
    if room < 0:
        return None
    rate = quote.completion_rate_per_million_nanos
    tokens = wanted if rate == 0 else min(wanted, room * UNITS_PER_RATE // rate)
    return None if tokens == 0 and wanted > 0 else tokens


def take(
    account: Account, old: Hold | None, *, org: str, fingerprint: str, quote: Quote, wanted: int, clamp: bool = True
) -> Taken:
    """Reserve credit, with ``clamp`` also for fewer tokens. Precedence: the same hold again, conflict, credit."""
    if old is not None:
        same = old.state is State.HELD and (old.org, old.fingerprint) == (org, fingerprint)
        return Taken("held" if same else "conflict", account, old)
    tokens = affordable_tokens(quote, account.available, wanted)
    if tokens is None or (tokens < wanted and not clamp):
        return Taken("out_of_credit", account, None)
    amount = hold_nanos(quote, tokens)
    moved = replace(account, available=account.available - amount, held=account.held + amount)
    return Taken("held", moved, Hold(State.HELD, org, fingerprint, amount, tokens))


def beat(hold: Hold | None, accrued: int) -> Hold | None:
    """Record what was delivered so far; None if there is no such HELD hold."""
    if hold is None or hold.state is not State.HELD:
        return None
    return replace(hold, accrued=max(hold.accrued, accrued))


def extend(account: Account, hold: Hold | None, *, org: str, total: int) -> Taken:
    """Raise what a hold reserves. ``verdict`` ``conflict``: it is not HELD by this organization."""
    if hold is None or hold.state is not State.HELD or hold.org != org:
        return Taken("conflict", account, hold)
    more = total - hold.held
    if more <= 0:
        return Taken("held", account, hold)
    if more > account.available:
        return Taken("out_of_credit", account, hold)
    moved = replace(account, available=account.available - more, held=account.held + more)
    return Taken("held", moved, replace(hold, held=total))


def end(account: Account, hold: Hold | None, ending: Ending, *, org: str, amount: int, clamp: bool = True) -> Ended:
    """End a hold at ``amount`` (0 for a void, the accrued amount for a reap); without ``clamp`` at all of it or not."""
    step = STEPS[hold.state if hold is not None else None, ending]
    if hold is not None and hold.org != org:
        return Ended("unknown", account, hold)
    if step is Step.TOMBSTONE:
        return Ended("unknown", account, Hold(State.VOID, org, ""))
    if step is Step.UNKNOWN:
        return Ended("unknown", account, None)
    if step is Step.NOTHING or hold is None:
        return Ended("nothing", account, hold)
    if step is Step.REPEAT:
        return Ended("repeated", account, hold)
    covered = account.available + (hold.held if step is Step.CLOSE else hold.charged)
    if amount > covered and not clamp:
        return Ended("short", account, hold)
    if step is Step.CORRECT:
        return _correct(account, hold, amount)
    return _close(account, hold, ending, amount)


def grant(account: Account, grant_seq: int, amount: int) -> tuple[str, Account]:
    """Apply a grant: ``applied``, ``repeated`` or ``gap``."""
    if grant_seq != account.grant_seq + 1:
        return "repeated" if grant_seq <= account.grant_seq else "gap", account
    more = replace(account, available=account.available + amount, granted=account.granted + amount, grant_seq=grant_seq)
    return "applied", more


def give_back(account: Account, grant_seq: int, *, keep: int) -> tuple[int, Account]:
    """Return what is available beyond ``keep``, unless another grant than the last one known has come."""
    amount = account.available - keep
    if amount <= 0 or grant_seq != account.grant_seq:
        return 0, account
    return amount, replace(account, available=keep, returned=account.returned + amount)


def _close(account: Account, hold: Hold, ending: Ending, amount: int) -> Ended:
    charge = min(amount, hold.held + account.available)
    short = amount - charge
    moved = replace(
        account,
        available=account.available + hold.held - charge,
        held=account.held - hold.held,
        spent=account.spent + charge,
    )
    closed = replace(hold, state=_CLOSED[ending], charged=charge, short=short)
    return Ended("fresh", moved, closed, Event(ending.value, charge, hold.held, short))


def _correct(account: Account, hold: Hold, amount: int) -> Ended:
    difference = min(amount - hold.charged, account.available)
    total = hold.charged + difference
    moved = replace(account, available=account.available - difference, spent=account.spent + difference)
    state = State.SETTLED if amount > 0 else State.VOID
    closed = replace(hold, state=state, charged=total, short=amount - total)
    return Ended("late", moved, closed, Event("late", difference, hold.held, amount - total))
