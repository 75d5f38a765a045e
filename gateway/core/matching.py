"""Which task a sentence means: a deterministic scorer by keywords.

Floor: core (pure). Words are brought to their stems (Snowball's English stemmer); a task knows a word by its keywords
best, then by its title, its description and its category. A word counts the more the fewer tasks know it. The score of
a task is how much of what the sentence says it knows (coverage), held down where that is little in all (strength). The
same sentence and the same tasks give the same scores, everywhere.

Sources: contract section 2.4.3; inverse document frequency as in Robertson, "Understanding Inverse Document Frequency"
(2004), scaled to 1.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from snowballstemmer import stemmer

HIGH: Final = 0.6
MEDIUM: Final = 0.35
"""From this score on a task is a match."""
CLOSE: Final = 0.1
"""Two best scores nearer than this are ambiguous."""

_KEYWORD, _TITLE, _DESCRIPTION, _CATEGORY = 1.0, 0.9, 0.6, 0.3
_PHRASE_BONUS: Final = 0.6
"""What a keyword of several words adds when all of them stand together, in words of weight 1."""
_UNKNOWN: Final = 0.12
"""What a word that no task knows takes from the coverage, of a word that counts 1."""
_MOST_UNKNOWN: Final = 5
_HALF: Final = 0.45
"""The evidence at which strength is one half."""
_WORD: Final = re.compile(r"[^\W_]+")
MAX_WORDS: Final = 400

_STOP_WORDS: Final = """
    a about above after all also am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further had has have having he her here hers him
    his how i if in into is it its just let like me more most my need needs no nor not of off on once only or
    other our out over own please same she should so some such than that the their them then there these they
    this those through to too under until up us very via want wants was we were what when where which while who
    why will with would you your something anything thing things stuff get give make using use used able help
    really one two good best thank thanks hello hi hey today tell show know come go going much many now new
    every per within without
"""
_STOP: Final = frozenset(_STOP_WORDS.split())


class Described(Protocol):
    """What is known of a task in words."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def title(self) -> str:
        """A few words."""

    @property
    def description(self) -> str:
        """A sentence or two."""

    @property
    def category(self) -> str:
        """A word."""

    @property
    def keywords(self) -> Sequence[str]:
        """Words and phrases that people use for it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A task and how well it fits, 0 to 1."""

    task_id: str
    score: float

    @property
    def confidence(self) -> str:
        """``high``, ``medium`` or ``low``."""
        return "high" if self.score >= HIGH else "medium" if self.score >= MEDIUM else "low"


@dataclass(frozen=True, slots=True)
class Match:
    """What a sentence may mean.

    Attributes:
        candidates: the best first; none if no word is known.
        chosen: the first, if it fits well enough.
        ambiguous: whether the second fits nearly as well.
    """

    candidates: tuple[Candidate, ...]
    chosen: Candidate | None
    ambiguous: bool


class Matcher:
    """Knows the words of tasks.

    Args:
        tasks: in the order that decides between equal scores.
    """

    def __init__(self, tasks: Iterable[Described]) -> None:
        self._stem = stemmer("english").stemWord
        self._tasks: list[tuple[str, Mapping[str, float], frozenset[tuple[str, ...]]]] = []
        for task in tasks:
            weights: dict[str, float] = {}
            phrases: set[tuple[str, ...]] = set()
            for text, weight in (
                (task.category, _CATEGORY),
                (task.description, _DESCRIPTION),
                (task.title, _TITLE),
                *((keyword, _KEYWORD) for keyword in task.keywords),
            ):
                words = self._words(text)
                for word in words:
                    weights[word] = max(weights.get(word, 0.0), weight)
                if weight == _KEYWORD and len(words) > 1:
                    phrases.add(tuple(words))
            self._tasks.append((task.id, weights, frozenset(phrases)))
        known_by: dict[str, int] = {}
        for _, words_of_it, _ in self._tasks:
            for word in words_of_it:
                known_by[word] = known_by.get(word, 0) + 1
        most = math.log(1 + len(self._tasks))
        self._rarity = {word: math.log(1 + len(self._tasks) / count) / most for word, count in known_by.items()}

    def match(self, query: str, top_k: int) -> Match:
        """Rank the tasks for a sentence; at most ``top_k`` of them."""
        words = self._words(query)
        asked = list(dict.fromkeys(words))
        known = [word for word in asked if word in self._rarity]
        possible = sum(self._rarity[word] for word in known)
        possible += _UNKNOWN * min(_MOST_UNKNOWN, len(asked) - len(known))
        pairs = {tuple(words[place : place + size]) for size in (2, 3) for place in range(len(words) - size + 1)}
        found: list[Candidate] = []
        for task_id, weights, phrases in self._tasks:
            evidence = sum(self._rarity[word] * weights.get(word, 0.0) for word in known)
            if not evidence:
                continue
            bonus = _PHRASE_BONUS * len(pairs & phrases)
            coverage = min(1.0, (evidence + bonus) / (possible + bonus))
            strength = (evidence + bonus) / (evidence + bonus + _HALF)
            found.append(Candidate(task_id, round(coverage * strength, 4)))
        found.sort(key=lambda one: -one.score)  # stable: equal ones stay in the order of the catalogue
        best = found[0] if found and found[0].score >= MEDIUM else None
        ambiguous = len(found) > 1 and found[0].score - found[1].score < CLOSE
        return Match(tuple(found[:top_k]), best, ambiguous)

    def _words(self, text: str) -> list[str]:
        """The stems of what a text says, in its order."""
        plain = unicodedata.normalize("NFKC", text).lower()
        words = [found[0] for found in _WORD.finditer(plain)][:MAX_WORDS]
        return [self._stem(word) for word in words if word not in _STOP and (len(word) > 1 or word.isdigit())]
