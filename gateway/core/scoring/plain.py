"""Texts and values brought to a form in which equal things are equal.

Floor: core (pure).
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

_QUOTES: Final = "\"'`*“”‘’«»"
_NUMBER: Final = re.compile(r"([+-]?)(0|[1-9][0-9]{0,29})(?:\.([0-9]{1,30}))?")
_THOUGHT: Final = "</think>"


def said(output: str) -> str:
    """The answer without what a model thought aloud before it (up to the last ``</think>``)."""
    return output.rpartition(_THOUGHT)[2].strip()


def plain(text: str, *, case_sensitive: bool = False) -> str:
    """Unicode's NFKC form, case folded unless told otherwise, every run of white space one space, none at the ends."""
    text = unicodedata.normalize("NFKC", text)
    if not case_sensitive:
        # Folding may undo the composed form, so that is restored.
        text = unicodedata.normalize("NFKC", text.casefold())
    return " ".join(text.split())


def bare(text: str, *, case_sensitive: bool = False) -> str:
    """``plain``, without quotes and marks of emphasis around it and without a full stop behind it."""
    text = plain(text, case_sensitive=case_sensitive)
    previous = None
    while text != previous:
        previous = text
        text = text.strip(_QUOTES).removesuffix(".").strip()
    return text


def canonical(value: object) -> str | None:
    """A JSON scalar as text, such that values which say the same are equal; None where nothing is said.

    ``null`` and the empty text say nothing. Numbers are equal by value, also when written as text ("118.40" is 118.4);
    a text with leading zeros is no number, because codes and numbers of invoices are not either. Texts are ``plain``.
    """
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    text = plain(repr(value) if isinstance(value, float) else str(value))
    number = _NUMBER.fullmatch(text)
    if number is None:
        return text or None
    sign, whole, fraction = number[1], number[2], (number[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if sign == "-" and size != "0" else size
