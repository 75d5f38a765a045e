"""Scorers of extraction: fields of an object, and entities with their types.

Floor: core (pure). F1 is the harmonic mean of precision (how much of what was given is right) and recall (how much of
what is right was given): 2·hits / (given + wanted), van Rijsbergen's measure with equal weights. Where neither wants
nor gives anything, the answer is right.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.core.scoring.json_text import NOTHING, find_json
from gateway.core.scoring.texts import normal, text_of

MAX_LEAVES: Final = 10_000
MAX_DEPTH: Final = 50


def field_f1(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """F1 over the fields of a JSON object: a field is a hit if its value is the good one after normalisation.

    Nested objects count by their paths; the items of an array count as a bag under its path, so that their order does
    not. Fields without a value (null, empty) count as absent on both sides.
    """
    del settings
    wanted = _leaves(_object(expected))
    found = find_json(output)
    given = _leaves(found) if isinstance(found, dict) else Counter()
    return f1(wanted, given)


def entity_f1(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """Mean over the types of the F1 of entities, each a type and a text that must both be right.

    The good answer is ``{"entities": [{"type", "text"}, …]}``, or such a list; so is the model's. Types that stand on
    neither side do not count.
    """
    del settings
    wanted, given = _entities(_object(expected)), _entities(find_json(output))
    types = {kind for kind, _ in wanted} | {kind for kind, _ in given}
    if not types:
        return 1.0
    return sum(f1(_of(wanted, kind), _of(given, kind)) for kind in types) / len(types)


def f1(wanted: Counter[Any], given: Counter[Any]) -> float:
    """F1 of two bags."""
    total = wanted.total() + given.total()
    return 2 * (wanted & given).total() / total if total else 1.0


def _object(value: Any) -> Any:
    """A good answer that was sent as text may be JSON."""
    if isinstance(value, str):
        found = find_json(value)
        return {} if found is NOTHING else found
    return value


def _leaves(value: Any) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for path, leaf in _walk(value, "", 0):
        text = normal(text_of(leaf))
        if text:
            found[path, text] += 1
            if found.total() >= MAX_LEAVES:
                break
    return found


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _walk(inner, f"{path}.{normal(str(name))}", depth + 1)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, f"{path}[]", depth + 1)
    else:
        yield path, value


def _entities(value: Any) -> Counter[tuple[str, str]]:
    rows = value.get("entities") if isinstance(value, dict) else value
    found: Counter[tuple[str, str]] = Counter()
    for row in rows[:MAX_LEAVES] if isinstance(rows, list) else ():
        if isinstance(row, dict):
            kind, text = normal(text_of(row.get("type"))), normal(text_of(row.get("text")))
            if kind and text:
                found[kind, text] += 1
    return found


def _of(bag: Counter[tuple[str, str]], kind: str) -> Counter[tuple[str, str]]:
    return Counter({one: count for one, count in bag.items() if one[0] == kind})
