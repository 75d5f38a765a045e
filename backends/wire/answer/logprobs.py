"""Log probabilities in the OpenAI schemas, beside the text they belong to.

Floor: wire (pure).

Engines behind Triton give numbers without the tokens they belong to. A piece with one number is that token; of several
the first bears the piece's text and the others are empty, so that the tokens together are always the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backends.wire.sampling import Piece

LOWEST = -9999.0
"""What OpenAI says of a token that could not be; JSON has no infinity."""


@dataclass(frozen=True, slots=True)
class Scored:
    """One token. ``start`` is where it begins, in characters of the generated text."""

    text: bytes
    logprob: float
    start: int


class ChoiceLogprobs:
    """Those of one choice that were not handed out yet."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: list[Scored] = []

    def note(self, piece: Piece, start: int) -> None:
        """A piece has come, at this place of the text."""
        for position, logprob in enumerate(piece.logprobs or ()):
            text = b"" if position else piece.text
            self._waiting.append(Scored(text, logprob if logprob > LOWEST else LOWEST, start))

    def take(self, cut_at: int | None) -> list[Scored]:
        """Those that wait, without the tokens of a stop text that begins at ``cut_at``."""
        waiting = self._waiting
        if not waiting:
            return []
        self._waiting = []
        return [scored for scored in waiting if cut_at is None or scored.start < cut_at]


def chat_logprobs(tokens: list[Scored]) -> dict[str, Any] | None:
    """``logprobs`` of a chat's choice."""
    if not tokens:
        return None
    return {
        "content": [
            {
                "token": token.text.decode("utf-8", "replace"),
                "logprob": token.logprob,
                "bytes": list(token.text),
                "top_logprobs": [],
            }
            for token in tokens
        ]
    }


def text_logprobs(tokens: list[Scored]) -> dict[str, Any] | None:
    """``logprobs`` of a text completion's choice."""
    if not tokens:
        return None
    return {
        "tokens": [token.text.decode("utf-8", "replace") for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": None,
        "text_offset": [token.start for token in tokens],
    }
