"""The verdict of a soak: which slopes count as growth."""

from __future__ import annotations

import random

from benchmarks.growth.soak import BOUND_MIB_AN_HOUR, Sample, Soak, slope_an_hour


def samples(per_hour: float, *, noise: float = 0.0, seed: int = 7) -> Soak:
    chance = random.Random(seed)
    found = Soak()
    for number in range(720):
        at_s = number * 5.0
        found.samples.append(Sample(at_s, 80 + per_hour * at_s / 3600 + chance.gauss(0, noise), 50, 10.0, 0.1))
    return found


def test_a_straight_line_has_its_slope() -> None:
    """Without noise the interval is a point."""
    middle, low, high = slope_an_hour([(second, 2.0 * second / 3600) for second in range(0, 3600, 5)])
    assert abs(middle - 2.0) < 1e-9
    assert high - low < 1e-6


def test_a_leak_is_noticed_in_noise() -> None:
    """Twice the bound is growth, none is flat, whatever the samples scatter."""
    assert not samples(2 * BOUND_MIB_AN_HOUR, noise=1.0).is_flat
    assert samples(0.0, noise=1.0).is_flat


def test_memory_that_grew_at_first_and_then_stood_is_flat() -> None:
    """Only the second half counts: caches fill in the first."""
    found = samples(0.0)
    found.samples = [Sample(sample.at_s, 60 + min(sample.at_s, 1500) / 50, 50, 10.0, 0.1) for sample in found.samples]
    assert found.is_flat


def test_a_few_samples_prove_nothing() -> None:
    """Their interval has no ends."""
    assert slope_an_hour([(0.0, 1.0), (1.0, 9.0)]) == (0.0, float("-inf"), float("inf"))
