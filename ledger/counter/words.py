"""Between values and the words that the script reads and answers.

Floor: ``ledger`` (no I/O). Here every number is brought below 2^53, exactly: what is above can't be paid from an
account that holds at most 2^52, so lowering it to just above 2^52 changes no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledger.core.pricing import UNITS_PER_RATE, Quote, hold_nanos
from ledger.counter.values import (
    Admission,
    Beat,
    Claimed,
    ClaimState,
    Held,
    HoldConflict,
    LedgerEvent,
    LimitState,
    OutOfCredit,
    RateLimited,
    Recalled,
    Settled,
    Settlement,
    SettleVerdict,
    UnknownHold,
    Voided,
)

MOST_NANOS = 2**52
"""More than this is never held by one account; amounts above it are lowered to it."""

MAX_PER_MINUTE = 2**37
"""A rate limit above this (137 billion a minute) counts as this; the script multiplies it by 60,000."""

MAX_TOKENS = 2**31
MAX_INFO_BYTES = 16 * 1024
MAX_NAME_LETTERS = 200
MAX_LIMITS = 16
MAX_OUTCOME_LETTERS = 128 * 1024
_LONG_INFO = f"The info of a hold has at most {MAX_INFO_BYTES} bytes."

_CLAIM_STATES: tuple[ClaimState, ...] = ("done", "running", "mismatch")
_VERDICTS: tuple[SettleVerdict, ...] = ("fresh", "repeated", "late")


def hold_words(a: Admission) -> tuple[Any, ...]:
    """The words of an admission.

    Raises:
        ValueError: a number is negative or something is too long.
    """
    quote, wanted = a.quote, a.tokens_wanted
    fixed, rate = quote.fixed_nanos, quote.completion_rate_per_million_nanos
    if fixed < 0 or rate < 0 or wanted < 0 or a.expires_in_s <= 0 or not a.hold_id or not a.org_id:
        raise ValueError("A hold needs ids, an expiry above zero, and amounts that are not negative.")
    if len(a.rates) + len(a.opens) > MAX_LIMITS:
        raise ValueError(f"At most {MAX_LIMITS} limits apply to one hold.")
    if fixed > MOST_NANOS or wanted > MAX_TOKENS or wanted * rate > MOST_NANOS:
        fixed, rate, wanted = _bounded(quote, wanted)
    whole, rest = divmod(rate, UNITS_PER_RATE)
    return (
        "hold",
        a.hold_id,
        a.org_id,
        a.fingerprint,
        fixed,
        whole,
        rest,
        wanted,
        int(a.expires_in_s * 1000) or 1,
        [_rate_words(r.name, r.per_minute, r.cost) for r in a.rates] if a.rates else (),
        [(_name(o.name), o.at_most) for o in a.opens] if a.opens else (),
        _info(a.info),
        (_name(a.claim),) if a.claim else (),
        1 if a.clamp else 0,
    )


def undo_words(a: Admission) -> tuple[Any, ...]:
    """The void that releases an admission nobody owns, with all that its rate limits took."""
    refunds = [(r.name, min(r.cost, MAX_PER_MINUTE)) for r in a.rates]
    claim = (a.claim,) if a.claim else ()
    return ("void", a.hold_id, a.org_id, 0, refunds, [o.name for o in a.opens], _info(a.info), claim)


def settle_words(s: Settlement, name: str, *, clamp: bool | None = None) -> tuple[Any, ...]:
    """The words of a settlement.

    Args:
        name: ``settle`` or ``void``.
        clamp: whether less will do; None is what the settlement says.

    Raises:
        ValueError: a number is negative or something is too long.
    """
    check_settlement(s)
    amount = s.amount_nanos
    if amount > MOST_NANOS:
        amount = MOST_NANOS
    refunds = [(rate, min(max(units, 0), MAX_PER_MINUTE)) for rate, units in s.refunds] if s.refunds else ()
    claim: tuple[str, ...] = ()
    if s.claim:
        claim = (s.claim,) if s.outcome is None else (s.claim, s.outcome)
    less_will_do = s.clamp if clamp is None else clamp
    return (name, s.hold_id, s.org_id, amount, refunds, s.opens, s.info.decode(), claim, 1 if less_will_do else 0)


def check_settlement(s: Settlement) -> None:
    """Make sure that the counter will take it.

    Raises:
        ValueError: a number is negative or something is too long.
    """
    if s.amount_nanos < 0 or not s.hold_id or not s.org_id:
        raise ValueError("A settlement needs ids and an amount that is not negative.")
    if len(s.info) > MAX_INFO_BYTES:
        raise ValueError(_LONG_INFO)
    if s.outcome is not None and len(s.outcome) > MAX_OUTCOME_LETTERS:
        raise ValueError(f"An outcome that is kept has at most {MAX_OUTCOME_LETTERS} letters.")
    if s.claim:
        _name(s.claim)
    for rate, _ in s.refunds:
        _name(rate)


def beat_words(beats: Sequence[Beat]) -> tuple[Any, ...]:
    """The words of many heartbeats of one shard."""
    return (
        "beats",
        [
            (b.hold_id, min(max(b.accrued_nanos, 0), MOST_NANOS), _info(b.usage_json), int(b.expires_in_s * 1000) or 1)
            for b in beats
        ],
    )


def read_hold(answer: list[Any], a: Admission, epoch: int) -> Held | OutOfCredit | RateLimited | HoldConflict | Claimed:
    """The script's answer to an admission."""
    code = answer[0]
    if code == 0:
        return Held(answer[1], answer[2], _limits(answer, 3, a), epoch)
    if code == 1:
        return OutOfCredit(_limits(answer, 3, a), answer[1], answer[2])
    if code == 2:
        names = [r.name for r in a.rates] + [o.name for o in a.opens]
        return RateLimited(names[answer[1]], answer[2] / 1000, _limits(answer, 4, a), bool(answer[3]))
    if code == 4:
        return Claimed(_CLAIM_STATES[answer[1]])
    return HoldConflict()


def read_recall(answer: list[Any]) -> Recalled | None:
    """The script's answer to a recall; ``None`` if the key is free."""
    if answer[0] == 3:
        return None
    return Recalled(_CLAIM_STATES[answer[0]], answer[1] if answer[0] == 0 else "")


def read_settle(answer: list[Any]) -> Settled | UnknownHold | OutOfCredit:
    """The script's answer to a settlement. ``OutOfCredit.available_nanos`` is then what could be charged."""
    if answer[0] == 3:
        return UnknownHold()
    if answer[0] == 4:
        return OutOfCredit(available_nanos=answer[1], returned_nanos=answer[2])
    return Settled(answer[1], answer[2], _VERDICTS[answer[0]])


def read_void(answer: list[Any]) -> Voided | Settled | UnknownHold:
    """The script's answer to a void; ``Settled`` if the hold had been charged before and stays so."""
    if answer[0] == 3:
        return UnknownHold()
    if answer[1]:
        return Settled(answer[1], answer[2], _VERDICTS[answer[0]])
    return Voided(_VERDICTS[answer[0]])


def read_event(entry_id: bytes, flat: Sequence[bytes]) -> LedgerEvent:
    """One entry of the event stream.

    Raises:
        KeyError, ValueError: it is not an event of this counter.
    """
    f: Mapping[bytes, bytes] = dict(zip(flat[::2], flat[1::2], strict=True))
    return LedgerEvent(
        id=entry_id.decode(),
        seq=int(f[b"seq"]),
        epoch=int(f[b"epoch"]),
        kind=f[b"kind"].decode(),
        hold=f[b"hold"].decode(),
        org=f[b"org"].decode(),
        amount_nanos=int(f[b"amount"]),
        held_nanos=int(f[b"held"]),
        short_nanos=int(f[b"short"]),
        t_ms=int(f[b"t_ms"]),
        grant_seq=int(f[b"grant_seq"]) if b"grant_seq" in f else None,
        info=f[b"info"],
        beat=f.get(b"beat"),
    )


def _limits(answer: list[Any], at: int, a: Admission) -> tuple[LimitState, ...]:
    if len(answer) == at:
        return ()
    limits = []
    for r in a.rates:
        limits.append(LimitState(r.name, r.per_minute, answer[at], answer[at + 1] / 1000))
        at += 2
    for o in a.opens:
        limits.append(LimitState(o.name, o.at_most, answer[at], 0.0))
        at += 2
    return tuple(limits)


def _rate_words(name: str, per_minute: int, cost: int) -> tuple[str, int, int]:
    if per_minute < 1 or cost < 0:
        raise ValueError("A rate limit is at least 1 a minute, and its cost is not negative.")
    # One above the cap stays "too large" for a limit that is at the cap.
    return _name(name), min(per_minute, MAX_PER_MINUTE), min(cost, MAX_PER_MINUTE + 1)


def _name(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_LETTERS:
        raise ValueError(f"A limit's name has 1 to {MAX_NAME_LETTERS} letters.")
    return name


def _info(info: bytes) -> str:
    if len(info) > MAX_INFO_BYTES:
        raise ValueError(_LONG_INFO)
    return info.decode()


def _bounded(quote: Quote, wanted: int) -> tuple[int, int, int]:
    """Lower what no account can pay, so that every product in the script is exact and no verdict changes."""
    fixed = min(quote.fixed_nanos, MOST_NANOS + 1)
    rate = min(quote.completion_rate_per_million_nanos, (MOST_NANOS + 1) * UNITS_PER_RATE)
    wanted = min(wanted, MAX_TOKENS)
    if wanted > 1 and hold_nanos(Quote(0, rate), wanted) > MOST_NANOS:
        wanted = max(1, MOST_NANOS * UNITS_PER_RATE // rate)
    return fixed, rate, wanted
