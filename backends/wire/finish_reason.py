"""Why an answer ended: the words of the OpenAI schema, whatever an engine says.

Floor: wire (pure).
"""

from __future__ import annotations

from backends.wire.failure import BackendFailure, FailureCode, Phase

PUBLIC = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})
GAVE_UP = frozenset({"abort", "aborted", "cancelled", "error"})
"""An engine's words for an answer that it broke off itself."""


def finish_reason(said: object) -> str:
    """The public word for what an engine said; words of its own mean ``stop``.

    Raises:
        BackendFailure: the engine gave up.
    """
    if isinstance(said, dict):
        said = said.get("type")  # SGLang's inner form
    if not isinstance(said, str):
        return "stop"
    if said in GAVE_UP:
        raise BackendFailure(FailureCode.BROKEN, Phase.BODY)
    return said if said in PUBLIC else "stop"
