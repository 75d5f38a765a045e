"""What Triton's errors mean. Their texts are read here and go no further.

Floor: wire (pure). An error inside a stream is a text without a code, so its kind is told from words; a transport error
has a status of gRPC besides.
"""

from __future__ import annotations

import re

from backends.wire.failure import BackendFailure, FailureCode, Phase

_LENGTH = re.compile(
    r"(prompt|input|sequence|context).{0,40}(length|tokens?).{0,80}(exceed|longer|less than|larger|too long|maximum)"
    r"|maximum (context|model|input|sequence) length|max_(input|seq|sequence)_len|max_num_tokens|too long",
    re.I | re.S,
)
_FULL = re.compile(r"maximum queue size|queue is full|too many requests|max_inflight|no free slots?", re.I)
_NOT_READY = re.compile(r"not (at )?ready|unloading|shutting down|server exiting|no available versions?", re.I)
_INTERFACE = re.compile(
    r"unknown model|not found|unexpected (inference input|shape|datatype|data-type)|missing required input"
    r"|expected \d+ (or more )?inputs|but model '[^']*' expects|inference input",
    re.I,
)
_LATE = re.compile(r"timed? ?out|timeout|deadline", re.I)
_TRACEBACK = re.compile(r"traceback|stub process|internal error|out of memory|cuda", re.I)
_INPUT = re.compile(
    r"grammar|guided|json.?schema|invalid (argument|parameter|value|request|input)|unsupported"
    r"|must be (in|at least|at most|between|greater|non-negative|positive|an? )",
    re.I,
)


def in_band_failure(text: str, phase: Phase) -> BackendFailure:
    """What an ``error_message`` inside a stream means.

    Args:
        phase: ``HEAD`` before the first good response, ``BODY`` after it.
    """
    return BackendFailure(_code(text, phase), phase)


def transport_failure(status: str, details: str, phase: Phase) -> BackendFailure:
    """What a call's end with another status than OK means.

    Args:
        status: the name of gRPC's status code.
        details: its text, which may stem from this machine's gRPC library or from the server.
    """
    match status:
        case "RESOURCE_EXHAUSTED":
            is_large = "larger than max" in details
            return BackendFailure(FailureCode.TOO_LARGE if is_large else FailureCode.OVERLOADED, phase)
        case "UNAVAILABLE":
            return _unavailable(details, phase)
        case "DEADLINE_EXCEEDED":
            return BackendFailure(FailureCode.TIMEOUT, phase)
        case "INVALID_ARGUMENT":
            code = _code(details, phase)
            return BackendFailure(code if code in _OF_ARGUMENTS else FailureCode.INPUT_REFUSED, phase)
        case "NOT_FOUND" | "UNIMPLEMENTED" | "UNAUTHENTICATED" | "PERMISSION_DENIED":
            return BackendFailure(FailureCode.MISCONFIGURED, phase)
        case "DATA_LOSS" | "OUT_OF_RANGE":
            return BackendFailure(FailureCode.PROTOCOL, phase)
        case _:
            return BackendFailure(_code(details, phase), phase)


_OF_ARGUMENTS = (FailureCode.CONTEXT_LENGTH, FailureCode.MISCONFIGURED)


def _unavailable(details: str, phase: Phase) -> BackendFailure:
    if _FULL.search(details):
        return BackendFailure(FailureCode.OVERLOADED, phase)
    if phase is Phase.BODY:
        return BackendFailure(FailureCode.BROKEN, phase)  # it was there: "not ready yet" would be the wrong word
    is_refused = "failed to connect" in details.lower() or "connection refused" in details.lower()
    return BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT if is_refused else phase)


def _code(text: str, phase: Phase) -> FailureCode:
    """The kind of a failure that only a text tells of; the caller's fault first, as he alone can mend it."""
    if _LENGTH.search(text):
        return FailureCode.CONTEXT_LENGTH
    if _FULL.search(text):
        return FailureCode.OVERLOADED
    if _NOT_READY.search(text):
        return FailureCode.BROKEN if phase is Phase.BODY else FailureCode.UNREACHABLE
    if _INTERFACE.search(text):
        return FailureCode.MISCONFIGURED
    if _TRACEBACK.search(text):
        return FailureCode.BROKEN
    if _LATE.search(text):
        return FailureCode.TIMEOUT
    return FailureCode.INPUT_REFUSED if _INPUT.search(text) else FailureCode.BROKEN
