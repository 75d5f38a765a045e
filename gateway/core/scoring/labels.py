"""Labels: accuracy, and macro F1 over a set.

Floor: core (pure). A row's score is 1 for the right label and 0 for another, under both names; the mean over a set is
its accuracy. ``macro_f1`` also has the set's own figure: F1 of each label from the counts of all rows, then their
plain mean (Sokolova and Lapalme, "A systematic analysis of performance measures for classification tasks", 2009; as
scikit-learn's ``average="macro"``, over the labels that the gold has; see ``values.macro``).

The label in a model's text is the text itself (see ``plain.bare``); else the value of a JSON object's only text or of
its member ``label``; else what stands behind the last colon of the last line ("Label: spam"). A label is never looked
for in the middle of a sentence: "this is not spam" does not say spam.
Settings: ``labels``, the texts allowed; an answer outside them counts as no label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.core.scoring.fields import answered_object
from gateway.core.scoring.plain import bare, said
from gateway.core.scoring.values import Counts, Scorer, ScoreResult, Settings, macro

_MAX_LABEL_CHARS: Final = 200


def label_of(output: str, allowed: frozenset[str]) -> str | None:
    """The label that a text says, normalised; none if it says none of those allowed (with none given: any)."""
    for text in _readings(output):
        if len(text) <= _MAX_LABEL_CHARS:
            label = bare(text)
            if label and (label in allowed or not allowed):
                return label
    return None


def _readings(output: str) -> Iterator[str]:
    text = said(output)
    found = answered_object(output) if "{" in text else None
    if found is None:
        yield text
    else:
        named = found.get("label", next(iter(found.values()), None) if len(found) == 1 else None)
        if isinstance(named, str):
            yield named
    last = text.rpartition("\n")[2]
    yield last.rpartition(":")[2]


def _score(expected: object, output: str, settings: Settings) -> ScoreResult:
    gold = bare(str(expected))
    label = label_of(output, _allowed(settings))
    if label == gold:
        return ScoreResult(1.0, "The label is right.", {gold: Counts(1, 0, 0)})
    counts = {gold: Counts(0, 0, 1)}
    if label is None:
        return ScoreResult(0.0, "The answer is none of the labels.", counts)
    return ScoreResult(0.0, "The label is another.", counts | {label: Counts(0, 1, 0)})


def _allowed(settings: Settings) -> frozenset[str]:
    labels = settings.get("labels")
    return (
        frozenset(bare(label) for label in labels if isinstance(label, str))
        if isinstance(labels, list)
        else frozenset()
    )


def _problem(expected: object, settings: Settings) -> str | None:
    if not isinstance(expected, str | int) or isinstance(expected, bool) or not bare(str(expected)):
        return "The expected label is not a text."
    allowed = _allowed(settings)
    return (
        "The expected label is none of the task's labels." if allowed and bare(str(expected)) not in allowed else None
    )


LABEL_ACCURACY: Final = Scorer("label_accuracy", _score, _problem)
MACRO_F1: Final = Scorer("macro_f1", _score, _problem, macro)
