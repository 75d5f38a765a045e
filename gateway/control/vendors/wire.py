"""Three vendors' chat APIs: what is sent and what comes back.

Floor: control (pure). Messages come in OpenAI's form, with text, images and PDF as data URLs; each vendor wants them in
its own. Tokens are what the vendor bills: all input, cached or not, and all output, thinking included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

Message = Mapping[str, Any]
ANTHROPIC_VERSION: Final = "2023-06-01"


class AnswerInvalid(ValueError):
    """A vendor's answer has not the form that it documents."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to a vendor. ``headers`` hold the key, so nothing of this is ever shown."""

    path: str
    headers: Mapping[str, str] = field(repr=False)
    body: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Said:
    """What a vendor's model answered, and what that is billed as."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Vendor(Protocol):
    """One vendor's API."""

    default_url: str

    def ask(self, key: str, model: str, messages: Sequence[Message], *, most_tokens: int) -> Asked:
        """A request."""

    def read(self, body: Any) -> Said:
        """Its answer. Raises: AnswerInvalid."""


class OpenAI:
    """Chat completions. Temperature is left out: reasoning models refuse it."""

    default_url = "https://api.openai.com"

    def ask(self, key: str, model: str, messages: Sequence[Message], *, most_tokens: int) -> Asked:
        """``POST /v1/chat/completions``."""
        body = {"model": model, "messages": list(messages), "max_completion_tokens": most_tokens}
        return Asked("/v1/chat/completions", {"Authorization": f"Bearer {key}"}, body)

    def read(self, body: Any) -> Said:
        """``choices`` and ``usage``."""
        try:
            text, usage = body["choices"][0]["message"].get("content"), body["usage"]
            return Said(_text(text), _count(usage["prompt_tokens"]), _count(usage["completion_tokens"]))
        except (KeyError, IndexError, TypeError, AttributeError):
            raise AnswerInvalid from None


class Anthropic:
    """Messages."""

    default_url = "https://api.anthropic.com"

    def ask(self, key: str, model: str, messages: Sequence[Message], *, most_tokens: int) -> Asked:
        """``POST /v1/messages``: system texts stand apart."""
        system = "\n\n".join(one["content"] for one in messages if one["role"] == "system")
        turns = [
            {"role": one["role"], "content": [_anthropic_part(part) for part in _parts(one["content"])]}
            for one in messages
            if one["role"] != "system"
        ]
        body: dict[str, Any] = {"model": model, "max_tokens": most_tokens, "messages": turns}
        if system:
            body["system"] = system
        return Asked("/v1/messages", {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION}, body)

    def read(self, body: Any) -> Said:
        """``content`` blocks; the input of a cache is billed besides ``input_tokens``."""
        try:
            text = "".join(part["text"] for part in body["content"] if part["type"] == "text")
            usage = body["usage"]
            prompt = sum(
                _count(usage.get(name) or 0)
                for name in ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
            )
            return Said(text, prompt, _count(usage["output_tokens"]))
        except (KeyError, TypeError, AttributeError):
            raise AnswerInvalid from None


class Google:
    """Gemini's ``generateContent``."""

    default_url = "https://generativelanguage.googleapis.com"

    def ask(self, key: str, model: str, messages: Sequence[Message], *, most_tokens: int) -> Asked:
        """``POST /v1beta/models/{model}:generateContent``."""
        system = [{"text": one["content"]} for one in messages if one["role"] == "system"]
        turns = [
            {
                "role": "model" if one["role"] == "assistant" else "user",
                "parts": [_google_part(part) for part in _parts(one["content"])],
            }
            for one in messages
            if one["role"] != "system"
        ]
        body: dict[str, Any] = {
            "contents": turns,
            "generationConfig": {"temperature": 0, "maxOutputTokens": most_tokens, "candidateCount": 1},
        }
        if system:
            body["systemInstruction"] = {"parts": system}
        return Asked(f"/v1beta/models/{model}:generateContent", {"x-goog-api-key": key}, body)

    def read(self, body: Any) -> Said:
        """``candidates`` and ``usageMetadata``, whose thoughts are billed as output."""
        try:
            usage, found = body["usageMetadata"], body.get("candidates") or [{}]
            parts = (found[0].get("content") or {}).get("parts") or []
            text = "".join(part.get("text", "") for part in parts if not part.get("thought"))
            output = _count(usage.get("candidatesTokenCount") or 0) + _count(usage.get("thoughtsTokenCount") or 0)
            return Said(text, _count(usage["promptTokenCount"]), output)
        except (KeyError, IndexError, TypeError, AttributeError):
            raise AnswerInvalid from None


VENDORS: Final[Mapping[str, Vendor]] = {
    "openai": OpenAI(),
    "anthropic": Anthropic(),
    "google": Google(),
    # Of the demonstration: an engine on this host that plays a vendor.
    "demo": OpenAI(),
}


def _parts(content: Any) -> Sequence[Mapping[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _data_of(part: Mapping[str, Any]) -> tuple[str, str]:
    """Type and base64 of a part that is an image or a file."""
    url = part["image_url"]["url"] if part["type"] == "image_url" else part["file"]["file_data"]
    head, _, data = url.partition(",")
    return head.removeprefix("data:").partition(";")[0], data


def _anthropic_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    mime, data = _data_of(part)
    kind = "image" if mime.startswith("image/") else "document"
    return {"type": kind, "source": {"type": "base64", "media_type": mime, "data": data}}


def _google_part(part: Mapping[str, Any]) -> dict[str, Any]:
    if part["type"] == "text":
        return {"text": part["text"]}
    mime, data = _data_of(part)
    return {"inlineData": {"mimeType": mime, "data": data}}


def _text(content: object) -> str:
    return content if isinstance(content, str) else ""


def _count(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 31:
        raise AnswerInvalid
    return value
