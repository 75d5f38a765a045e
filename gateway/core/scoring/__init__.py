"""Scorers: how good an answer is, from 0 to 1, as pure functions.

Floor: core (pure). A scorer is told the good answer, what the model wrote, and the task's settings. Whatever a model
writes is an answer, however odd: it scores low and never raises. What needs a library, a database or a model itself is
called by `gateway.control.evals.grading`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core.scoring.fields import entity_f1, field_f1
from gateway.core.scoring.rouge import rouge_l, rouge_n
from gateway.core.scoring.texts import exact_match, label_match, numeric_match

Scorer = Callable[[Any, str, Mapping[str, Any]], float]
"""``scorer(expected, output, settings) -> 0..1``."""

SCORERS: Final[Mapping[str, Scorer]] = {
    "exact_match": exact_match,
    "macro_f1": label_match,
    "field_f1": field_f1,
    "macro_joint_f1": entity_f1,
    "numeric": numeric_match,
    "rouge_1": rouge_n(1),
    "rouge_2": rouge_n(2),
    "rouge_l": rouge_l,
}
"""Those that need nothing but the texts."""

__all__ = ["SCORERS", "Scorer"]
