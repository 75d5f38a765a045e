"""Finding JSON in what a model wrote: alone, in a fence, or with words around it.

Floor: core (pure).
"""

from __future__ import annotations

import re
from typing import Any, Final

import orjson

MAX_LETTERS: Final = 1_000_000
TRIES: Final = 50
"""Places where JSON may begin; an answer of nothing but braces must not cost a minute."""
_FENCE: Final = re.compile(r"```[a-zA-Z0-9_+-]*[ \t]*\r?\n(.*?)```", re.DOTALL)
NOTHING: Final = object()
"""There is no JSON in it."""


def find_json(output: str) -> Any:
    """The value that a model wrote, or `NOTHING`.

    The whole answer if that is JSON; else what is in its first fence that is; else the first object or array.
    """
    text = output[:MAX_LETTERS]
    for piece in (text, *(found.group(1) for found in _FENCE.finditer(text))):
        value = _read(piece.strip())
        if value is not NOTHING:
            return value
    starts = (place for place, letter in enumerate(text) if letter in "{[")
    for _, start in zip(range(TRIES), starts, strict=False):
        end = _end(text, start)
        value = _read(text[start:end]) if end else NOTHING
        if value is not NOTHING:
            return value
    return NOTHING


def find_code(output: str) -> str:
    """What a model wrote as code: the first fence, or the whole answer."""
    text = output[:MAX_LETTERS]
    found = _FENCE.search(text)
    return (found.group(1) if found is not None else text).strip()


def _read(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return NOTHING


def _end(text: str, start: int) -> int:
    """Where the object or array that begins here ends; 0 if it does not."""
    depth, in_text, place = 0, False, start
    while place < len(text):
        letter = text[place]
        if in_text:
            if letter == "\\":
                place += 1
            elif letter == '"':
                in_text = False
        elif letter == '"':
            in_text = True
        elif letter in "{[":
            depth += 1
        elif letter in "}]":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return 0
