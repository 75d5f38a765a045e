"""Anthropic: messages.

Floor: control (pure). Source: Anthropic's API reference, "Messages", "Errors", "Prompt caching".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.control.vendors.conversation import Conversation, Part, Text
from gateway.control.vendors.port import (
    AnswerInvalid,
    CallSettings,
    FailureKind,
    FinishReason,
    Refusal,
    VendorAnswer,
    VendorRequest,
    error_of,
    kind_of,
    says,
    tokens,
    tokens_if_any,
)

VERSION: Final = "2023-06-01"
_FINISH: Final[Mapping[object, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class Anthropic:
    """``POST /v1/messages``."""

    default_url = "https://api.anthropic.com"

    def write(self, key: str, model: str, asked: Conversation, settings: CallSettings) -> VendorRequest:
        """Instructions stand apart from the turns."""
        body: dict[str, Any] = {
            "model": model,
            "max_tokens": settings.most_tokens,
            "messages": [{"role": turn.role, "content": [_part(one) for one in turn.parts]} for turn in asked.turns],
        }
        if asked.system:
            body["system"] = "\n\n".join(asked.system)
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        return VendorRequest("/v1/messages", {"x-api-key": key, "anthropic-version": VERSION}, body)

    def read(self, body: Any) -> VendorAnswer:
        """``input_tokens`` has not in it what was written to a cache or read from one, which is billed too."""
        try:
            text = "".join(part["text"] for part in body["content"] if part["type"] == "text")
            usage = body["usage"]
            prompt_tokens = tokens(usage["input_tokens"]) + sum(
                tokens_if_any(usage.get(name)) for name in ("cache_creation_input_tokens", "cache_read_input_tokens")
            )
            return VendorAnswer(
                text, prompt_tokens, tokens(usage["output_tokens"]), _FINISH.get(body.get("stop_reason"), "other")
            )
        except (KeyError, TypeError, AttributeError):
            raise AnswerInvalid from None

    def read_refusal(self, status: int, body: Any) -> Refusal:
        """An account without money gets a 400 and a sentence."""
        error = error_of(body)
        kind = kind_of(status)
        if status == 400 and says(error, "credit balance"):
            kind = FailureKind.SHUT_OUT
        return Refusal(kind, names_temperature=status == 400 and says(error, "temperature"))


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    source = {"type": "base64", "media_type": part.mime, "data": part.data}
    return {"type": "image" if part.is_image else "document", "source": source}
