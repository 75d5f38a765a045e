"""How much work a request may become at most: the upper bound that is held before any of it starts.

Floor: core (pure).
"""

from __future__ import annotations

from dataclasses import dataclass

from backends.wire.request import Kind
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.openai import Ask
from gateway.core.state import Endpoint
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, Quote, quote, rate_of


@dataclass(slots=True)  # not frozen: made for every request, and that takes three times as long
class Plan:
    """The bound of one request.

    Attributes:
        quote: what it costs at most, as a fixed part and a rate per completion token.
        tokens_wanted: completion tokens per choice; 0 for embeddings.
        tokens_estimated: what a tokens-per-minute limit is charged first, prompt and completion.
        room: completion tokens that surely fit the context beside the prompt.
    """

    quote: Quote
    tokens_wanted: int
    tokens_estimated: int
    room: int


def plan(ask: Ask, endpoint: Endpoint, card: PriceCard, *, discount_bps: int = 0) -> Plan:
    """Bound a request by its own size, the endpoint's context and its output limit.

    Raises:
        Refused: 400 when ``max_tokens`` alone does not fit the context, or when audio that has a price has no length.
    """
    context = endpoint.context_tokens
    if ask.max_tokens is not None and ask.max_tokens > context:
        raise Refused(errors.context_length_exceeded())
    if ask.media.unknown_audio is not None and rate_of(card, Meter.AUDIO_SECOND):
        raise Refused(errors.unreadable_audio(ask.media.unknown_audio))
    media, prompt_bound = ask.media, min(ask.prompt_tokens_bound, context * ask.prompts)
    room = max(1, context - prompt_bound)
    if ask.kind is Kind.EMBEDDING:
        wanted = 0
    else:
        wanted = min(ask.max_tokens or endpoint.max_output_tokens, endpoint.max_output_tokens, context)
        if ask.max_tokens is None and wanted > room:
            wanted = context  # the engine will be told no bound, so nothing but its context bounds it
    return Plan(
        quote=quote(
            card,
            prompt_tokens_bound=prompt_bound,
            completions=ask.completions,
            images=media.images,
            audio_seconds=media.audio_seconds,
            discount_bps=discount_bps,
        ),
        tokens_wanted=wanted,
        tokens_estimated=ask.text_bytes // 4 + 1 + wanted * ask.completions,
        room=room,
    )


def upstream_max_tokens(ask: Ask, planned: Plan, granted: int) -> int | None:
    """The bound that the engine is told; ``None`` leaves it to the engine's context.

    A caller who named a bound gets that bound, or less if credit covers less. One who named none gets the endpoint's,
    if that surely fits beside the prompt. Else none is told, because an engine refuses a bound that does not fit, and
    only it can count the prompt; the hold then covers the whole context.
    """
    if ask.kind is Kind.EMBEDDING:
        return None
    if granted < planned.tokens_wanted:
        return granted if ask.max_tokens is not None else min(granted, planned.room)
    if ask.max_tokens is None:
        return planned.tokens_wanted if planned.tokens_wanted <= planned.room else None
    return min(ask.max_tokens, planned.tokens_wanted)
