"""Promises of the pure floor of the ledger that are best said by example."""

from __future__ import annotations

import pytest

from ledger.core.ids import id_time_ms, is_request_id, request_id, short_id
from ledger.core.meters import Meter
from ledger.core.money import format_usd, micros_floor, parse_usd
from ledger.core.pricing import (
    Discount,
    PriceCard,
    Quote,
    charge_nanos,
    discount_at,
    hold_nanos,
    is_flat,
    quote,
)


def card(**rates: int) -> PriceCard:
    return PriceCard("pc_aaaaaaaaaaaa", "ep_aaaaaaaaaaaa", {Meter(name): rate for name, rate in rates.items()}, 0, None)


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("12.50", 12_500_000_000),
        ("$3", 3_000_000_000),
        ("0.000000001", 1),
        ("-1.25", -1_250_000_000),
        (" 1_000 ", 1_000_000_000_000),
        (".5", 500_000_000),
        ("0.1000000000000", 100_000_000),
    ],
)
def test_dollars_are_read_exactly(text: str, nanos: int) -> None:
    """Dollars typed by an operator become nano-USD without a rounding."""
    assert parse_usd(text) == nanos


@pytest.mark.parametrize(
    "text", ["", "abc", "1e3", "NaN", "inf", "1.0000000001", "1,5", "--1", ".", "1 2", "٣", "9" * 60]
)
def test_a_wrong_amount_is_refused_with_a_sentence(text: str) -> None:
    """What is not a plain decimal of at most nine places is refused, and the text says so."""
    with pytest.raises(ValueError, match=r"\.$"):
        parse_usd(text)


def test_dollars_are_printed_with_two_to_nine_places() -> None:
    """Printed dollars are exact, with at least cents."""
    assert [format_usd(n) for n in (0, 12_500_000_000, 1, -1, -2_000_000_001)] == [
        "0.00",
        "12.50",
        "0.000000001",
        "-0.000000001",
        "-2.000000001",
    ]


def test_micros_are_floored() -> None:
    """The API never shows more than there is, below zero too."""
    assert [micros_floor(n) for n in (0, 999, 1000, 1999, -1)] == [0, 0, 1, 1, -1]


def test_one_charge_is_rounded_up_once() -> None:
    """Ten tokens of each meter at a rate far below a nano each cost one nano together, not one each."""
    small = card(prompt=1, completion=1)
    assert charge_nanos(small, {Meter.PROMPT: 10, Meter.COMPLETION: 10}) == 1
    assert charge_nanos(small, {}) == 0


def test_a_charge_by_hand() -> None:
    """A dollar per million prompt tokens and two per million completion tokens, computed by hand."""
    prices = card(prompt=1_000_000_000, completion=2_000_000_000, request=7)
    used = {Meter.PROMPT: 123, Meter.COMPLETION: 45, Meter.REQUEST: 1}
    assert charge_nanos(prices, used) == 123_000 + 90_000 + 7


def test_a_meter_without_a_rate_falls_back() -> None:
    """Cached prompt costs as prompt, reasoning as completion, the rest is free unless priced."""
    prices = card(prompt=5_000_000, completion=7_000_000)
    assert charge_nanos(prices, {Meter.CACHED_PROMPT: 2}) == 10
    assert charge_nanos(prices, {Meter.REASONING: 2}) == 14
    assert charge_nanos(prices, {Meter.IMAGE: 9, Meter.AUDIO_SECOND: 9, Meter.REQUEST: 9}) == 0
    assert charge_nanos(card(prompt=5_000_000, cached_prompt=0), {Meter.CACHED_PROMPT: 2}) == 0


def test_a_discount_by_hand() -> None:
    """12.5 % off 213,007 nanos is 186,381.125, and a started nano counts; images and seconds have it too."""
    prices = card(prompt=1_000_000_000, completion=2_000_000_000, request=7, image=2_000_000_000_000)
    used = {Meter.PROMPT: 123, Meter.COMPLETION: 45, Meter.REQUEST: 1}
    assert charge_nanos(prices, used, discount_bps=1_250) == 186_382
    assert charge_nanos(prices, {Meter.IMAGE: 3}, discount_bps=5_000) == 3_000_000


@pytest.mark.parametrize("bps", [-1, 10_001])
def test_a_discount_out_of_bounds_is_a_bug(bps: int) -> None:
    """Nobody is paid for a request, and nobody pays more than the price."""
    with pytest.raises(ValueError, match="basis points"):
        charge_nanos(card(prompt=1), {Meter.PROMPT: 1}, discount_bps=bps)


def test_the_discount_of_the_endpoint_counts_before_that_of_all() -> None:
    """Also if it is smaller, and only while it is in force: from its first millisecond, before its last."""
    of_all = Discount("dc_all", "org", None, 5_000, 100, None)
    own = Discount("dc_own", "org", "ep", 1_000, 200, 300)
    found = {at: discount_at((of_all, own), at) for at in (99, 100, 199, 200, 299, 300)}
    assert found == {99: None, 100: of_all, 199: of_all, 200: own, 299: own, 300: of_all}


def test_a_negative_quantity_is_a_bug() -> None:
    """Usage can't lower a charge."""
    with pytest.raises(ValueError, match="negative"):
        charge_nanos(card(prompt=1), {Meter.PROMPT: -1})


def test_a_quote_of_a_flat_card_is_its_price() -> None:
    """A flat-priced call holds exactly its flat price, whatever the tokens."""
    flat = card(request=1_500_000)
    assert is_flat(flat)
    assert quote(flat, prompt_tokens_bound=9_999, completions=3) == Quote(1_500_000, 0)
    assert hold_nanos(Quote(1_500_000, 0), 4096) == 1_500_000
    assert not is_flat(card(request=1, prompt=1))
    assert is_flat(card(request=1, prompt=0))


def test_a_request_id_sorts_by_time_and_gives_it_back() -> None:
    """Ids made later sort later, and the time inside is the one put in."""
    early, late = request_id(1_700_000_000_000, b"\xff" * 10), request_id(1_700_000_000_001, b"\x00" * 10)
    assert early < late
    assert (id_time_ms(early), id_time_ms(late)) == (1_700_000_000_000, 1_700_000_000_001)
    assert request_id(0, bytes(10)) == "req_" + "0" * 26


@pytest.mark.parametrize(
    "text", ["", "req_", "req_" + "0" * 25, "req_" + "8" + "0" * 25, "req_" + "u" * 26, "REQ_" + "0" * 26]
)
def test_what_is_no_request_id_is_refused(text: str) -> None:
    """A made-up id is refused, so nothing is filed under a wrong month."""
    assert not is_request_id(text)
    with pytest.raises(ValueError, match="not a request id"):
        id_time_ms(text)


def test_a_short_id_has_twelve_letters() -> None:
    """Objects get twelve letters of base32 after their prefix."""
    made = short_id("org_", b"\x01\x02\x03\x04\x05\x06\x07\x08")
    assert made.startswith("org_")
    assert len(made) == 16
    assert set(made[4:]) <= set("abcdefghijklmnopqrstuvwxyz234567")
