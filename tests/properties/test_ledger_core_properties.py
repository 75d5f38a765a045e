"""Promises of the pure floor of the ledger that hold for every value."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from ledger.core.ids import id_time_ms, is_request_id, request_id
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_MICRO, format_usd, micros_floor, parse_usd
from ledger.core.pricing import PriceCard, charge_nanos, hold_nanos, quote, rate_of

rates = st.dictionaries(st.sampled_from(Meter), st.integers(0, 10**13))
quantities = st.dictionaries(st.sampled_from(Meter), st.integers(0, 10**9))
tokens = st.integers(0, 2_000_000)
media = st.integers(0, 100_000)
discounts = st.integers(0, 10_000)


def card(rates: dict[Meter, int]) -> PriceCard:
    return PriceCard("pc", "ep", rates, 0, None)


@given(st.integers(-(10**20), 10**20))
def test_dollars_survive_print_and_parse(nanos: int) -> None:
    """What is printed reads back as the same nanos."""
    assert parse_usd(format_usd(nanos)) == nanos


@given(st.integers(-(10**20), 10**20))
def test_the_floor_is_below_by_less_than_a_micro(nanos: int) -> None:
    """What the API shows is at most a micro-USD below the truth and never above."""
    assert 0 <= nanos - micros_floor(nanos) * NANOS_PER_MICRO < NANOS_PER_MICRO


@given(rates, quantities, discounts)
def test_a_charge_is_the_exact_sum_less_its_discount_rounded_up_once(
    rates: dict[Meter, int], used: dict[Meter, int], bps: int
) -> None:
    """A charge is the smallest whole nano that is not below the exact rational sum times what is left of the price."""
    exact = sum(
        (Fraction(rate_of(card(rates), m) * q, 1 if m is Meter.REQUEST else 1_000_000) for m, q in used.items()),
        Fraction(0),
    ) * Fraction(10_000 - bps, 10_000)
    charge = charge_nanos(card(rates), used, discount_bps=bps)
    assert exact <= charge < exact + 1


@given(rates, quantities, discounts)
def test_a_discount_is_between_nothing_and_all(rates: dict[Meter, int], used: dict[Meter, int], bps: int) -> None:
    """None leaves the charge as it is, all of it makes it zero, and more is never dearer."""
    full = charge_nanos(card(rates), used)
    assert charge_nanos(card(rates), used, discount_bps=0) == full
    assert charge_nanos(card(rates), used, discount_bps=10_000) == 0
    less = charge_nanos(card(rates), used, discount_bps=bps)
    assert less <= full
    assert charge_nanos(card(rates), used, discount_bps=min(10_000, bps + 1)) <= less


@given(rates, tokens, tokens, st.integers(0, 8), media, media, discounts, st.data())
def test_no_charge_within_the_bounds_passes_its_hold(
    rates: dict[Meter, int],
    bound: int,
    limit: int,
    n: int,
    images: int,
    audio_seconds: int,
    bps: int,
    data: st.DataObject,
) -> None:
    """However prompt and completion are split, what was delivered within the bounds costs no more than the hold.

    Also with images and audio, and under every discount.
    """
    prompt = data.draw(st.integers(0, bound))
    cached = data.draw(st.integers(0, prompt))
    completion = data.draw(st.integers(0, limit * n))
    reasoning = data.draw(st.integers(0, completion))
    used = {
        Meter.PROMPT: prompt - cached,
        Meter.CACHED_PROMPT: cached,
        Meter.COMPLETION: completion - reasoning,
        Meter.REASONING: reasoning,
        Meter.REQUEST: 1,
        Meter.IMAGE: images,
        Meter.AUDIO_SECOND: audio_seconds,
    }
    quoted = quote(
        card(rates),
        prompt_tokens_bound=bound,
        completions=n,
        images=images,
        audio_seconds=audio_seconds,
        discount_bps=bps,
    )
    assert charge_nanos(card(rates), used, discount_bps=bps) <= hold_nanos(quoted, limit)


@given(rates, tokens, tokens, st.integers(1, 8), media)
def test_all_off_holds_nothing(rates: dict[Meter, int], bound: int, limit: int, n: int, images: int) -> None:
    """An organization that pays nothing needs no credit."""
    quoted = quote(card(rates), prompt_tokens_bound=bound, completions=n, images=images, discount_bps=10_000)
    assert hold_nanos(quoted, limit) == 0


@given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
def test_the_time_inside_an_id_comes_back(time_ms: int, random_bytes: bytes) -> None:
    """Every minted id is valid and gives its time back."""
    made = request_id(time_ms, random_bytes)
    assert is_request_id(made)
    assert id_time_ms(made) == time_ms
