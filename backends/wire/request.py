"""What is asked of a backend.

Floor: wire (pure).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What kind of work a request is; the value is the OpenAI route behind ``/v1/``."""

    CHAT = "chat/completions"
    COMPLETION = "completions"
    EMBEDDING = "embeddings"


@dataclass(slots=True)  # not frozen: made for every request, and that takes three times as long
class InferenceRequest:
    """One validated piece of work.

    ``body`` is the caller's JSON, already checked, without ``model``, ``stream`` and ``stream_options``;
    ``answer_id``, ``created_s`` and ``public_model`` are what the answer shall bear.
    """

    kind: Kind
    body: dict[str, Any]
    stream: bool
    include_usage: bool
    answer_id: str
    created_s: int
    public_model: str
    completions: int = 1
