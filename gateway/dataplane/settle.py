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


@dataclass(frozen=True, slots=True)
class Charge:
    """The price of an ended exchange and what it was computed from."""

    amount_nanos: int
    meters: dict[Meter, int]
    source: UsageSource

    def by_name(self) -> dict[str, int]:
        """The meters under their plain names, for JSON."""
        return {meter.value: quantity for meter, quantity in self.meters.items()}


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
    split = {
        Meter.PROMPT: usage.prompt - usage.cached_prompt,
        Meter.CACHED_PROMPT: usage.cached_prompt,
        Meter.COMPLETION: usage.completion - usage.reasoning,
        Meter.REASONING: usage.reasoning,
        Meter.REQUEST: 1,
        Meter.IMAGE: media.images,
        Meter.AUDIO_SECOND: media.audio_seconds,
    }
    return {meter: quantity for meter, quantity in split.items() if quantity}


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
        self._running: set[asyncio.Task[None]] = set()

    def post(
        self,
        exchange: Exchange,
        ending: Ending,
        observed: Observed,
        *,
        outcome: str | None = None,
    ) -> asyncio.Task[None]:
        """End the exchange's hold, and keep ``outcome`` under its idempotency key or give the key back.

        Called once per hold. The returned task belongs to the settler, so that a cancelled request cannot cancel it;
        it is done when the settlement is durable.
        """
        assert exchange.ending is None, "an exchange is settled once"
        exchange.ending = ending
        exchange.observed = observed
        charge = _charge(exchange, ending, observed)
        exchange.billed_nanos = charge.amount_nanos
        settlement = build_settlement(exchange, charge, outcome=outcome)
        task = asyncio.get_running_loop().create_task(self._outbox.record(settlement))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def drain(self) -> None:
        """Wait until everything posted is durable."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)


def build_settlement(exchange: Exchange, charge: Charge, *, outcome: str | None = None) -> Settlement:
    """What the ledger is told; pure but for what the exchange holds."""
    key, endpoint, card, kind = exchange.key, exchange.endpoint, exchange.card, exchange.kind
    assert key is not None
    assert endpoint is not None
    assert card is not None
    assert kind is not None
    used = sum(quantity for meter, quantity in charge.meters.items() if meter in TOKEN_METERS)
    unused = [(bucket, took - used) for bucket, took in exchange.token_buckets if took > used]
    info = {
        "key": key.id,
        "endpoint": endpoint.id,
        "card": card.id,
        "route": kind.value,
        "alias": endpoint.alias,
        "stream": exchange.ask.stream if exchange.ask else False,
        "meters": charge.by_name(),
        "source": charge.source,
        **exchange.discount_info(),
        "outcome": exchange.ending,
        "status": exchange.status,
        "started_ms": exchange.started_ms,
        "ttft_ms": _span_ms(exchange.started_s, exchange.first_byte_s),
        "total_ms": _span_ms(exchange.started_s, exchange.upstream_done_s),
    }
    return Settlement(
        hold_id=exchange.request_id,
        org_id=key.org_id,
        amount_nanos=charge.amount_nanos,
        refunds=tuple(unused),
        opens=exchange.open_places,
        info=orjson.dumps(info),
        claim=exchange.claim,
        outcome=outcome if exchange.claim else None,
        epoch=exchange.held_epoch,
    )


def _charge(exchange: Exchange, ending: Ending, observed: Observed) -> Charge:
    assert exchange.card is not None
    assert exchange.ask is not None
    assert exchange.endpoint is not None
    context_tokens = exchange.endpoint.context_tokens
    return charge_of(
        ending,
        observed,
        exchange.card,
        exchange.ask,
        context_tokens=context_tokens,
        discount_bps=exchange.discount_bps,
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
    return None if end_s is None else round((end_s - start_s) * 1000, 3)
