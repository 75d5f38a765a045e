"""Idempotency keys of the platform's routes: the same key and body within a day is the same request.

Floor: control. What was made is found by its claim, a column of its own table, so that there is no second place that
could disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Final

CLAIM_KEPT: Final = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Claim:
    """A client's idempotency key, and what it was sent with."""

    name: str
    fingerprint: str


class ClaimDiffers(Exception):
    """The idempotency key was used for another request."""
