"""Price cards, charges and the upper bound that a hold reserves.

Floor: ``ledger.core`` (pure). Rates are integers: nano-USD per *million* units for every meter except ``REQUEST``,
which is nano-USD per request. A charge is one exact integer sum, rounded up once to a nano. A quote is the same
arithmetic with bounds in place of quantities, split so that a Redis script can finish it without ever passing 2^53.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ledger.core.meters import Meter

UNITS_PER_RATE = 1_000_000
"""Token-like rates are per this many units."""

_FALLBACK = {Meter.CACHED_PROMPT: Meter.PROMPT, Meter.REASONING: Meter.COMPLETION}
"""A meter without a rate of its own costs as much as this one."""


@dataclass(frozen=True, slots=True)
class PriceCard:
    """What one endpoint costs during ``[effective_from_ms, effective_to_ms)`` (Unix ms; ``None`` is open).

    ``rates``: nano-USD per million units, for ``REQUEST`` nano-USD per request; each >= 0.
    """

    id: str
    endpoint_id: str
    rates: Mapping[Meter, int]
    effective_from_ms: int
    effective_to_ms: int | None


@dataclass(frozen=True, slots=True)
class Quote:
    """Upper bound of a charge: a fixed part, and a rate for the completion tokens still to be chosen.

    ``completion_rate_per_million_nanos`` is already multiplied by the number of completions.
    """

    fixed_nanos: int
    completion_rate_per_million_nanos: int


def rate_of(card: PriceCard, meter: Meter) -> int:
    """The card's rate for a meter: its own, else its fallback's, else 0 (free)."""
    rate = card.rates.get(meter)
    if rate is None:
        fallback = _FALLBACK.get(meter)
        rate = card.rates.get(fallback, 0) if fallback is not None else 0
    return rate


def charge_nanos(card: PriceCard, usage_quantities: Mapping[Meter, int]) -> int:
    """What these quantities cost under this card: the exact sum, rounded up once to a nano-USD.

    Raises:
        ValueError: a quantity is negative.
    """
    millionths = 0
    for meter, quantity in usage_quantities.items():
        if quantity < 0:
            raise ValueError(f"The quantity of {meter} is negative: {quantity}.")
        per_unit = UNITS_PER_RATE if meter is Meter.REQUEST else 1
        millionths += rate_of(card, meter) * quantity * per_unit
    return _ceil_millionth(millionths)


def quote(card: PriceCard, *, prompt_tokens_bound: int, completions: int) -> Quote:
    """The upper bound of what a request may cost, before its completion tokens are chosen.

    Args:
        prompt_tokens_bound: no tokenizer of the backend counts more prompt tokens than this.
        completions: how many answers are asked for (``n``); 0 for work without completion tokens.

    The bound holds however the backend splits prompt from cached prompt and completion from reasoning: the dearer
    rate of each pair counts. Rounding up both parts can only raise the sum.
    """
    if prompt_tokens_bound < 0 or completions < 0:
        raise ValueError("The bounds of a quote cannot be negative.")
    prompt_rate = max(rate_of(card, Meter.PROMPT), rate_of(card, Meter.CACHED_PROMPT))
    completion_rate = max(rate_of(card, Meter.COMPLETION), rate_of(card, Meter.REASONING))
    return Quote(
        fixed_nanos=rate_of(card, Meter.REQUEST) + _ceil_millionth(prompt_rate * prompt_tokens_bound),
        completion_rate_per_million_nanos=completion_rate * completions,
    )


def hold_nanos(quote: Quote, tokens: int) -> int:
    """What to reserve so that ``tokens`` completion tokens (each of ``n`` answers) are covered."""
    return quote.fixed_nanos + _ceil_millionth(tokens * quote.completion_rate_per_million_nanos)


def is_flat(card: PriceCard) -> bool:
    """Whether only the request itself is priced, whatever the tokens."""
    return all(rate == 0 or meter is Meter.REQUEST for meter, rate in card.rates.items())


def _ceil_millionth(millionths: int) -> int:
    return -(-millionths // UNITS_PER_RATE)
