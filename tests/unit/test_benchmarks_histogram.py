"""Durations in buckets: percentiles that hold, and sums that are those of all together."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load import Histogram

DURATIONS = st.lists(st.floats(1e-7, 1e4), min_size=1, max_size=200)


def exact(durations_s: list[float], percent: float) -> float:
    """The percentile as it is defined: the smallest duration that so many do not exceed."""
    ordered = sorted(durations_s)
    return ordered[max(1, math.ceil(round(len(ordered) * percent / 100, 6))) - 1]


@given(DURATIONS, st.sampled_from([0, 1, 50, 90, 99, 99.9, 100]))
def test_percentiles_are_true_within_half_a_percent(durations_s: list[float], percent: float) -> None:
    """Compared with the sorted list, whatever was added."""
    assert Histogram(durations_s).percentile_s(percent) == pytest.approx(exact(durations_s, percent), rel=0.00502)


@given(st.lists(st.lists(st.floats(0, 100), max_size=50), max_size=5))
def test_merging_is_adding_all_to_one(parts: list[list[float]]) -> None:
    """Processes that each counted their part have together what one would have counted; also by way of JSON."""
    merged = Histogram()
    for part in parts:
        merged.merge(Histogram.from_json(json.loads(json.dumps(Histogram(part).to_json()))))
    assert merged == Histogram([duration_s for part in parts for duration_s in part])


@given(st.lists(st.floats(-1, 100)))
def test_many_at_once_are_counted_like_one_by_one(durations_s: list[float]) -> None:
    """The cheap way and the plain one agree, zero and below included."""
    at_once = Histogram()
    at_once.add_all(durations_s)
    assert at_once == Histogram(durations_s)


def test_percentiles_are_not_means_of_percentiles() -> None:
    """Ten slow ones in a process with a hundred, beside one with ten thousand fast ones, are not its p99 halved."""
    fast, slow = Histogram([0.001] * 10_000), Histogram([0.001] * 90 + [1.0] * 10)
    fast.merge(slow)
    assert fast.percentile_s(99) == pytest.approx(0.001, rel=0.01)
    assert fast.percentile_s(99.95) == pytest.approx(1.0, rel=0.01)


def test_zero_has_its_place() -> None:
    """Events that came together are 0 apart; they count, and draw the median down."""
    histogram = Histogram([0.0, 0.0, 0.0, 5.0])
    assert histogram.total == 4
    assert histogram.percentile_s(50) == 0.0
    assert histogram.percentile_s(100) == 5.0
    assert histogram.mean_s == pytest.approx(1.25, rel=0.01)
    assert histogram.share_above(1.0) == 0.25


def test_nothing_has_no_percentile() -> None:
    """An empty histogram does not claim to be fast."""
    assert math.isnan(Histogram().percentile_s(50))
    assert Histogram().summary_ms() == {}


def test_the_largest_is_kept_as_it_is() -> None:
    """The worst case is not rounded."""
    assert Histogram([0.5, 1.23456789]).percentile_s(100) == 1.23456789


def test_buckets_of_another_width_are_refused() -> None:
    """Results of an older format cannot be mixed in unnoticed."""
    with pytest.raises(ValueError, match="cannot be merged"):
        Histogram.from_json({**Histogram([1.0]).to_json(), "per_e": 50})
