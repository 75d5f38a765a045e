"""Whether a row's good answer is one that the task's scorer can use.

Floor: core (pure). A row that nobody can answer rightly would cost its price for each model and pull every mean down:
it is found before anything is spent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from gateway.core.scoring.json_text import find_json
from gateway.core.scoring.texts import normal, number_of, text_of


def gold_problem(scorer: str, expected: Any, settings: Mapping[str, Any]) -> str | None:
    """Why a good answer cannot be used, as the end of a sentence; None if it can, or if the scorer takes anything."""
    check = _CHECKS.get(scorer)
    return check(expected, settings) if check is not None else None


def _object(expected: Any, settings: Mapping[str, Any]) -> str | None:
    del settings
    value = find_json(expected) if isinstance(expected, str) else expected
    return None if isinstance(value, dict) else "must be a JSON object"


def _entities(expected: Any, settings: Mapping[str, Any]) -> str | None:
    value = find_json(expected) if isinstance(expected, str) else expected
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        return None
    return None if _object(expected, settings) is None else "must be a JSON object or a list of entities"


def _label(expected: Any, settings: Mapping[str, Any]) -> str | None:
    # One that the task does not know is the caller's own, and counts.
    del settings
    return None if not isinstance(expected, dict | list) and normal(text_of(expected)) else "must be a label"


def _number(expected: Any, settings: Mapping[str, Any]) -> str | None:
    del settings
    usable = not isinstance(expected, bool | dict | list) and number_of(text_of(expected)) is not None
    return None if usable else "must be a number"


def _text(expected: Any, settings: Mapping[str, Any]) -> str | None:
    del settings
    return None if not isinstance(expected, dict | list) and text_of(expected).strip() else "must be a text"


_CHECKS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], str | None]]] = {
    "field_f1": _object,
    "macro_joint_f1": _entities,
    "macro_f1": _label,
    "numeric": _number,
    "rouge_1": _text,
    "rouge_2": _text,
    "rouge_l": _text,
    "bleu": _text,
    "execution_accuracy": _text,
}
