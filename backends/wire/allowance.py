"""How far a stream may go before whoever reads it is asked again.

Floor: wire (pure). Knows deltas, never why there is a bound.
"""

from __future__ import annotations

from collections.abc import Callable

from backends.wire.usage import Observed

UNBOUNDED = 1 << 62
"""More deltas than any answer has."""

WAIT = -1
"""Not even the next delta, for now."""

Allowance = Callable[[Observed], int]
"""Asked with what will have been handed out after the next delta: how many more may follow before it is asked again,
or `WAIT`. Asked first with nothing, when the answer begins."""


def no_bound(seen: Observed) -> int:
    """Let the answer go on to its end."""
    del seen
    return UNBOUNDED
