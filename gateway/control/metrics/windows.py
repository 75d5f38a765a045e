"""Windows of time and histograms, as metrics use them.

Floor: control (pure). Sums are kept by the hour, so a window begins at the start of the hour that it reaches back into;
the answer says when that was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

MOST: Final = timedelta(days=90)
DEFAULT: Final = "7d"
BASE: Final = 1.04
"""Of the histograms' buckets: the middle of a bucket is within 2 % of all in it."""
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,4})([hd])", re.ASCII)


class WindowInvalid(ValueError):
    """Not a window; the text continues the sentence "window …"."""


@dataclass(frozen=True, slots=True)
class Window:
    """From one moment to another. ``text`` is what was asked for."""

    text: str
    begin: datetime
    end: datetime


def read_window(text: str, now: datetime) -> Window:
    """A window such as ``24h`` or ``7d`` that ends now.

    Raises:
        WindowInvalid: it is none, or longer than 90 days.
    """
    found = _WINDOW.fullmatch(text)
    length = None
    if found is not None:
        count = int(found.group(1))
        length = timedelta(hours=count) if found.group(2) == "h" else timedelta(days=count)
    if length is None or length > MOST:
        raise WindowInvalid("must be a number of hours or days such as 24h or 7d, up to 90d")
    return Window(text, floor_hour(now - length), now)


def floor_hour(at: datetime) -> datetime:
    """The start of its hour."""
    return at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def ceil_day(at: datetime) -> datetime:
    """The start of its day, in UTC, or of the next one if it lies behind that."""
    day = floor_day(at)
    return day if day == at else day + timedelta(days=1)


def floor_day(at: datetime) -> datetime:
    """The start of its day, in UTC."""
    return floor_hour(at).replace(hour=0)


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """The value below which this share of all lies, from counts by bucket; None if there are none.

    The nearest rank, as the middle of its bucket.
    """
    total = sum(buckets.values())
    if not total:
        return None
    rank, seen = max(1, -(-share * total // 1)), 0
    for bucket in sorted(buckets):
        seen += buckets[bucket]
        if seen >= rank:
            return round(2 * BASE**bucket * BASE / (1 + BASE), 3)
    raise AssertionError


def live_seconds(changes: list[tuple[datetime, str]], begin: datetime, end: datetime, *, status: str) -> float:
    """How long something stood at a status within a time, from its changes, the oldest first."""
    total = 0.0
    for place, (since, what) in enumerate(changes):
        until = changes[place + 1][0] if place + 1 < len(changes) else end
        if what == status:
            total += max(0.0, (min(until, end) - max(since, begin)).total_seconds())
    return total
