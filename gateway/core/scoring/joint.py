"""Joint F1: records count only if everything in them is right.

Floor: core (pure). Named-entity evaluation asks for kind and text together (Tjong Kim Sang and De Meulder, CoNLL-2003:
"a named entity is correct only if it is an exact match"). A record is an entry of the answer's list (``entities``),
with all of its fields; of an object that has no such list each top-level field is a record, whose kind is the field's
name. ``joint_f1`` is the F1 over all records of a row; ``macro_joint_f1`` the mean of the F1 of each kind that the
gold or the answer has, so that rare kinds count as much as common ones.
Settings: ``list_field`` ("entities"), ``kind_field`` ("type").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final

from gateway.core.scoring.fields import answered_object, gold_object, object_problem, whole_value
from gateway.core.scoring.plain import canonical
from gateway.core.scoring.values import Counts, Scorer, ScoreResult, Settings, macro, micro

_MAX_OTHER_KINDS: Final = 50
_MAX_KIND_CHARS: Final = 100
Records = Mapping[str, Counter[str]]


def records(value: Mapping[str, object], settings: Settings) -> Records:
    """What an object holds, by kind: each record as one text, as often as it stands there."""
    list_field, kind_field = _name(settings, "list_field", "entities"), _name(settings, "kind_field", "type")
    entries = value.get(list_field)
    found: dict[str, Counter[str]] = {}
    if isinstance(entries, list):
        for entry in entries:
            kind = canonical(_scalar(entry.get(kind_field))) if isinstance(entry, dict) else None
            found.setdefault(kind or "", Counter())[whole_value(entry)] += 1
    else:
        for name, member in value.items():
            said = whole_value(member)
            if said not in ("", "{}", "[]"):
                found.setdefault(name, Counter())[said] += 1
    return found


def _counts(expected: object, output: str, settings: Settings) -> tuple[dict[str, Counts], bool]:
    gold = records(gold_object(expected) or {}, settings)
    answer = answered_object(output)
    found = records(answer or {}, settings)
    counts: dict[str, Counts] = {}
    # Sorted, because sums of fractions depend on their order.
    for kind in sorted(gold.keys() | found.keys()):
        wanted, given = gold.get(kind, Counter()), found.get(kind, Counter())
        right = (wanted & given).total()
        counts[kind] = Counts(right, given.total() - right, wanted.total() - right)
    return counts, answer is not None


def _joint(expected: object, output: str, settings: Settings) -> ScoreResult:
    counts, readable = _counts(expected, output, settings)
    together = Counts(0, 0, 0)
    for one in counts.values():
        together = together.plus(one)
    return ScoreResult(together.f1() if readable else 0.0, _reason(counts, readable), {"": together})


def _macro_joint(expected: object, output: str, settings: Settings) -> ScoreResult:
    counts, readable = _counts(expected, output, settings)
    score = sum(one.f1() for one in counts.values()) / len(counts) if counts else 1.0
    return ScoreResult(score if readable else 0.0, _reason(counts, readable), _kept(counts))


def _kept(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """The gold's kinds, and as many others as can be stored."""
    others = [kind for kind, one in counts.items() if not one.right + one.missed]
    dropped = set(others[_MAX_OTHER_KINDS:]) | {kind for kind in others if len(kind) > _MAX_KIND_CHARS}
    return {kind: one for kind, one in counts.items() if kind not in dropped}


def _reason(counts: Mapping[str, Counts], readable: bool) -> str:
    if not readable:
        return "The answer holds no JSON object."
    right, wrong, missed = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0, 0)
    return f"{right} of {right + missed} records right, {wrong} wrong or not asked for."


def _name(settings: Settings, name: str, default: str) -> str:
    value = settings.get(name, default)
    return value if isinstance(value, str) else default


def _scalar(value: object) -> object:
    return None if isinstance(value, dict | list) else value


JOINT_F1: Final = Scorer("joint_f1", _joint, object_problem, micro)
MACRO_JOINT_F1: Final = Scorer("macro_joint_f1", _macro_joint, object_problem, macro)
