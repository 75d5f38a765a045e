"""Which replica gets the next request.

Floor: core (pure). A policy is a function from candidates to one of them; all have the same signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class Candidate(Protocol):
    """What a policy may know of a replica."""

    @property
    def outstanding(self) -> int:
        """Requests this process has open on it."""

    @property
    def waiting(self) -> int:
        """Requests, also of others, that it says it has not begun; 0 if it has not said so lately."""


C = TypeVar("C", bound=Candidate)


def least_outstanding(candidates: Sequence[C], turn: int) -> C:
    """The candidate with the fewest requests open or waiting; ties go round, so that idle replicas share the work.

    Args:
        candidates: at least one.
        turn: a number that grows by one per call.
    """
    assert candidates
    start = turn % len(candidates)
    rotated = [*candidates[start:], *candidates[:start]]
    return min(rotated, key=lambda candidate: candidate.outstanding + candidate.waiting)
