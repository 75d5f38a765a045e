"""How a backend can fail, as facts for us and never as text for the customer.

Floor: wire (pure).
"""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """How far a request had come when it failed."""

    CONNECT = "connect"
    HEAD = "head"
    BODY = "body"


class FailureCode(StrEnum):
    """Why a backend failed, in order of the blame: the caller's input first, the network last."""

    CONTEXT_LENGTH = "context_length"
    INPUT_REFUSED = "input_refused"
    OVERLOADED = "overloaded"
    MISCONFIGURED = "misconfigured"
    BROKEN = "broken"
    PROTOCOL = "protocol"
    TOO_LARGE = "too_large"
    TIMEOUT = "timeout"
    UNREACHABLE = "unreachable"


class BackendFailure(Exception):
    """A backend could not answer. Carries facts for us, never text for the customer."""

    def __init__(self, code: FailureCode, phase: Phase, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code} in phase {phase}")
        self.code = code
        self.phase = phase
        self.retry_after_s = retry_after_s

    @property
    def is_callers_fault(self) -> bool:
        """The same request would be refused by every replica."""
        return self.code in (FailureCode.CONTEXT_LENGTH, FailureCode.INPUT_REFUSED)


class Unsupported(BackendFailure):
    """The request asks for what this backend cannot give: every replica of the endpoint would refuse it, too.

    Args:
        param: the field of the request, dotted.
        reason: continues the sentence "<param> …"; written by us, fit for the customer, never an engine's words.
    """

    def __init__(self, param: str, reason: str) -> None:
        super().__init__(FailureCode.INPUT_REFUSED, Phase.CONNECT)
        self.param = param
        self.reason = reason
