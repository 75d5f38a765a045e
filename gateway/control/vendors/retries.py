"""When to try again.

Floor: control (pure). What a vendor says of the time counts before our own idea of it, and the deadline before both.
"""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final

ATTEMPTS: Final = 6
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0
"""Of our own; a vendor may ask for longer ones."""
SPREAD: Final = 0.25


def pause_s(attempt: int, after_s: float | None, *, chance: float) -> float:
    """How long to wait before the next attempt.

    Args:
        attempt: how many there were before the one that failed.
        after_s: what the vendor said.
        chance: 0 to 1, so that all that were refused together do not come together again.
    """
    if after_s is not None:
        # Never earlier than the vendor said.
        return after_s + chance * max(FIRST_PAUSE_S, after_s) * SPREAD
    longest_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempt, 30))
    return longest_s * (0.5 + 0.5 * chance)


def retry_after_s(after: str | None, *, answered: str | None) -> float | None:
    """Seconds of a header Retry-After, of either form; None for none.

    Args:
        answered: the header Date of the same answer: what a date is counted from, whatever our own clock says.

    Source: RFC 9110, 10.2.3.
    """
    if after is None:
        return None
    if after.isascii() and after.replace(".", "", 1).isdigit() and len(after) < 10:
        return float(after)
    try:
        at, now = (parsedate_to_datetime(text).replace(tzinfo=UTC) for text in (after, answered or ""))
    except ValueError:
        return None
    return max(0.0, (at - now).total_seconds())
