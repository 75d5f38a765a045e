"""What was found wrong, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise, with everything that shows it."""

    kind: str
    """lost, twice, overspent, mischarged, wrong 402, books, not quiet, or a fault's own."""
    subject: str
    evidence: str


@dataclass(slots=True)
class Findings:
    """Of one check, or of a whole run."""

    violations: list[Violation] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    statuses: Counter[str] = field(default_factory=Counter)

    def wrong(self, kind: str, subject: str, evidence: str) -> None:
        self.violations.append(Violation(kind, subject, evidence))

    def add(self, other: Findings) -> None:
        self.violations += other.violations
        self.counts += other.counts
        self.statuses += other.statuses

    def of(self, kind: str) -> int:
        return sum(violation.kind == kind for violation in self.violations)
