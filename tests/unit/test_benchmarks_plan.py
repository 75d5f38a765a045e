"""Loads and the lengths that they draw: what may be written, and that it comes back as it was."""

from __future__ import annotations

import json
import random
import statistics
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Arrivals, Distribution, Load, PlanError, Target
from benchmarks.load.requests import Requests


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("64", 64, 64), ("16..128", 16, 128), (" 7 , 7 ,9", 7, 9), ("lognormal(200, 0.6, max=2000)", 1, 2000)],
)
def test_a_distribution_keeps_to_its_bounds(text: str, low: int, high: int) -> None:
    """Every draw is a whole number within what was written, and what is written back reads the same."""
    made = Distribution.parse(text)
    chance = random.Random(1)
    drawn = [made.sample(chance) for _ in range(5000)]
    assert min(drawn) >= low
    assert max(drawn) <= high
    assert all(isinstance(length, int) for length in drawn)
    assert Distribution.parse(str(made)) == made


def test_a_range_reaches_both_ends_and_a_list_only_its_values() -> None:
    """Both bounds of a range are drawn; of a list nothing else than its values, as often as they are named."""
    chance = random.Random(2)
    assert {Distribution.parse("3..5").sample(chance) for _ in range(500)} == {3, 4, 5}
    drawn = [Distribution.parse("10,10,10,90").sample(chance) for _ in range(4000)]
    assert set(drawn) == {10, 90}
    assert drawn.count(10) == pytest.approx(3000, rel=0.1)


def test_a_lognormal_has_its_median_and_its_sigma() -> None:
    """Half of the draws lie below the median; about 84 % below it times e^sigma."""
    made = Distribution.parse("lognormal(200,0.6)")
    chance = random.Random(3)
    drawn = [made.sample(chance) for _ in range(20_000)]
    assert statistics.median(drawn) == pytest.approx(200, rel=0.03)
    assert sum(length <= 200 * 1.822 for length in drawn) / len(drawn) == pytest.approx(0.841, abs=0.01)


@pytest.mark.parametrize(
    "text",
    ["", "many", "0", "-3", "5..", "9..3", "1,,2", "lognormal(200)", "lognormal(0,1)", "lognormal(5,-1)", "1e3", "nan",
     "lognormal(nan,1)", "lognormal(20,nan)", "0..5", "99999999999"],
)  # fmt: skip
def test_what_is_no_distribution_is_refused(text: str) -> None:
    """With a sentence, before anything is sent."""
    with pytest.raises(PlanError):
        Distribution.parse(text)


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 1 << 30))
def test_any_range_reads_back(one: int, other: int, seed: int) -> None:
    """Text and value are two forms of the same thing; the same seed draws the same."""
    made = Distribution("uniform", (min(one, other), max(one, other)))
    assert Distribution.parse(str(made)) == made
    assert made.sample(random.Random(seed)) == made.sample(random.Random(seed))


def test_a_load_survives_its_journey_to_a_worker() -> None:
    """As JSON and back it is the same value, with every field away from its default."""
    load = Load(
        name="all",
        stream=True,
        rate_per_s=12.5,
        arrivals=Arrivals.EVEN,
        max_open=7,
        seconds=3,
        warm_up_s=0.5,
        drain_s=1,
        prompt_tokens=Distribution.parse("lognormal(30,0.5,max=90)"),
        max_tokens=Distribution.parse("4..8"),
        body={"temperature": 0.5, "stream_options": {"include_usage": True}},
        pace_ms=10,
        expect_status=402,
        tokens_known=True,
        seed=9,
    )
    assert Load.from_json(json.loads(json.dumps(load.to_json()))) == load


@pytest.mark.parametrize(
    "wrong",
    [{}, {"connections": 1, "rate_per_s": 1.0}, {"connections": 0}, {"rate_per_s": 0.0}, {"rate_per_s": float("nan")},
     {"connections": 1, "seconds": 0}, {"connections": 1, "warm_up_s": -1}],
)  # fmt: skip
def test_a_load_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    """A load is either a number of connections or a rate, and lasts."""
    with pytest.raises(PlanError):
        Load(name="wrong", **wrong)


def test_an_address_that_is_none_is_refused_and_v1_may_be_left_out() -> None:
    """The path of requests is the same whether the address ends in /v1 or not."""
    for wrong in ("127.0.0.1:80", "ftp://host", "http://", ""):
        with pytest.raises(PlanError):
            Target(wrong, "k", "m")
    for given_url, root in (("http://h", ""), ("http://h/v1/", ""), ("https://h:1/x/v1", "/x")):
        assert Target(given_url, "k", "m").root == root


def test_requests_are_whole_and_no_two_prompts_begin_alike() -> None:
    """Lengths are as asked, also the body's; extra members and headers are there; prompts differ at once."""
    target = Target("http://host:81/base/v1", "secret", "some/model", {"x-more": "1"})
    load = Load(
        name="r",
        connections=1,
        stream=True,
        prompt_tokens=Distribution.parse("5..9"),
        max_tokens=Distribution.parse("3,4"),
        body={"temperature": 0},
    )
    requests = Requests(target, load, seed=5)
    beginnings = set()
    for _ in range(500):
        data, tokens = requests.next()
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        assert lines[0] == "POST /base/v1/chat/completions HTTP/1.1"
        assert {"Host: host:81", "Authorization: Bearer secret", "x-more: 1"} <= set(lines)
        assert f"Content-Length: {len(body)}" in lines
        content = json.loads(body)
        assert content["max_tokens"] == tokens
        assert tokens in (3, 4)
        assert content["model"] == "some/model"
        assert content["stream"] is True
        assert content["temperature"] == 0
        words = content["messages"][0]["content"].split()
        assert 5 <= len(words) <= 9
        beginnings.add(words[0])
    assert len(beginnings) == 500


def test_workers_of_one_load_send_different_prompts() -> None:
    """Their numbers do not meet, or a cache of prefixes would answer the second one."""
    load = Load(name="r", connections=1)
    target = Target("http://h", "k", "m")
    first, second = Requests(target, load, seed=1000), Requests(target, load, seed=1001)
    assert not {first.next()[0] for _ in range(100)} & {second.next()[0] for _ in range(100)}
