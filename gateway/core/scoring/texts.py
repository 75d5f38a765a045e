"""Scorers of short texts: equal after normalisation, the right label, the right number.

Floor: core (pure).
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from gateway.core.scoring.json_text import find_json

MAX_LETTERS: Final = 1_000_000
"""Of an answer; what comes after is not looked at."""
_BLANKS: Final = re.compile(r"\s+")
_EDGES: Final = " \t\r\n.,;:!?\"'`*_()[]{}<>“”‘’"
_NUMBER: Final = re.compile(r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d{1,3})?")

_PLAIN_NUMBER: Final = re.compile(r"([-+]?)(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_NO: Final = re.compile(
    r"\b(?:not|no|never|neither|nor|nothing|without|cannot"
    r"|(?:is|are|was|were|do|does|did|ca|wo|would|could|should|has|have|had)n t)\b"
)
"""Words that turn a sentence round; "isn t" is what is left of "isn't"."""


def normal(text: str) -> str:
    """A text as it is compared: Unicode's compatible form, without case, one blank between words, no marks around."""
    plain = _BLANKS.sub(" ", unicodedata.normalize("NFKC", text[:MAX_LETTERS]).casefold()).strip()
    # A text of nothing but marks is what it is, and the point of .5 is no mark.
    bare = plain.strip(_EDGES) or plain
    return f".{bare}" if bare[:1].isdigit() and f" {plain}".split(bare, 1)[0].endswith(".") else bare


def without_thought(output: str) -> str:
    """An answer without what the model thought aloud before it, which ends with the last ``</think>``."""
    return output.rpartition("</think>")[2]


def value_of(value: Any) -> str:
    """A JSON scalar as it is compared: a number by its value, however it is written; "" for null and the empty text.

    A text with leading zeros is no number, because codes and the numbers of invoices are none.
    """
    text = normal(text_of(value))
    number = _PLAIN_NUMBER.fullmatch(text)
    if number is None:
        return text
    sign, whole, fraction = number[1], number[2], (number[3] or "").rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return f"-{size}" if sign == "-" and size != "0" else size


def text_of(value: Any) -> str:
    """A good answer as text. Numbers are written as they are meant: 24 and 24.0 are the same."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    return "" if value is None else str(value)


def exact_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the answer is the good one, or one of several; else 0.

    SQuAD's *exact match*, with its idea of what does not count (case, blanks, marks around) and without its dropping of
    articles, which are words of other languages.
    """
    del settings
    goods = expected if isinstance(expected, list) else [expected]
    given = normal(output)
    return float(any(_is(good, given, output) for good in goods))


def _is(good: Any, given: str, output: str) -> bool:
    if not isinstance(good, dict):
        return normal(text_of(good)) == given
    found = find_json(output)
    return isinstance(found, dict) and found == good


def label_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the answer names the right label and no other; else 0.

    That is the macro F1 of one row: with one label for each row, precision and recall of the row are both 1 or both 0.
    The mean over rows is therefore accuracy; see the decision record on scores.

    Settings:
        labels: all labels of the task. An answer in a sentence counts if it names exactly one of them and, outside of
        it, denies nothing: "this is not spam" does not say spam.
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
    return float(named == {label} and _NO.search(rest) is None)


def numeric_match(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """1 if the last number of the answer is the good one, within a tolerance.

    Settings:
        tolerance: relative, 0 unless it is told.
    """
    good = number_of(text_of(expected))
    found = _NUMBER.findall(output[-10_000:])
    given = number_of(found[-1]) if found else None
    if good is None or given is None:
        return 0.0
    tolerance = Decimal(str(settings.get("tolerance", 0)))
    return float(abs(given - good) <= abs(good) * tolerance)


def number_of(text: str) -> Decimal | None:
    """The first number in a text."""
    found = _NUMBER.search(text)
    if found is None:
        return None
    try:
        return Decimal(found.group().replace(",", ""))
    except InvalidOperation:
        return None


def _words(text: str) -> str:
    return re.sub(r"[^\w]+", " ", text).strip()
