"""What an item of a run costs, and what a run can cost at most.

Floor: control (pure). An open model costs its alias' flat rate, as in serving; a vendor's model costs its list price
for the tokens that it really used, rounded up to a whole micro-USD. What failed costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from gateway.control.evals.values import Candidate
from ledger.core.money import NANOS_PER_MICRO
from ledger.core.pricing import UNITS_PER_RATE

MESSAGE_TOKENS: Final = 64
"""What a vendor may add around messages: roles, separators."""
DOCUMENT_TOKENS: Final = 260_000
"""An upper bound for one document: a PDF of a hundred pages at vendors' most generous counts, or any image."""


def item_micros(candidate: Candidate, *, prompt_tokens: int, completion_tokens: int) -> int:
    """What one answer costs."""
    if candidate.cost_per_request_micros is not None:
        return candidate.cost_per_request_micros
    assert candidate.prompt_rate_nanos is not None
    assert candidate.completion_rate_nanos is not None
    millionths = candidate.prompt_rate_nanos * prompt_tokens + candidate.completion_rate_nanos * completion_tokens
    return -(-millionths // (UNITS_PER_RATE * NANOS_PER_MICRO))


def most_micros(
    candidates: Iterable[Candidate], *, prompt_bytes: Iterable[int], documents: int, most_tokens: int
) -> int:
    """What a run can cost at most.

    Args:
        prompt_bytes: of each row with its prompt, as UTF-8: no tokenizer makes more tokens than that.
        documents: attached to all rows together.
        most_tokens: of one answer.
    """
    sizes = list(prompt_bytes)
    total = 0
    for candidate in candidates:
        if candidate.cost_per_request_micros is not None:
            total += candidate.cost_per_request_micros * len(sizes)
            continue
        total += sum(
            item_micros(candidate, prompt_tokens=size + MESSAGE_TOKENS, completion_tokens=most_tokens) for size in sizes
        )
        total += item_micros(candidate, prompt_tokens=documents * DOCUMENT_TOKENS, completion_tokens=0)
    return total
