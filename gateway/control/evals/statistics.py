"""How sure a mean is: a seeded bootstrap.

Floor: control (pure; the draws are fixed by their seed). Efron's percentile bootstrap of the mean: rows are drawn with
replacement, as many as there are, many times; the middle 95 % of the means are the interval.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum
from typing import Final

DRAWS: Final = 2000
LEVEL: Final = 0.95
_SCALE: Final = 1 << 40


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and where it may lie; ``0 <= low <= mean <= high <= 1``."""

    mean: float
    low: float
    high: float


def bootstrap_interval(scores: Sequence[float], *, seed: str) -> Interval:
    """The mean of scores (0..1, at least one) and its 95 % interval; the same on every machine.

    One row proves nothing: its interval is all of [0, 1].
    """
    count = len(scores)
    mean = min(1.0, max(0.0, fsum(scores) / count))
    if count < 2:
        return Interval(mean, 0.0, 1.0)
    draw = random.Random(seed).choices  # noqa: S311  not for secrets
    # Whole numbers: what a sum of fractions gives in its last places depends on the version of Python.
    whole = [round(score * _SCALE) for score in scores]
    means = sorted(sum(draw(whole, k=count)) / (count * _SCALE) for _ in range(DRAWS))
    outside = (1 - LEVEL) / 2
    low, high = means[int(outside * DRAWS)], means[min(DRAWS - 1, int((1 - outside) * DRAWS))]
    return Interval(mean, max(0.0, min(low, mean)), min(1.0, max(high, mean)))
