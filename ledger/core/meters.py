"""What is counted: meters, usage, and how well the usage is known.

Floor: ``ledger.core`` (pure). Meters never overlap, so that a charge is a plain sum: ``PROMPT`` excludes cached
prompt tokens, ``COMPLETION`` excludes reasoning tokens. Whoever reads a backend's report does the subtraction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Meter(StrEnum):
    """A priced quantity."""

    PROMPT = "prompt"
    CACHED_PROMPT = "cached_prompt"
    COMPLETION = "completion"
    REASONING = "reasoning"
    REQUEST = "request"
    IMAGE = "image"
    AUDIO_SECOND = "audio_second"
    EVAL_MICRO_USD = "eval_micro_usd"
    """What the answers of an eval run cost together, each by its own price: one unit is one micro-USD."""


TOKEN_METERS = frozenset({Meter.PROMPT, Meter.CACHED_PROMPT, Meter.COMPLETION, Meter.REASONING})
"""Those that count tokens."""


class UsageSource(StrEnum):
    """Where the quantities come from, best first."""

    REPORTED = "reported"
    """The backend said so."""
    COUNTED = "counted"
    """The gateway counted what it delivered."""
    ESTIMATED = "estimated"
    """The gateway computed an upper or likely value."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Quantities of one request. Whole units, each >= 0; a meter that is absent counts zero."""

    quantities: Mapping[Meter, int]
    source: UsageSource
