"""What a scorer is, and what it says.

Floor: core (pure). A scorer looks at one row: the gold (any JSON value), the model's raw text and the task's settings.
Whatever the text is, it gets a score; a score never fails. Only a gold that the scorer cannot use is an error, and
``Scorer.problem`` finds that before anything is spent.

**One score a row, and one figure for the set.** ``quality_mean`` of a run is by contract the mean of its rows' scores.
Some metrics are not means of rows: macro F1 is computed from counts over all of them. So each row of such a metric gets
the metric's value for that row alone (a label is right, 1, or wrong, 0: the F1 of a set of one row), and
``quality_mean`` of a label task is its accuracy. The set's own figure is computed from the rows' counts by
``Scorer.whole`` and stands beside the mean under the metric's name; it never replaces the mean, whose interval would
not fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

Settings = Mapping[str, object]
"""A task's ``scorer_settings``; a setting of the wrong type is as if it were not there."""

MAX_OUTPUT_CHARS: Final = 1_000_000
"""A longer answer scores 0 unread: no gold is that long, and reading it would cost more than the row."""


class Counts(NamedTuple):
    """How often a class was rightly found, found where it is not, and missed."""

    right: int
    wrong: int
    missed: int

    def f1(self) -> float:
        """2·right / (2·right + wrong + missed), that is the harmonic mean of precision and recall; 1 if all are 0."""
        every = 2 * self.right + self.wrong + self.missed
        return 2 * self.right / every if every else 1.0

    def plus(self, other: Counts) -> Counts:
        """Both together."""
        return Counts(self.right + other.right, self.wrong + other.wrong, self.missed + other.missed)


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """What a row's answer is worth.

    Attributes:
        score: 0 to 1.
        reason: one short sentence that may be shown; it repeats nothing of the answer.
        counts: by class, for metrics of whole sets; small and plain, so that it can be stored as JSON.
    """

    score: float
    reason: str
    counts: Mapping[str, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        assert 0.0 <= self.score <= 1.0, "a score lies between 0 and 1"


Score = Callable[[object, str, Settings], ScoreResult]
Problem = Callable[[object, Settings], "str | None"]
Whole = Callable[[Iterable[ScoreResult]], "float | None"]


@dataclass(frozen=True, slots=True)
class Scorer:
    """A way to score.

    Attributes:
        name: as tasks name it.
        judge_row: what an answer of ordinary length is worth.
        problem: why a gold cannot be used, in a sentence that may be shown; or none.
        whole: the set's own figure, 0 to 1, where the metric has one that is not the mean of the rows.
    """

    name: str
    judge_row: Score
    problem: Problem
    whole: Whole | None = None

    def score(self, expected: object, output: str, settings: Settings) -> ScoreResult:
        """Score one answer.

        Args:
            expected: the gold, one that ``problem`` has nothing against.
            output: the model's text as it came; anything at all.
            settings: the task's.
        """
        if len(output) > MAX_OUTPUT_CHARS:
            return ScoreResult(0.0, "The answer is too long to be scored.")
        return self.judge_row(expected, output, settings)


def macro(results: Iterable[ScoreResult]) -> float | None:
    """Macro F1: the plain mean of the F1 of each class that occurs in the gold, over the counts of all rows.

    A class that is only ever predicted lowers the classes it was mistaken for and has no F1 of its own: a model that
    invents labels cannot change how many classes there are. None without any class.
    """
    by_class: dict[str, Counts] = {}
    for result in results:
        for name, counts in result.counts.items():
            by_class[name] = by_class[name].plus(counts) if name in by_class else counts
    values = [by_class[name].f1() for name in sorted(by_class) if by_class[name].right + by_class[name].missed]
    return sum(values) / len(values) if values else None


def micro(results: Iterable[ScoreResult]) -> float | None:
    """Micro F1: the F1 of the counts of all rows and classes together; None without any."""
    every = [counts for result in results for counts in result.counts.values()]
    if not every:
        return None
    return Counts(*(sum(column) for column in zip(*every, strict=True))).f1()
