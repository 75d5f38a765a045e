"""Numeric closeness: how near a number comes to the gold.

Floor: core (pure). 1 within the tolerance, else falling in a straight line to 0 at ``zero_at`` times the gold's size
(its relative error); for a gold of 0 the error is absolute. The number is the answer, or the last one that stands in
it.
Settings: ``tolerance`` (0, relative), ``zero_at`` (1.0, relative; not above the tolerance means all or nothing).
"""

from __future__ import annotations

import math
import re
from typing import Final

from gateway.core.scoring.plain import said
from gateway.core.scoring.values import Scorer, ScoreResult, Settings

_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,40})(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?")
_TAIL_CHARS: Final = 10_000


def number_of(output: str) -> float | None:
    """The last number in a text; thousands may be parted by commas. None without one, or if it is not finite."""
    found = _NUMBER.findall(said(output)[-_TAIL_CHARS:].replace("−", "-"))
    value = float(found[-1].replace(",", "")) if found else math.inf
    return value if math.isfinite(value) else None


def _gold(expected: object) -> float | None:
    if isinstance(expected, bool) or not isinstance(expected, int | float | str):
        return None
    try:
        value = float(expected)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _score(expected: object, output: str, settings: Settings) -> ScoreResult:
    gold, value = _gold(expected), number_of(output)
    assert gold is not None, "problem() was asked first"
    if value is None:
        return ScoreResult(0.0, "The answer holds no number.")
    # Halved, so that the difference of the largest numbers is one too.
    off = abs(value / 2 - gold / 2) / (abs(gold) / 2 or 0.5)
    tolerance, zero_at = _setting(settings, "tolerance", 0.0), _setting(settings, "zero_at", 1.0)
    if off <= tolerance:
        return ScoreResult(1.0, "The number is right.")
    if off >= zero_at:
        return ScoreResult(0.0, "The number is far off.")
    return ScoreResult((zero_at - off) / (zero_at - tolerance), "The number is near.")


def _setting(settings: Settings, name: str, default: float) -> float:
    value = settings.get(name, default)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    return float(value) if usable and isinstance(value, int | float) else default


def _problem(expected: object, _: Settings) -> str | None:
    return None if _gold(expected) is not None else "The expected value is no number."


NUMERIC: Final = Scorer("numeric", _score, _problem)
