"""ROUGE: how much of a good summary stands in another one.

Floor: core (pure). Lin's measures of 2004 as F1: ROUGE-N counts shared runs of N words, ROUGE-L the longest common
subsequence. Words are runs of letters and digits without case, stemmed by Porter when they are longer than three
letters, which is what the usual implementation does for English; letters of other scripts count as well here.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import snowballstemmer

from gateway.core.scoring.fields import f1
from gateway.core.scoring.texts import text_of

MAX_LETTERS: Final = 20_000
"""Of each text: the time of a longest common subsequence grows with the product of both."""
_WORD: Final = re.compile(r"[^\W_]+")
_SHORT: Final = 3


def rouge_n(words: int) -> Callable[[Any, str, Mapping[str, Any]], float]:
    """A scorer by shared runs of so many words."""

    def score(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
        del settings
        good, given = _words(text_of(expected)), _words(output)
        return f1(_runs(good, words), _runs(given, words)) if len(good) >= words else 0.0

    return score


def rouge_l(expected: Any, output: str, settings: Mapping[str, Any]) -> float:
    """F1 of the longest common subsequence of words."""
    del settings
    good, given = _words(text_of(expected)), _words(output)
    if not good or not given:
        return float(not good and not given)
    return 2 * longest_common(good, given) / (len(good) + len(given))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The length of the longest common subsequence.

    With a bit for each word of the one, as Hyyrö's algorithm does it: a row of the usual table is one sum of integers.
    """
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(one)) - 1
    row = whole
    for word in other:
        shared = row & places.get(word, 0)
        row = (row + shared | row - shared) & whole
    return len(one) - row.bit_count()


def _runs(words: Sequence[str], length: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(length)), strict=False))


def _words(text: str) -> list[str]:
    return [_stem(word) for word in _WORD.findall(text[:MAX_LETTERS].lower())]


@lru_cache(maxsize=10_000)
def _stem(word: str) -> str:
    stem: str = _PORTER.stemWord(word) if len(word) > _SHORT else word
    return stem


_PORTER: Final = snowballstemmer.stemmer("porter")
