"""Intervals and means of a sample."""

import math

import pytest

from gateway.core.statistics import MAX_SAMPLE, estimate, mean_floor, seed_of


def splitmix64(seed, place):
    """Its output number ``place``, by plain whole numbers."""
    z = (seed + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def plain_draws(seed, n):
    """The items of each of 2,000 draws."""
    return [[(splitmix64(seed, draw * n + j) >> 32) * n >> 32 for j in range(n)] for draw in range(2000)]


def test_the_same_scores_and_seed_give_the_same_interval_everywhere():
    """To the last bit what plain whole numbers give, and what they gave when this was written."""
    scores = [0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 2 / 3]
    found = estimate(scores, seed_of("run_7", "alder-1"))
    assert found is not None
    assert found.mean == 0.5
    fixed = [round(score * 2**32) for score in scores]
    totals = sorted(sum(fixed[item] for item in draw) for draw in plain_draws(seed_of("run_7", "alder-1"), 7))
    assert (found.low, found.high) == (totals[49] / (7 * 2**32), totals[1949] / (7 * 2**32))
    assert (round(found.low, 9), round(found.high, 9)) == (0.261904762, 0.726190476)
    assert estimate(scores, seed_of("run_8", "alder-1")) != found


def test_the_generator_is_splitmix64():
    """The published first outputs for the seed 1234567."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [splitmix64(1234567, place) for place in range(5)] == published


def test_an_interval_covers_what_it_says():
    """95 % of the intervals of samples of 100 hold the true mean, give or take what chance allows in 300 trials."""
    import random

    dice = random.Random(20261123)
    held = 0
    for trial in range(300):
        found = estimate([float(dice.random() < 0.3) for _ in range(100)], trial)
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 270 <= held <= 298


def test_an_interval_is_as_wide_as_the_normal_one():
    """For many items the bootstrap meets the central limit: mean ± 1.96 standard errors."""
    scores = [float(place % 10 < 7) for place in range(10_000)]
    found = estimate(scores, 1)
    assert found is not None
    error = math.sqrt(0.7 * 0.3 / 10_000)
    assert found.mean == pytest.approx(0.7)
    assert found.low == pytest.approx(0.7 - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(0.7 + 1.96 * error, abs=0.15 * error)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3])
def test_scores_without_a_difference_have_a_point(value):
    """Low ≤ mean ≤ high, also where rounding would part them."""
    found = estimate([value] * 7, 3)
    assert found is not None
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.high - found.low < 1e-9


def test_few_scores_prove_nothing():
    """One: anything. None: nothing."""
    one = estimate([0.8], 1)
    assert one is not None
    assert (one.mean, one.low, one.high) == (0.8, 0, 1)
    assert estimate([], 1) is None


@pytest.mark.parametrize("scores", [[0.5, math.nan], [1.1, 0], [-0.1, 0], [0.0] * (MAX_SAMPLE + 1)])
def test_what_is_no_score_is_refused(scores):
    """NaN and what lies outside 0 to 1 never reach a result."""
    with pytest.raises(ValueError, match="scores"):
        estimate(scores, 1)


def test_money_means_are_exact_and_floored():
    """2 of 3 is 0; amounts beyond what a fraction can hold lose nothing."""
    assert mean_floor([1, 1, 0]) == 0
    assert mean_floor([10**18 + 1, 10**18 + 3]) == 10**18 + 2
    assert mean_floor([]) is None
