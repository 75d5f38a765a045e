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
from gateway.core.scoring.texts import normal, text_of, value_of

MAX_LEAVES: Final = 10_000
MAX_DEPTH: Final = 50


def field_f1(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """F1 over the fields of a JSON object: a field is a hit if its value is the good one after normalisation.

    Nested objects count by their paths; the items of an array count as a bag under its path, so that their order does
    not. Fields without a value (null, empty) count as absent on both sides.
    """
    del settings
    wanted, given = _object(expected), find_json(output)
    # Whoever gives no object has not answered, also where no field has a value.
    return f1(_leaves(wanted), _leaves(given)) if isinstance(wanted, dict) and isinstance(given, dict) else 0.0


def entity_f1(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """Mean over the types of the F1 of entities, each a type and a text that must both be right.

    The good answer is ``{"entities": [{"type", "text"}, …]}``, or such a list; so is the model's. Of an object without
    entities each field is a type, whose value has to be right as a whole. Types that stand on neither side do not
    count.
    """
    del settings
    wanted, given = _entities(_object(expected)), _entities(find_json(output))
    if wanted is None or given is None:
        return 0.0
    # Sorted, because a sum of fractions depends on its order, and the order of a set on the process.
    types = sorted(wanted.keys() | given.keys())
    if not types:
        return 1.0
    return sum(f1(wanted.get(kind, Counter()), given.get(kind, Counter())) for kind in types) / len(types)


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
        text = value_of(leaf)
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


def _entities(value: Any) -> Mapping[str, Counter[str]] | None:
    """The texts of each type; None if a value is neither a list nor an object."""
    rows = value.get("entities") if isinstance(value, dict) else value
    found: dict[str, Counter[str]] = {}
    if isinstance(rows, list):
        for row in rows[:MAX_LEAVES]:
            if isinstance(row, dict):
                kind, text = normal(text_of(row.get("type"))), value_of(row.get("text"))
                if kind and text:
                    found.setdefault(kind, Counter())[text] += 1
        return found
    if not isinstance(value, dict):
        return None
    for name, inner in list(value.items())[:MAX_LEAVES]:
        leaves = sorted(_leaves(inner).elements())
        if leaves:
            found.setdefault(normal(name), Counter())[repr(leaves)] += 1
    return found
