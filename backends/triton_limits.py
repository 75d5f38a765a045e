"""Bounds of the traffic with one Triton server.

Floor: edge, and light: it is loaded by processes that never meet a Triton server.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TritonLimits:
    """Attributes:
    call_timeout_s: of a call that generates nothing.
    idle_s: silence of a model inside or before an answer before it counts as dead.
    deadline_s: of a whole answer; whoever asks usually gives up earlier.
    max_answer_bytes: of one response, and of the text of an answer that is not streamed.
    """

    connect_timeout_s: float = 5.0
    call_timeout_s: float = 5.0
    idle_s: float = 60.0
    deadline_s: float = 86_400.0
    max_answer_bytes: int = 32 * 1024 * 1024
