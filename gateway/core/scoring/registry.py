"""Every scorer by its name.

Floor: core (pure).
"""

from __future__ import annotations

from typing import Final

from gateway.core.scoring.exact import EXACT_MATCH
from gateway.core.scoring.fields import FIELD_F1
from gateway.core.scoring.joint import JOINT_F1, MACRO_JOINT_F1
from gateway.core.scoring.labels import LABEL_ACCURACY, MACRO_F1
from gateway.core.scoring.numeric import NUMERIC
from gateway.core.scoring.values import Scorer

OUTSIDE: Final = frozenset({"execution_accuracy", "llm_judge"})
"""Scorers that need more than the two texts: a sandbox, a judge. They are not here, the evals have them."""

_SCORERS: Final = {
    scorer.name: scorer
    for scorer in (EXACT_MATCH, LABEL_ACCURACY, MACRO_F1, FIELD_F1, JOINT_F1, MACRO_JOINT_F1, NUMERIC)
}

NAMES: Final = frozenset(_SCORERS) | OUTSIDE
"""All names that a task may use."""


def scorer(name: str) -> Scorer:
    """The pure scorer of that name.

    Raises:
        KeyError: there is none; ``OUTSIDE`` are none of these.
    """
    return _SCORERS[name]
