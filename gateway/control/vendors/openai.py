"""OpenAI: chat completions. Also of every server that speaks this API.

Floor: control (pure). Source: OpenAI's API reference, "Create chat completion", "Error codes".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gateway.control.vendors.conversation import Conversation, Part, Text, Turn
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
)

_FINISH: Final[Mapping[object, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
}
# A tuple: what is looked up in it may be any JSON.
_NO_MONEY: Final = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class OpenAI:
    """``POST /v1/chat/completions``."""

    default_url = "https://api.openai.com"

    def write(self, key: str, model: str, asked: Conversation, settings: CallSettings) -> VendorRequest:
        """``max_completion_tokens``, as ``max_tokens`` is refused by reasoning models."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": "system", "content": text} for text in asked.system]
            + [{"role": turn.role, "content": _content(turn)} for turn in asked.turns],
            "max_completion_tokens": settings.most_tokens,
        }
        if settings.temperature is not None:
            body["temperature"] = settings.temperature
        return VendorRequest("/v1/chat/completions", {"Authorization": f"Bearer {key}"}, body)

    def read(self, body: Any) -> VendorAnswer:
        """``completion_tokens`` has the reasoning in it, and ``prompt_tokens`` what came from a cache."""
        try:
            choice, usage = body["choices"][0], body["usage"]
            message = choice["message"]
            # A model that will not answer says so in a field of its own.
            said = message.get("content") if message.get("content") is not None else message.get("refusal")
            if said is not None and not isinstance(said, str):
                raise AnswerInvalid
            return VendorAnswer(
                said or "",
                tokens(usage["prompt_tokens"]),
                tokens(usage["completion_tokens"]),
                _FINISH.get(choice.get("finish_reason"), "other"),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise AnswerInvalid from None

    def read_refusal(self, status: int, body: Any) -> Refusal:
        """A 429 is also sent to accounts without money, which no waiting helps."""
        error = error_of(body)
        kind = kind_of(status)
        if status == 429 and any(error.get(name) in _NO_MONEY for name in ("code", "type")):
            kind = FailureKind.SHUT_OUT
        is_about = error.get("param") == "temperature" or says(error, "temperature")
        return Refusal(kind, names_temperature=status == 400 and is_about)


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    match turn.parts:
        case [Text(text)]:
            return text
        case parts:
            return [_part(one) for one in parts]


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if part.is_image:
        return {"type": "image_url", "image_url": {"url": part.data_url}}
    return {"type": "file", "file": {"filename": part.name, "file_data": part.data_url}}
