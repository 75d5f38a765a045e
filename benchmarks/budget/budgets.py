"""What each case may cost, with the reason why it does: ``budget.json``, for each version of Python.

Versions of Python differ a little in what is a call (a comprehension is none since 3.12): one without budgets of its
own borrows those of the others, with more tolerance. What is counted on other threads is judged one request at a time
only: how many requests share a trip to the disk is luck.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.budget.cases import Case
from benchmarks.budget.rounds import Counts

FILE = Path(__file__).parent / "budget.json"
TOLERANCE = 0.04
"""Reads that the kernel cuts otherwise bring 2 %; one call more for a chunk is 12 %."""
UNKNOWN_TOLERANCE = 0.08
"""Of a version of Python that has no budgets: the largest of the others are taken. 3.13 differed by 4 % from 3.11."""
HOW_TO_CHANGE = (
    'If it has to be so, say why: python -m benchmarks.budget --write "what it buys". '
    "python -m benchmarks.budget --where CASE names the functions."
)


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one case.

    Attributes:
        counts: calls per unit.
        reason: why they are what they are.
        date: when that was.
        instructions: per unit, where they were counted as well. Nothing is held against them: they depend on how the
            interpreter was built.
    """

    counts: Counts
    reason: str
    date: str
    instructions: int | None = None


Budgets = Mapping[str, Budget]


def version() -> str:
    """Of this Python, as budgets are named."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def read(file: Path = FILE) -> dict[str, dict[str, Budget]]:
    """All budgets by version of Python and case."""
    content = json.loads(file.read_text()) if file.exists() else {}
    return {
        python: {name: Budget(**{**one, "counts": Counts(**one["counts"])}) for name, one in cases.items()}
        for python, cases in content.items()
    }


def write(
    found: Mapping[str, Counts], instructions: Mapping[str, int], *, reason: str, cases: Mapping[str, Case], file: Path
) -> list[str]:
    """Take what was found for this Python's budgets, where it differs from them; the names of those that changed."""
    budgets = read(file)
    mine = budgets.setdefault(version(), {})
    changed = []
    for name, counts in found.items():
        old = mine.get(name)
        if old is None or name in instructions or differs(cases[name], counts, old.counts):
            rounded = Counts(*(round(count, 2) for count in counts))
            mine[name] = Budget(rounded, reason, datetime.now(UTC).date().isoformat(), instructions.get(name))
            changed.append(name)
    content = {
        python: {name: {**asdict(one), "counts": one.counts._asdict()} for name, one in sorted(cases_of.items())}
        for python, cases_of in sorted(budgets.items())
    }
    file.write_text(json.dumps(content, indent=1) + "\n")
    return changed


def differs(case: Case, found: Counts, budget: Counts) -> bool:
    """Whether a case costs less or more than its budget says, by more than the tolerance."""
    return any(abs(found[at] - budget[at]) > TOLERANCE * budget[at] for at in _judged(case))


def allowed(case: Case, budgets: Mapping[str, Budgets], python: str) -> Counts | None:
    """The most that a case may cost on a version of Python; ``None`` if nothing is known of it."""
    known = [cases[case.name].counts for cases in budgets.values() if case.name in cases]
    if case.name in budgets.get(python, {}):
        exact, tolerance = budgets[python][case.name].counts, TOLERANCE
    elif known:
        exact, tolerance = Counts(*(max(counts) for counts in zip(*known, strict=True))), UNKNOWN_TOLERANCE
    else:
        return None
    return Counts(*(count * (1 + tolerance) for count in exact))


def exceeded(case: Case, found: Counts, most: Counts | None) -> str:
    """A sentence on what costs too much, or nothing."""
    if most is None:
        return f"{case.name}: there is no budget. {HOW_TO_CHANGE}"
    over = [
        f"{found[at]:.1f} {_WORDS[at]} where {most[at]:.1f} are the most"
        for at in _judged(case)
        if found[at] > most[at]
    ]
    return f"{case.name} ({case.unit}) makes {' and '.join(over)}." if over else ""


_WORDS = ("calls", "C calls", "calls on other threads", "C calls on other threads")


def _judged(case: Case) -> range:
    return range(4 if case.at_once == 1 else 2)
