"""The JSON in a model's text.

Floor: core (pure). Models write JSON as it is, in a fence, behind a sentence or before one. Hostile texts cost no more
than honest ones: length, depth and the number of places tried are bounded.

Source: RFC 8259. Stricter than many readers in two points: NaN and Infinity are no JSON (section 6), and an object that
has one name twice (section 4, "SHOULD be unique") says two things, of which none is taken.
"""

from __future__ import annotations

import json
import re
from typing import Final

from gateway.core.scoring.plain import said

MAX_DEPTH: Final = 64
_MAX_STARTS: Final = 20
"""Places in a text at which a value is tried."""
_FENCE: Final = re.compile(r"```[^\n`]{0,30}\n(.*?)```", re.DOTALL)
_OPENING: Final = re.compile(r"[{\[]")


class NoJson(ValueError):
    """There is no JSON value in a text that can be used."""


class _Refused(NoJson):
    """There is one, and it must not be used; nor may a part of it."""


def extract_json(output: str) -> object:
    """The value that a text means.

    That is the whole text, if it is JSON; else the longest fenced block that is; else the longest object or array that
    begins at one of the first opening brackets.

    Raises:
        NoJson: there is none; also where every one is too deep, says a name twice or holds NaN.
    """
    text = said(output)
    try:
        return read(text)
    except _Refused:
        raise
    except NoJson:
        pass
    for block in sorted(_FENCE.findall(text)[:_MAX_STARTS], key=len, reverse=True):
        try:
            return read(block.strip())
        except _Refused:
            raise
        except NoJson:
            continue
    best: tuple[int, object] | None = None
    place = 0
    for _ in range(_MAX_STARTS):
        opening = _OPENING.search(text, place)
        if opening is None:
            break
        place = opening.start() + 1
        try:
            value, end = _read_at(text, opening.start())
        except _Refused:
            raise
        except NoJson:
            continue
        length = end - opening.start()
        place = end
        if best is None or length > best[0]:
            best = (length, value)
    if best is None:
        raise NoJson("The answer holds no JSON.")
    return best[1]


def read(text: str) -> object:
    """A text that is one JSON value and nothing else.

    Raises:
        NoJson: it is not.
    """
    value, end = _read_at(text, 0)
    if text[end:].strip():
        raise NoJson("The answer is not one JSON value.")
    return value


def too_deep(value: object) -> bool:
    """Whether a value nests deeper than ``MAX_DEPTH``."""
    level: list[object] = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[object] = []
        for one in level:
            if isinstance(one, dict):
                below.extend(one.values())
            elif isinstance(one, list):
                below.extend(one)
        if not below:
            return False
        level = below
    return True


def _read_at(text: str, start: int) -> tuple[object, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except _Refused:
        raise
    except RecursionError as error:
        raise _Refused("The JSON nests too deep.") from error
    except ValueError as error:
        raise NoJson("The answer is not JSON.") from error
    if too_deep(value):
        raise _Refused("The JSON nests too deep.")
    return value, end


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Refused("A name stands twice.")
    return found


def _no_constant(_: str) -> object:
    raise _Refused("NaN and Infinity are no JSON.")


def _number(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused("A number is too large.")
    return value


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_number)
