"""Google: Gemini's ``generateContent``.

Floor: control (pure). Source: the Gemini API's reference, "Generating content", "UsageMetadata"; ``ErrorInfo`` and
``RetryInfo`` of google.rpc. Its JSON leaves out what is zero or empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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

_FINISH: Final[Mapping[object, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"), "content_filter"),
}
_SECONDS: Final = re.compile(r"(\d{1,6}(?:\.\d{1,9})?)s", re.ASCII)


class Google:
    """``POST /v1beta/models/{model}:generateContent``."""

    default_url = "https://generativelanguage.googleapis.com"

    def write(self, key: str, model: str, asked: Conversation, settings: CallSettings) -> VendorRequest:
        """The key goes in a header, never in the address, which is logged on the way."""
        generation: dict[str, Any] = {"maxOutputTokens": settings.most_tokens, "candidateCount": 1}
        if settings.temperature is not None:
            generation["temperature"] = settings.temperature
        body: dict[str, Any] = {
            "contents": [
                {"role": "model" if turn.role == "assistant" else "user", "parts": [_part(one) for one in turn.parts]}
                for turn in asked.turns
            ],
            "generationConfig": generation,
        }
        if asked.system:
            body["systemInstruction"] = {"parts": [{"text": text} for text in asked.system]}
        return VendorRequest(f"/v1beta/models/{model}:generateContent", {"x-goog-api-key": key}, body)

    def read(self, body: Any) -> VendorAnswer:
        """Thoughts are billed as output and are no part of the answer. A prompt that was blocked has no candidate."""
        try:
            usage, candidates = body["usageMetadata"], body.get("candidates") or []
            if not candidates and not (body.get("promptFeedback") or {}).get("blockReason"):
                raise AnswerInvalid
            found: Mapping[str, Any] = candidates[0] if candidates else {"finishReason": "SAFETY"}
            parts = (found.get("content") or {}).get("parts") or []
            text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
            said = usage.get("candidatesTokenCount")
            return VendorAnswer(
                text,
                tokens(usage["promptTokenCount"]) + tokens_if_any(usage.get("toolUsePromptTokenCount")),
                # Zero is left out, but words are never zero tokens.
                (tokens(said) if text else tokens_if_any(said)) + tokens_if_any(usage.get("thoughtsTokenCount")),
                _FINISH.get(found.get("finishReason"), "other"),
            )
        except (KeyError, IndexError, TypeError, AttributeError):
            raise AnswerInvalid from None

    def read_refusal(self, status: int, body: Any) -> Refusal:
        """A wrong key is a 400, and when to come again stands in the body."""
        error = error_of(body)
        kind = kind_of(status)
        details = error.get("details")
        known = [one for one in details if isinstance(one, Mapping)] if isinstance(details, list) else []
        is_key = any(one.get("reason") == "API_KEY_INVALID" for one in known)
        if status == 400 and (is_key or error.get("status") == "FAILED_PRECONDITION"):
            kind = FailureKind.SHUT_OUT
        return Refusal(kind, _delay_s(known), status == 400 and says(error, "temperature"))


def _delay_s(details: Iterable[Mapping[str, Any]]) -> float | None:
    for one in details:
        delay = one.get("retryDelay")
        if isinstance(delay, str) and (found := _SECONDS.fullmatch(delay)) is not None:
            return float(found.group(1))
    return None


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"text": part.text}
    return {"inlineData": {"mimeType": part.mime, "data": part.data}}
