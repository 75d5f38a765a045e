"""F1 over the fields of JSON objects.

Floor: core (pure). An object is a set of statements (path, value): precision is how many of the answer's statements
are in the gold, recall how many of the gold's are in the answer, F1 their harmonic mean (van Rijsbergen, "Information
Retrieval", 1979, chapter 7, with equal weights). Places in a list have no number: a list is a bag. A field that is
null, empty or not there states nothing; where neither states anything they agree, 1. A wrong value costs twice, as
something wrong and as something missed, as everywhere in extraction.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Final

from gateway.core.scoring.answers import NoJson, extract_json, read, too_deep
from gateway.core.scoring.plain import canonical
from gateway.core.scoring.values import Counts, Scorer, ScoreResult, Settings, micro

Path = tuple[str, ...]
_ANY_PLACE: Final = "[]"


def statements(value: object, path: Path = ()) -> Counter[tuple[Path, str]]:
    """What a JSON value states: each path with a value, as often as it is stated."""
    if isinstance(value, dict):
        parts = [(member, (*path, name)) for name, member in value.items()]
    elif isinstance(value, list):
        parts = [(member, (*path, _ANY_PLACE)) for member in value]
    else:
        said = canonical(value)
        return Counter() if said is None else Counter({(path, said): 1})
    found: Counter[tuple[Path, str]] = Counter()
    for member, below in parts:
        found.update(statements(member, below))
    return found


def whole_value(value: object) -> str:
    """A JSON value as one text that is equal for values which say the same; lists are bags here too."""
    return json.dumps(_whole(value), ensure_ascii=False, sort_keys=True) if _nested(value) else canonical(value) or ""


def compare(gold: Counter[tuple[Path, str]], found: Counter[tuple[Path, str]]) -> Counts:
    """What is rightly stated, wrongly stated and missed."""
    right = (gold & found).total()
    return Counts(right, found.total() - right, gold.total() - right)


def gold_object(expected: object) -> dict[str, object] | None:
    """The gold, also where it is written as JSON text; none if it is no object."""
    if isinstance(expected, str):
        try:
            expected = read(expected.strip())
        except NoJson:
            return None
    return expected if isinstance(expected, dict) and not too_deep(expected) else None


def object_problem(expected: object, _: Settings) -> str | None:
    """Why a gold is no object to compare with."""
    return None if gold_object(expected) is not None else "The expected value is no JSON object of ordinary depth."


def answered_object(output: str) -> dict[str, object] | None:
    """The object in a model's text; none if there is no usable one."""
    try:
        found = extract_json(output)
    except NoJson:
        return None
    return found if isinstance(found, dict) else None


def _score(expected: object, output: str, _: Settings) -> ScoreResult:
    gold = statements(gold_object(expected))
    answer = answered_object(output)
    if answer is None:
        return ScoreResult(0.0, "The answer holds no JSON object.", {"": Counts(0, 0, gold.total())})
    counts = compare(gold, statements(answer))
    reason = f"{counts.right} of {gold.total()} fields right, {counts.wrong} wrong or not asked for."
    return ScoreResult(counts.f1(), reason, {"": counts})


def _nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _whole(value: object) -> object:
    if isinstance(value, dict):
        parts = {name: _whole(member) for name, member in value.items()}
        return {name: part for name, part in parts.items() if part not in (None, {}, [])}
    if isinstance(value, list):
        members = [part for part in map(_whole, value) if part not in (None, {}, [])]
        return sorted(members, key=lambda part: json.dumps(part, ensure_ascii=False, sort_keys=True))
    return canonical(value)


FIELD_F1: Final = Scorer("field_f1", _score, object_problem, micro)
