"""Admit: limits and the hold, decided by Redis in one call.

Floor: dataplane. Translates a plan into an `Admission` and the counter's verdict into a refusal or a `Held`. A hold
is never skipped: when the counter can't say, the answer is 503. Where Redis has too little of the organization's
credit, Postgres is asked for more; only when that has none is the request cut to what is left, or refused with 402.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson

from backends.wire.request import Kind
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.estimate import Plan
from gateway.core.exchange import Exchange
from gateway.core.idempotency import fingerprint
from gateway.core.state import Key, Limits
from ledger.core.pricing import hold_nanos
from ledger.counter import (
    Admission,
    Claimed,
    CounterUnavailable,
    CreditCounter,
    Held,
    HoldConflict,
    LimitState,
    OpenLimit,
    OutOfCredit,
    RateLimit,
    RateLimited,
)
from ledger.counter.values import ClaimState
from ledger.cover import Answer, Cover

COVER_ATTEMPTS = 3
"""How often Postgres is asked for one request: what it granted may have been taken by others meanwhile."""

_Owners = tuple[tuple[str, Limits], ...]
_ROUTES = {kind: kind.value for kind in Kind}
_WHAT = {"rpm": "requests per minute", "tpm": "tokens per minute", "open": "concurrent requests"}


async def admit(
    counter: CreditCounter,
    cover: Cover,
    exchange: Exchange,
    plan: Plan,
    body: bytes,
    *,
    defaults: Limits,
    expires_in_s: float,
) -> Held:
    """Take the hold.

    Args:
        cover: brings more credit to Redis.
        exchange: has its key, endpoint and card by now.
        plan: the bound of the work.
        body: the raw request, for the fingerprint.
        defaults: limits of a key that has none of its own.
        expires_in_s: how long the hold lives without a heartbeat.

    Raises:
        Refused: 429, 402 or 503, with the state of the limits attached as ``limits``.
    """
    admission = build_admission(exchange, plan, body, defaults=defaults, expires_in_s=expires_in_s)
    if admission.rates:
        exchange.token_buckets = tuple((rate.name, rate.cost) for rate in admission.rates if rate.name.endswith(":tpm"))
    if admission.opens:
        exchange.open_places = tuple(place.name for place in admission.opens)
    try:
        verdict = await counter.admit(admission)
        if type(verdict) is OutOfCredit:
            verdict = await _admit_short(counter, cover, admission, verdict)
    except CounterUnavailable:
        raise Refused(errors.ledger_unavailable()) from None
    if isinstance(verdict, Held):
        return verdict
    if isinstance(verdict, RateLimited):
        what = _WHAT.get(verdict.name.rpartition(":")[2], "requests")
        raise RefusedWithLimits(errors.rate_limited(what, verdict.retry_after_s), verdict.limits)
    if isinstance(verdict, OutOfCredit):
        raise RefusedWithLimits(errors.insufficient_credits(), verdict.limits)
    if isinstance(verdict, Claimed):
        raise Refused(claim_error(verdict.state))
    assert isinstance(verdict, HoldConflict)
    # We mint every id ourselves, so a used one is a bug of ours and not of the client.
    raise Refused(errors.internal())


async def _admit_short(
    counter: CreditCounter, cover: Cover, admission: Admission, verdict: OutOfCredit
) -> Held | OutOfCredit | RateLimited | HoldConflict | Claimed:
    """Ask Postgres for more, and try again; with as much as there is once Postgres says that this is all.

    Raises:
        Refused: 503, nobody can say at the moment whether there is credit.
    """
    wanted_nanos = hold_nanos(admission.quote, admission.tokens_wanted)
    for _ in range(COVER_ATTEMPTS):
        covered = await cover.cover(admission.org_id, wanted_nanos - verdict.available_nanos, verdict)
        if covered.answer is Answer.EXHAUSTED:
            return await counter.admit(replace(admission, clamp=True))
        if covered.answer is not Answer.GRANTED:
            raise Refused(errors.ledger_unavailable(covered.retry_after_s))
        again = await counter.admit(admission)
        if not isinstance(again, OutOfCredit):
            return again
        verdict = again
    raise Refused(errors.ledger_unavailable(1))


def claim_error(state: ClaimState) -> errors.ApiError:
    """Why a used idempotency key gets no hold. One that is done by now is answered when the request comes again."""
    return errors.idempotency_mismatch() if state == "mismatch" else errors.idempotency_busy()


class RefusedWithLimits(Refused):
    """A refusal that can say how much of the limits is left."""

    def __init__(self, error: errors.ApiError, limits: tuple[LimitState, ...]) -> None:
        super().__init__(error)
        self.limits = limits


def build_admission(exchange: Exchange, plan: Plan, body: bytes, *, defaults: Limits, expires_in_s: float) -> Admission:
    """What Redis is asked; pure."""
    key, endpoint, card = exchange.key, exchange.endpoint, exchange.card
    assert key is not None
    assert endpoint is not None
    assert card is not None
    assert exchange.kind is not None
    limits = _owners(key, defaults)
    return Admission(
        exchange.request_id,
        key.org_id,
        fingerprint(body),
        plan.quote,
        plan.tokens_wanted,
        expires_in_s,
        _rate_limits(limits, plan.tokens_estimated) if limits else (),
        _open_limits(limits) if limits else (),
        orjson.dumps(admission_info(exchange)),
        exchange.claim,
        False,
    )


def admission_info(exchange: Exchange) -> dict[str, Any]:
    """What is known of a hold before its work is done, for the books, should nobody be left to settle it."""
    key, endpoint, card = exchange.key, exchange.endpoint, exchange.card
    assert key is not None
    assert endpoint is not None
    assert card is not None
    assert exchange.kind is not None
    info: dict[str, Any] = {
        "key": key.id,
        "endpoint": endpoint.id,
        "card": card.id,
        "route": _ROUTES[exchange.kind],
        "started_ms": exchange.started_ms,
        "outcome": "reaped",
    }
    if exchange.discount is not None:
        info.update(exchange.discount_info())
    return info


def _rate_limits(owners: _Owners, tokens: int) -> tuple[RateLimit, ...]:
    """The per-minute limits of the key and its organization. A request dearer than a whole minute costs the minute."""
    found: list[RateLimit] = []
    for owner, limits in owners:
        if limits.requests_per_minute:
            found.append(RateLimit(f"{owner}:rpm", limits.requests_per_minute, 1))
        if limits.tokens_per_minute:
            cost = min(tokens, limits.tokens_per_minute)
            found.append(RateLimit(f"{owner}:tpm", limits.tokens_per_minute, cost))
    return tuple(found)


def _open_limits(owners: _Owners) -> tuple[OpenLimit, ...]:
    """The limits on requests that are open at once."""
    return tuple(OpenLimit(f"{owner}:open", limits.concurrent) for owner, limits in owners if limits.concurrent)


def limit_headers(limits: tuple[LimitState, ...]) -> bytes:
    """OpenAI's ``x-ratelimit-*`` headers: of each kind the limit that is nearest to its end."""
    if not limits:
        return b""
    lines: list[str] = []
    for suffix, word in (("rpm", "requests"), ("tpm", "tokens")):
        of_kind = [limit for limit in limits if limit.name.endswith(":" + suffix)]
        if of_kind:
            tightest = min(of_kind, key=lambda limit: limit.remaining)
            lines.append(f"x-ratelimit-limit-{word}: {tightest.limit}\r\n")
            lines.append(f"x-ratelimit-remaining-{word}: {max(0, tightest.remaining)}\r\n")
            lines.append(f"x-ratelimit-reset-{word}: {duration(tightest.reset_s)}\r\n")
    return "".join(lines).encode()


def duration(seconds: float) -> str:
    """A duration as OpenAI writes it: ``120ms``, ``1.5s``, ``6m0s``."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest)}s" if minutes else f"{round(rest, 3):g}s"


def _owners(key: Key, defaults: Limits) -> _Owners:
    """Whose limits count, and what they are; those of a key that has none are the default ones. Empty: no limits."""
    own, org = key.limits, key.org_limits
    if defaults.requests_per_minute or defaults.tokens_per_minute or defaults.concurrent:
        own = Limits(
            requests_per_minute=own.requests_per_minute or defaults.requests_per_minute,
            tokens_per_minute=own.tokens_per_minute or defaults.tokens_per_minute,
            concurrent=own.concurrent or defaults.concurrent,
        )
    # Most keys have none: one look at each.
    some = own.requests_per_minute or own.tokens_per_minute or own.concurrent
    if not (some or org.requests_per_minute or org.tokens_per_minute or org.concurrent):
        return ()
    return ((f"key:{key.id}", own), (f"org:{key.org_id}", org))
