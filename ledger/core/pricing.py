"""Price cards, discounts, charges and the upper bound that a hold reserves.

Floor: ``ledger.core`` (pure). Rates are integers: nano-USD per *million* units for every meter except ``REQUEST``,
which is nano-USD per request. A charge is one exact integer sum, less its discount in basis points, rounded up once to
a nano. A quote is the same arithmetic with bounds in place of quantities, split so that a Redis script can finish it
without ever passing 2^53.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ledger.core.meters import Meter

UNITS_PER_RATE = 1_000_000
"""Token-like rates are per this many units."""

WHOLE_BPS = 10_000
"""A discount of so many basis points is the whole price."""

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
    millionths: Mapping[Meter, int] = field(init=False, repr=False, compare=False)
    """What one unit of each meter costs in millionths of a nano-USD, fallbacks included: asked for by every request."""

    def __post_init__(self) -> None:
        prices = {meter: rate_of(self, meter) * (UNITS_PER_RATE if meter is Meter.REQUEST else 1) for meter in Meter}
        object.__setattr__(self, "millionths", prices)


@dataclass(frozen=True, slots=True)
class Discount:
    """What an organization need not pay during ``[effective_from_ms, effective_to_ms)`` (Unix ms; ``None`` is open).

    ``endpoint_id``: for this endpoint only; ``None`` is all of its endpoints that have no discount of their own.
    ``bps``: basis points of the price, 0 to ``WHOLE_BPS``; 1250 is 12.5 %.
    """

    id: str
    org_id: str
    endpoint_id: str | None
    bps: int
    effective_from_ms: int
    effective_to_ms: int | None

    def is_in_force(self, at_ms: int) -> bool:
        """Whether a request that starts at this moment gets it."""
        return self.effective_from_ms <= at_ms and (self.effective_to_ms is None or at_ms < self.effective_to_ms)


@dataclass(slots=True)  # not frozen: made for every request, and that takes three times as long
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


def discount_at(discounts: Iterable[Discount], at_ms: int) -> Discount | None:
    """The discount of a moment among those that fit an endpoint: its own before that of all, even if it is smaller."""
    found = [discount for discount in discounts if discount.is_in_force(at_ms)]
    return min(found, key=lambda discount: discount.endpoint_id is None, default=None)


def charge_nanos(card: PriceCard, usage_quantities: Mapping[Meter, int], *, discount_bps: int = 0) -> int:
    """What these quantities cost under this card: the exact sum less the discount, rounded up once to a nano-USD.

    Args:
        discount_bps: basis points that are not charged, 0 to ``WHOLE_BPS``.

    Raises:
        ValueError: a quantity is negative, or the discount is out of bounds.
    """
    millionths = 0
    prices = card.millionths
    for meter, quantity in usage_quantities.items():
        if quantity < 0:
            raise ValueError(f"The quantity of {meter} is negative: {quantity}.")
        millionths += prices[meter] * quantity
    return _discounted(millionths, discount_bps)


def quote(
    card: PriceCard,
    *,
    prompt_tokens_bound: int,
    completions: int,
    images: int = 0,
    audio_seconds: int = 0,
    discount_bps: int = 0,
) -> Quote:
    """The upper bound of what a request may cost, before its completion tokens are chosen.

    Args:
        prompt_tokens_bound: no tokenizer of the backend counts more prompt tokens than this.
        completions: how many answers are asked for (``n``); 0 for work without completion tokens.
        images, audio_seconds: what the request brings along.
        discount_bps: as for `charge_nanos`.

    The bound holds however the backend splits prompt from cached prompt and completion from reasoning: the dearer
    rate of each pair counts. Rounding up both parts can only raise the sum.
    """
    if prompt_tokens_bound < 0 or completions < 0 or images < 0 or audio_seconds < 0:
        raise ValueError("The bounds of a quote cannot be negative.")
    prices = card.millionths
    prompt_rate, cached_rate = prices[Meter.PROMPT], prices[Meter.CACHED_PROMPT]
    completion_rate, reasoning_rate = prices[Meter.COMPLETION], prices[Meter.REASONING]
    if cached_rate > prompt_rate:
        prompt_rate = cached_rate
    if reasoning_rate > completion_rate:
        completion_rate = reasoning_rate
    fixed_millionths = prompt_rate * prompt_tokens_bound + prices[Meter.REQUEST]
    if images or audio_seconds:
        fixed_millionths += prices[Meter.IMAGE] * images + prices[Meter.AUDIO_SECOND] * audio_seconds
    return Quote(
        _discounted(fixed_millionths, discount_bps),
        _discounted(completion_rate * completions * UNITS_PER_RATE, discount_bps)
        if discount_bps
        # Whole as it is: a discount of nothing rounds nothing.
        else completion_rate * completions,
    )


def hold_nanos(quote: Quote, tokens: int) -> int:
    """What to reserve so that ``tokens`` completion tokens (each of ``n`` answers) are covered."""
    return quote.fixed_nanos + _ceil_millionth(tokens * quote.completion_rate_per_million_nanos)


def is_flat(card: PriceCard) -> bool:
    """Whether only the request itself is priced, whatever the tokens."""
    return all(rate == 0 or meter is Meter.REQUEST for meter, rate in card.rates.items())


def _discounted(millionths: int, discount_bps: int) -> int:
    if not discount_bps:
        return -(-millionths // UNITS_PER_RATE)
    if not 0 <= discount_bps <= WHOLE_BPS:
        raise ValueError(f"A discount is 0 to {WHOLE_BPS} basis points, not {discount_bps}.")
    return -(-millionths * (WHOLE_BPS - discount_bps) // (UNITS_PER_RATE * WHOLE_BPS))


def _ceil_millionth(millionths: int) -> int:
    return -(-millionths // UNITS_PER_RATE)
