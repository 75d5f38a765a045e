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
    worst_unbilled: tuple[int, str] = (0, "")
    """The most deltas that one request got and nobody paid, and which."""

    def unbilled(self, deltas: int, told: str) -> None:
        """Deltas that were delivered and not charged."""
        self.counts["unbilled deltas"] += max(0, deltas)
        self.worst_unbilled = max(self.worst_unbilled, (deltas, told))

    def wrong(self, kind: str, subject: str, evidence: str) -> None:
        self.violations.append(Violation(kind, subject, evidence))

    def add(self, other: Findings) -> None:
        self.violations += other.violations
        self.counts += other.counts
        self.statuses += other.statuses
        self.worst_unbilled = max(self.worst_unbilled, other.worst_unbilled)

    def of(self, kind: str) -> int:
        return sum(violation.kind == kind for violation in self.violations)
