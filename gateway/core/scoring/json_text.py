"""Finding JSON in what a model wrote: alone, in a fence, or with words around it.

Floor: core (pure). Stricter than most readers in two points of RFC 8259: NaN and Infinity are no JSON (section 6), and
an object that has a name twice (section 4) says two things, of which none is taken. What is refused is refused as a
whole: no part of it is looked for either. Hostile answers cost no more than honest ones: length, depth and the number
of places tried are bounded.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_LETTERS: Final = 1_000_000
MAX_DEPTH: Final = 64
TRIES: Final = 20
"""Places where JSON may begin; an answer of nothing but braces must not cost a minute."""
_FENCE: Final = re.compile(r"```[a-zA-Z0-9_+-]{0,30}[ \t]*\r?\n(.*?)```", re.DOTALL)
_OPENING: Final = re.compile(r"[{\[]")
NOTHING: Final = object()
"""There is no JSON in it."""


class _Refused(Exception):
    """There is JSON, and it must not be used."""


def find_json(output: str) -> Any:
    """The value that a model wrote, or `NOTHING`.

    The whole answer if that is JSON; else the longest fence that is; else the longest object or array that begins at
    one of the first brackets, so that a reference such as [1] is not taken for the answer.
    """
    text = output[:MAX_LETTERS].strip()
    fences = sorted((found.group(1).strip() for found in _FENCE.finditer(text)), key=len, reverse=True)
    try:
        for piece in (text, *fences[:TRIES]):
            found = _read(piece, 0)
            if found is not None and found[1] == len(piece):
                return found[0]
        return _longest(text)
    except _Refused:
        return NOTHING


def find_code(output: str) -> str:
    """What a model wrote as code: the first fence, or the whole answer."""
    text = output[:MAX_LETTERS]
    found = _FENCE.search(text)
    return (found.group(1) if found is not None else text).strip()


def _longest(text: str) -> Any:
    best: tuple[int, Any] = (0, NOTHING)
    place = 0
    for _ in range(TRIES):
        opening = _OPENING.search(text, place)
        if opening is None:
            break
        start = opening.start()
        found = _read(text, start)
        place = start + 1 if found is None else found[1]
        if found is not None and found[1] - start > best[0]:
            best = (found[1] - start, found[0])
    return best[1]


def _read(text: str, start: int) -> tuple[Any, int] | None:
    """The value that begins here and where it ends; None if none does.

    Raises:
        _Refused.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
    except RecursionError as error:
        raise _Refused from error
    except ValueError:
        return None
    if _too_deep(value):
        raise _Refused
    return value, end


def _too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused
    return found


def _no_constant(_: str) -> Any:
    raise _Refused


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)
