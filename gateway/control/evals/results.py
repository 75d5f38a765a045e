"""From answers to results: means, intervals, and their order.

Floor: control (pure).
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.control.evals.statistics import bootstrap_interval
from gateway.control.evals.values import Candidate, ItemAnswer, Result


def result_of(candidate: Candidate, answers: Sequence[ItemAnswer], *, seed: str) -> Result:
    """What one model's answers say of it.

    Args:
        seed: fixes the random draws, so that the same run always says the same.
    """
    scores = [answer.score for answer in sorted(answers, key=lambda one: one.idx) if answer.score is not None]
    failed = len(answers) - len(scores)
    if not scores:
        return Result(candidate.name, candidate.kind, None, None, None, None, 0, failed)
    interval = bootstrap_interval(scores, seed=f"{seed} {candidate.name}")
    cost = sum(answer.cost_micros for answer in answers) // len(scores)
    return Result(candidate.name, candidate.kind, interval.mean, interval.low, interval.high, cost, len(scores), failed)


def in_order(results: Sequence[Result]) -> list[Result]:
    """Open models first, the best first; the first of all is the one to deploy. Then the vendors'."""
    return sorted(
        results,
        key=lambda one: (
            one.kind != "open",
            one.quality_mean is None,
            -(one.quality_mean or 0.0),
            one.mean_cost_micros or 0,
        ),
    )
