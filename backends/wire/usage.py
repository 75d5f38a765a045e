"""Token usage as inference engines report it, and what to say when they don't.

Floor: wire (pure). Knows tokens, never prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTES_PER_TOKEN_GUESS = 4
"""English text and common tokenizers; an estimate is made low on purpose, so that a guess never overcharges."""


@dataclass(slots=True)  # not frozen: made for every answer, and that takes three times as long
class TokenUsage:
    """Tokens of one answer. ``cached_prompt`` is part of ``prompt``, ``reasoning`` is part of ``completion``.

    ``reported`` is true when an engine said so itself; false when we counted deltas.
    """

    prompt: int
    completion: int
    cached_prompt: int = 0
    reasoning: int = 0
    reported: bool = True

    def as_openai(self) -> dict[str, Any]:
        """The ``usage`` object of the OpenAI API, detail objects only where they say something."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }
        if self.cached_prompt:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_prompt}
        if self.reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": self.reasoning}
        return usage


@dataclass(slots=True)
class Observed:
    """What was seen of an answer so far. ``usage`` counts only what was handed to the sink."""

    usage: TokenUsage | None
    content_deltas: int


def read_usage(raw: object) -> TokenUsage | None:
    """Read an engine's ``usage`` object; ``None`` when it is absent or makes no sense.

    A detail that claims more than its whole is cut to the whole: a meter must never go negative.
    """
    if not isinstance(raw, dict):
        return None
    prompt = _count(raw.get("prompt_tokens"))
    if prompt is None:
        return None
    completion = _count(raw.get("completion_tokens")) or 0
    usage = TokenUsage(prompt, completion)
    if raw.get("prompt_tokens_details"):
        usage.cached_prompt = min(_detail(raw, "prompt_tokens_details", "cached_tokens"), prompt)
    if raw.get("completion_tokens_details"):
        usage.reasoning = min(_detail(raw, "completion_tokens_details", "reasoning_tokens"), completion)
    return usage


def estimate_prompt_tokens(body_bytes: int) -> int:
    """A low guess of a prompt's tokens from the size of its JSON, for engines that report nothing."""
    return max(1, body_bytes // BYTES_PER_TOKEN_GUESS)


def _detail(raw: dict[Any, Any], group: str, name: str) -> int:
    details = raw[group]
    return (_count(details.get(name)) or 0) if isinstance(details, dict) else 0


def _count(value: Any) -> int | None:
    # The class and not isinstance: true and false are integers, too.
    return value if value.__class__ is int and 0 <= value < 1 << 31 else None
