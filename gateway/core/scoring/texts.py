"""Scorers of short texts: equal after normalisation, the right label, the right number.

Floor: core (pure).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

MAX_LETTERS: Final = 1_000_000
"""Of an answer; what comes after is not looked at."""
_BLANKS: Final = re.compile(r"\s+")
_EDGES: Final = " \t\r\n.,;:!?\"'`*_()[]{}<>“”‘’"
_NUMBER: Final = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")


def normal(text: str) -> str:
    """A text as it is compared: Unicode's compatible form, without case, one blank between words, no marks around."""
    plain = unicodedata.normalize("NFKC", text[:MAX_LETTERS]).casefold()
    return _BLANKS.sub(" ", plain).strip(_EDGES)


def text_of(value: Any) -> str:
    """A good answer as text. Numbers are written as they are meant: 24 and 24.0 are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def exact_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the answer is the good one, or one of several; else 0.

    SQuAD's *exact match*, with its idea of what does not count (case, blanks, marks around) and without its dropping of
    articles, which are words of other languages.
    """
    del settings
    goods = expected if isinstance(expected, list) else [expected]
    given = normal(output)
    return float(any(normal(text_of(good)) == given for good in goods))


def label_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the answer names the right label and no other; else 0.

    That is the macro F1 of one row: with one label for each row, precision and recall of the row are both 1 or both 0.
    The mean over rows is therefore accuracy; see the decision record on scores.

    Settings:
        labels: all labels of the task. An answer in a sentence counts if it names exactly one of them.
    """
    label, given = normal(text_of(expected)), normal(output)
    if given == label:
        return 1.0
    labels = [normal(text_of(one)) for one in settings.get("labels", ())]
    if given in labels:
        return 0.0
    # Longer labels first, so that "not spam" is not taken for "spam".
    rest, named = f" {_words(given)} ", set()
    for one in sorted({*labels, label}, key=len, reverse=True):
        words = f" {_words(one)} "
        if words.strip() and words in rest:
            named.add(one)
            rest = rest.replace(words, "  ")
    return float(named == {label})


def numeric_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the last number of the answer is the good one, within a tolerance.

    Settings:
        tolerance: relative, 0 unless it is told.
    """
    good = _number(text_of(expected))
    found = _NUMBER.findall(output[-10_000:])
    given = _number(found[-1]) if found else None
    if good is None or given is None:
        return 0.0
    tolerance = Decimal(str(settings.get("tolerance", 0)))
    return float(abs(given - good) <= abs(good) * tolerance)


def _number(text: str) -> Decimal | None:
    found = _NUMBER.search(text)
    if found is None:
        return None
    try:
        return Decimal(found.group().replace(",", ""))
    except InvalidOperation:
        return None


def _words(text: str) -> str:
    return re.sub(r"[^\w]+", " ", text).strip()
