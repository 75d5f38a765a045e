"""Windows, quantiles and times of metrics."""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.metrics.windows import BASE, WindowInvalid, live_seconds, quantile, read_window

NOW = datetime(2026, 11, 23, 10, 42, 7, tzinfo=UTC)


@pytest.mark.parametrize(("text", "hours"), [("1h", 1), ("24h", 24), ("7d", 168), ("90d", 2160), ("2160h", 2160)])
def test_a_window_begins_with_its_hour(text: str, hours: int) -> None:
    """It reaches back as far as was asked, and to the start of that hour."""
    window = read_window(text, NOW)
    assert window.end == NOW
    assert window.begin == (NOW - timedelta(hours=hours)).replace(minute=0, second=0)


@pytest.mark.parametrize("text", ["", "7", "d", "0d", "-1h", "91d", "2161h", "1.5h", "7D", "1m", "١h", "7d\n"])
def test_what_is_no_window_is_refused(text: str) -> None:
    """Nothing but hours and days, in plain digits, up to 90 days."""
    with pytest.raises(WindowInvalid):
        read_window(text, NOW)


@given(st.lists(st.floats(0.01, 1e7), min_size=1, max_size=300), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_two_percent(values: list[float], share: float) -> None:
    """Of the nearest rank among the values themselves."""
    buckets = Counter(math.floor(math.log(value) / math.log(BASE)) for value in values)
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    found = quantile(buckets, share)
    assert found is not None
    assert abs(found - exact) <= exact * 0.021 + 0.001


def test_no_values_have_no_quantile() -> None:
    """None, not zero."""
    assert quantile({}, 0.5) is None


def test_time_at_a_status_is_cut_to_the_window() -> None:
    """What lies before and after does not count; the last status lasts."""
    hour = timedelta(hours=1)
    changes = [(NOW - 5 * hour, "live"), (NOW - 3 * hour, "stopped"), (NOW - hour, "live")]
    assert live_seconds(changes, NOW - 4 * hour, NOW, status="live") == 2 * 3600
    assert live_seconds(changes, NOW - 4 * hour, NOW, status="stopped") == 2 * 3600
    assert live_seconds(changes, NOW - 2 * hour, NOW - hour, status="live") == 0
    assert live_seconds([], NOW - hour, NOW, status="live") == 0
