"""What goes into the credit counter and what comes out: values only.

Floor: ``ledger`` (no I/O here). Amounts are nano-USD; times end in ``_s`` or ``_ms``. Import these from
``ledger.counter``.

Four of them are made for every request and are not frozen, because to make a frozen one takes three times as long. They
are values all the same: nobody changes one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ledger.core.pricing import Quote

UnavailableReason = Literal["fenced", "unreachable", "timeout", "busy"]


class CounterUnavailable(Exception):
    """The counter could not say; nothing may be assumed about what it did. Answer 503, never 402.

    ``reason``: ``fenced`` (Redis is at another epoch, has lost events, or was restarted and not been checked yet;
    nothing was done), ``unreachable`` (no connection, or it was lost), ``timeout`` (no answer in time), ``busy`` (our
    queue is full, or Redis refuses writes just now).
    """

    def __init__(self, reason: UnavailableReason, detail: str) -> None:
        super().__init__(f"The credit counter is unavailable ({reason}): {detail}")
        self.reason: UnavailableReason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class RateLimit:
    """A token bucket: ``per_minute`` units of capacity, refilled continuously by Redis's clock.

    ``name`` is unique within an admission (``key:<id>:tokens``). ``cost`` units are taken, >= 0. More than
    ``MAX_PER_MINUTE`` counts as that many.
    """

    name: str
    per_minute: int
    cost: int


@dataclass(frozen=True, slots=True)
class OpenLimit:
    """At most so many holds open at once under ``name``; a hold that expires frees its place by itself."""

    name: str
    at_most: int


@dataclass(slots=True)
class Admission:
    """A request for a hold.

    Args:
        hold_id: the request id.
        fingerprint: of what is asked, so that a repeat is told from a conflict.
        tokens_wanted: completion tokens per answer; 0 for work without any (embeddings).
        expires_in_s: the hold is reaped unless a heartbeat or the end comes before.
        info: JSON kept with the hold; it comes back as ``info`` in the event of a reap or of an automatic void.
    """

    hold_id: str
    org_id: str
    fingerprint: str
    quote: Quote
    tokens_wanted: int
    expires_in_s: float
    rates: tuple[RateLimit, ...] = ()
    opens: tuple[OpenLimit, ...] = ()
    info: bytes = b"{}"
    claim: str | None = None
    """Name of the client's idempotency key, if it sent one: only one hold at a time may be taken under it."""
    clamp: bool = True
    """Whether fewer tokens than wanted will do, if the account does not cover all."""


@dataclass(frozen=True, slots=True)
class LimitState:
    """What is left of a limit after the answer. ``reset_s``: time until it is whole again (0 for open limits)."""

    name: str
    limit: int
    remaining: int
    reset_s: float


@dataclass(slots=True)
class Held:
    """The hold was taken (or had been, by the same request).

    ``tokens_granted``: the tokens wanted, clamped to what the account can pay; at least 1 (0 if 0 were wanted).
    ``limits``: rates, then opens, in the order of the admission. ``epoch``: the one that the hold lives in.
    """

    amount_nanos: int
    tokens_granted: int
    limits: tuple[LimitState, ...]
    epoch: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class OutOfCredit:
    """The account in Redis cannot pay all of it; with ``clamp``, not even the fixed part and one token.

    ``available_nanos``: what it has. ``held_nanos``: what the hold that was to be extended has already.
    ``returned_nanos``: what the account has given back to Postgres in this epoch, which may be on its way there.
    """

    limits: tuple[LimitState, ...] = ()
    available_nanos: int = 0
    returned_nanos: int = 0
    held_nanos: int = 0


@dataclass(frozen=True, slots=True)
class RateLimited:
    """A limit is used up: the one named, with the longest wait of all.

    ``too_large``: the cost is above the limit itself, so that waiting does not help.
    """

    name: str
    retry_after_s: float
    limits: tuple[LimitState, ...] = ()
    too_large: bool = False


@dataclass(frozen=True, slots=True)
class HoldConflict:
    """The id was used: for another fingerprint, or for a hold that is over (settled, voided, reaped)."""


ClaimState = Literal["done", "running", "mismatch"]
"""Of an idempotency key: its outcome is kept; its hold is open; it was used for another request."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """No hold was taken, because the idempotency key stands for another one."""

    state: ClaimState


@dataclass(frozen=True, slots=True)
class Recalled:
    """What an idempotency key stands for. ``outcome`` is what the settlement kept; empty if it was too large."""

    state: ClaimState
    outcome: str = ""


@dataclass(slots=True)
class Settlement:
    """The end of a hold.

    Args:
        amount_nanos: the charge; 0 with ``void``.
        refunds: units to give back to rate limits, ``(name, units)``, applied once.
        opens: names of its open limits; only needed when the counter does not know the hold (any more).
        info: JSON of the usage, handed on in the event.
        claim: the idempotency key to end together with the hold.
        outcome: what is kept under it; ``None`` gives the key back.
        clamp: whether less will do, if Redis has not enough of the organization's credit; what is missing is then the
            platform's loss.
        epoch: the one that its hold was taken in; 0 in records of a version that did not know it.
    """

    hold_id: str
    org_id: str
    amount_nanos: int
    refunds: tuple[tuple[str, int], ...] = ()
    opens: tuple[str, ...] = ()
    info: bytes = b"{}"
    claim: str | None = None
    outcome: str | None = None
    epoch: int = 0
    clamp: bool = True


SettleVerdict = Literal["fresh", "repeated", "late"]


@dataclass(slots=True, unsafe_hash=True)
class Settled:
    """The hold is over with this charge.

    ``repeated``: it was over before, and these are the recorded amounts. ``late``: it had been reaped, and was now
    corrected. ``shortfall_nanos``: what the account could not pay, the platform's loss.
    """

    charged_nanos: int
    shortfall_nanos: int
    verdict: SettleVerdict


@dataclass(frozen=True, slots=True)
class Voided:
    """The hold is over and nothing is charged. ``late``: it had been reaped, and the charge was given back."""

    verdict: SettleVerdict


@dataclass(frozen=True, slots=True)
class UnknownHold:
    """The counter has no such hold of this organization. A void has left a tombstone, so that it can't be taken."""


Closing = Settled | Voided | UnknownHold | OutOfCredit | CounterUnavailable
"""What became of one settlement among many."""


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life: delivered so far, worth ``accrued_nanos`` (charged if the worker dies now)."""

    hold_id: str
    org_id: str
    accrued_nanos: int
    usage_json: bytes
    expires_in_s: float


@dataclass(frozen=True, slots=True)
class Extended:
    """The hold now reserves ``held_nanos``."""

    held_nanos: int


@dataclass(frozen=True, slots=True)
class Level:
    """How much escrow an organization has in Redis now."""

    available_nanos: int
    held_nanos: int
    grant_seq: int


GrantVerdict = Literal["applied", "repeated", "gap", "stale"]
"""Nothing was done: ``gap``, an earlier grant is missing; ``stale``, it was made for another epoch."""


@dataclass(frozen=True, slots=True)
class AccountState:
    """An account in Redis; ``granted = available + held + spent + returned`` always."""

    available_nanos: int
    held_nanos: int
    spent_nanos: int
    returned_nanos: int
    granted_nanos: int
    grant_seq: int


@dataclass(frozen=True, slots=True)
class ShardMeta:
    """Where a shard stands: its epoch and the number of its last event (0: none)."""

    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class LedgerEvent:
    """One entry of a shard's event stream.

    Args:
        id: of the stream entry: ``<epoch>-<seq>``.
        kind: ``grant``, ``return``, ``settle``, ``void``, ``reap`` or ``late``.
        amount_nanos: charged; of ``late`` the signed difference to the reap's charge; of ``grant`` and ``return`` what
            came or went.
        held_nanos: what had been reserved.
        short_nanos: the hold's shortfall (of ``late``: the hold's total shortfall now, instead of the reap's).
        t_ms: Redis's clock.
        grant_seq: of grants, else None.
        info: JSON of the settlement; of a reap the admission's. Empty for grants.
        beat: of a reap: the usage JSON of the last heartbeat, if there was one.
    """

    id: str
    seq: int
    epoch: int
    kind: str
    hold: str
    org: str
    amount_nanos: int
    held_nanos: int
    short_nanos: int
    t_ms: int
    grant_seq: int | None
    info: bytes
    beat: bytes | None
