"""Whether a replica should be asked at all, from what requests and probes have shown.

Floor: wire (pure). One rule per kind of evidence: a refused connection closes the door at once; bad answers close it
after a few in a row; a full replica is healthy. Only a good probe (or a good answer) opens it again, and then one more
bad answer is enough to close it.
"""

from __future__ import annotations

from backends.wire.failure import BackendFailure, FailureCode, Phase

STRIKES_TO_CLOSE = 3
PROBES_TO_CLOSE = 2

_INNOCENT = frozenset({FailureCode.OVERLOADED, FailureCode.CONTEXT_LENGTH, FailureCode.INPUT_REFUSED})


class Breaker:
    """The health of one replica. It starts open for traffic: the first request finds out."""

    __slots__ = ("_missed_probes", "_strikes", "is_up")

    def __init__(self) -> None:
        self.is_up = True
        self._strikes = 0
        self._missed_probes = 0

    def answered(self) -> None:
        """A request was answered well."""
        self.is_up = True
        self._strikes = 0

    def failed(self, failure: BackendFailure) -> None:
        """A request failed."""
        if failure.code in _INNOCENT:
            return
        self._strikes += 1
        if failure.phase is Phase.CONNECT or self._strikes >= STRIKES_TO_CLOSE:
            self.is_up = False
            self._strikes = STRIKES_TO_CLOSE

    def probed(self, healthy: bool) -> None:
        """A health probe came back."""
        if healthy:
            self._missed_probes = 0
            if not self.is_up:
                self.is_up = True
                self._strikes = STRIKES_TO_CLOSE - 1
            return
        self._missed_probes += 1
        if self._missed_probes >= PROBES_TO_CLOSE:
            self.is_up = False
