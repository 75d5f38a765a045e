"""Settle: what an ended exchange costs, posted exactly once on what was observed.

Floor: dataplane. This is the only place that turns tokens into money: `charge_of` decides (pure), `Settler` acts. The
rules: work that the backend or we failed costs nothing; work that the client abandoned costs what was delivered, and
nothing if no content was; a finished answer costs its usage.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import orjson

from backends.wire.request import Kind
from backends.wire.usage import Observed, TokenUsage, estimate_prompt_tokens
from gateway.core.exchange import Ending, Exchange
from gateway.core.openai import NO_MEDIA, Ask, Media
from ledger.core.meters import TOKEN_METERS, Meter, UsageSource
from ledger.core.pricing import PriceCard, charge_nanos
from ledger.counter import Settlement
from ledger.outbox import SettlementOutbox

_PLAIN: dict[str, str] = {word: word.value for kind in (Meter, UsageSource, Ending, Kind) for word in kind}
"""The words of enumerations as plain text: to ask one for its value, as JSON's writer does, calls a function."""


@dataclass(slots=True)  # not frozen: made for every request, and that takes three times as long
class Charge:
    """The price of an ended exchange and what it was computed from."""

    amount_nanos: int
    meters: dict[Meter, int]
    source: UsageSource

    def by_name(self) -> dict[str, int]:
        """The meters under their plain names, for JSON."""
        return {_PLAIN[meter]: quantity for meter, quantity in self.meters.items()}


NOTHING = Charge(0, {}, UsageSource.REPORTED)


def charge_of(
    ending: Ending, observed: Observed, card: PriceCard, ask: Ask, *, context_tokens: int, discount_bps: int = 0
) -> Charge:
    """Decide the charge; pure.

    An abandoned whole answer was never delivered. An abandoned stream counts once one content delta was.
    """
    if ending is Ending.FAILED:
        return NOTHING
    if ending is Ending.ABANDONED and (not ask.stream or observed.content_deltas == 0):
        return NOTHING
    usage = usage_of(ending, observed, ask, context_tokens=context_tokens)
    meters = meters_of(usage, ask.media)
    source = UsageSource.REPORTED if usage.reported else _guess(ask)
    return Charge(charge_nanos(card, meters, discount_bps=discount_bps), meters, source)


def usage_of(ending: Ending, observed: Observed, ask: Ask, *, context_tokens: int) -> TokenUsage:
    """The usage that is charged: the engine's report if it can be true, else a low guess and what was counted."""
    usage = observed.usage
    if usage is None or not _is_plausible(usage, ending, observed, ask, context_tokens):
        return TokenUsage(estimate_prompt_tokens(ask.text_bytes), observed.content_deltas, reported=False)
    return usage


def meters_of(usage: TokenUsage, media: Media = NO_MEDIA) -> dict[Meter, int]:
    """Split usage into meters that add up without overlap; zero meters are left out."""
    meters: dict[Meter, int] = {}
    cached_prompt, reasoning = usage.cached_prompt, usage.reasoning
    if prompt := usage.prompt - cached_prompt:
        meters[Meter.PROMPT] = prompt
    if cached_prompt:
        meters[Meter.CACHED_PROMPT] = cached_prompt
    if completion := usage.completion - reasoning:
        meters[Meter.COMPLETION] = completion
    if reasoning:
        meters[Meter.REASONING] = reasoning
    meters[Meter.REQUEST] = 1
    if media.images:
        meters[Meter.IMAGE] = media.images
    if media.audio_seconds:
        meters[Meter.AUDIO_SECOND] = media.audio_seconds
    return meters


def accrued(exchange: Exchange, observed: Observed) -> tuple[int, bytes]:
    """What a running exchange would cost if its client left now, and the usage behind it; for heartbeats."""
    charge = _charge(exchange, Ending.ABANDONED, observed)
    return charge.amount_nanos, orjson.dumps({"meters": charge.by_name(), "source": charge.source})


def delivered_nanos(exchange: Exchange, observed: Observed) -> int:
    """What a stream costs if it ends here as if it had reached its bound."""
    return _charge(exchange, Ending.LENGTH, observed).amount_nanos


def delivered_usage(exchange: Exchange, observed: Observed) -> TokenUsage:
    """The usage behind `delivered_nanos`."""
    assert exchange.ask is not None
    assert exchange.endpoint is not None
    return usage_of(Ending.LENGTH, observed, exchange.ask, context_tokens=exchange.endpoint.context_tokens)


class Settler:
    """Posts settlements.

    Args:
        outbox: makes them durable and delivers them.
    """

    def __init__(self, outbox: SettlementOutbox) -> None:
        self._outbox = outbox

    def post(
        self,
        exchange: Exchange,
        ending: Ending,
        observed: Observed,
        *,
        outcome: str | None = None,
    ) -> asyncio.Future[None]:
        """End the exchange's hold, and keep ``outcome`` under its idempotency key or give the key back.

        Called once per hold. The returned future is done when the settlement is durable, or says why it may not be
        (`OutboxUnavailable`). It only tells: a cancelled request that cancels it stops nothing.
        """
        assert exchange.ending is None, "an exchange is settled once"
        exchange.ending = ending
        exchange.observed = observed
        charge = _charge(exchange, ending, observed)
        exchange.billed_nanos = charge.amount_nanos
        return self._outbox.post(build_settlement(exchange, charge, outcome=outcome))

    async def drain(self) -> None:
        """Wait until everything posted is durable, or was refused by the disk."""
        await self._outbox.written()


def build_settlement(exchange: Exchange, charge: Charge, *, outcome: str | None = None) -> Settlement:
    """What the ledger is told; pure but for what the exchange holds."""
    key, endpoint, card, kind = exchange.key, exchange.endpoint, exchange.card, exchange.kind
    assert key is not None
    assert endpoint is not None
    assert card is not None
    assert kind is not None
    unused: tuple[tuple[str, int], ...] = ()
    if exchange.token_buckets:
        used = sum(quantity for meter, quantity in charge.meters.items() if meter in TOKEN_METERS)
        unused = tuple((bucket, took - used) for bucket, took in exchange.token_buckets if took > used)
    plain, ending = _PLAIN, exchange.ending
    info = {
        "key": key.id,
        "endpoint": endpoint.id,
        "card": card.id,
        "route": plain[kind],
        "alias": endpoint.alias,
        "stream": exchange.ask.stream if exchange.ask else False,
        "meters": {plain[meter]: quantity for meter, quantity in charge.meters.items()},
        "source": plain[charge.source],
        "outcome": None if ending is None else plain[ending],
        "status": exchange.status,
        "started_ms": exchange.started_ms,
        "ttft_ms": _span_ms(exchange.started_s, exchange.first_byte_s),
        "total_ms": _span_ms(exchange.started_s, exchange.upstream_done_s),
    }
    if exchange.discount is not None:
        info.update(exchange.discount_info())
    return Settlement(
        exchange.request_id,
        key.org_id,
        charge.amount_nanos,
        unused,
        exchange.open_places,
        orjson.dumps(info),
        exchange.claim,
        outcome if exchange.claim else None,
        exchange.held_epoch,
    )


def _charge(exchange: Exchange, ending: Ending, observed: Observed) -> Charge:
    assert exchange.card is not None
    assert exchange.ask is not None
    assert exchange.endpoint is not None
    discount = exchange.discount
    return charge_of(
        ending,
        observed,
        exchange.card,
        exchange.ask,
        context_tokens=exchange.endpoint.context_tokens,
        discount_bps=0 if discount is None else discount.bps,
    )


def _is_plausible(usage: TokenUsage, ending: Ending, observed: Observed, ask: Ask, context_tokens: int) -> bool:
    """Whether a report can be true; one that cannot is no report.

    A finished answer with content has used completion tokens, and nothing uses more than its context holds.
    """
    if usage.prompt > context_tokens * ask.prompts or usage.completion > context_tokens * max(1, ask.completions):
        return False
    says_nothing = usage.completion == 0 and observed.content_deltas > 0 and ask.kind is not Kind.EMBEDDING
    return not (says_nothing and ending in (Ending.FINISHED, Ending.LENGTH))


def _guess(ask: Ask) -> UsageSource:
    # The deltas of a stream were counted; of a whole answer without usage nothing but its size is known.
    return UsageSource.COUNTED if ask.stream else UsageSource.ESTIMATED


def _span_ms(start_s: float, end_s: float | None) -> float | None:
    return None if end_s is None else int((end_s - start_s) * 1e6 + 0.5) / 1000
