"""The public frame of an answer: what stands around its texts, in a stream and as a whole.

Floor: wire (pure). Knows the OpenAI schema, never where the texts come from.

Sources: OpenAI API reference, chat and completions, streamed and not.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import TokenUsage


class Envelope:
    """The frame of one answer: our ``id``, ``created`` and ``model``, one choice for each chunk."""

    __slots__ = ("_base", "_include_usage", "_is_chat", "_request")

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._is_chat = request.kind is Kind.CHAT
        self._include_usage = request.include_usage
        self._base = self._head("chat.completion.chunk")

    def plain(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the JSON-escaped text of a chunk that holds only text."""
        usage = b',"usage":null' if self._include_usage else b""
        if self._is_chat:
            before, after = b'"delta":{"content":"', b'"},"finish_reason":null}]'
        else:
            before, after = b'"text":"', b'","logprobs":null,"finish_reason":null}]'
        base = json.dumps(self._base, separators=(",", ":"))
        lead = b"data: " + base[:-1].encode() + b',"choices":[{"index":%d,' % index + before
        return lead, after + usage + b"}\n\n"

    def role(self, index: int) -> bytes:
        """The chunk that opens a choice of a chat; a text completion has none."""
        return self.chunk(index, {"delta": {"role": "assistant", "content": ""}}) if self._is_chat else b""

    def end(self, index: int, reason: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """The chunk that ends a choice; it says nothing else."""
        empty: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
        if logprobs is not None:
            empty["logprobs"] = logprobs
        return self.chunk(index, empty, reason)

    def chunk(self, index: int, content: dict[str, Any], reason: str | None = None) -> bytes:
        """One event with one choice; ``content`` is its ``delta`` or ``text``, and ``logprobs`` if there are any."""
        choice = {"index": index, **content}
        if not self._is_chat:
            choice.setdefault("logprobs", None)
        choice["finish_reason"] = reason
        chunk = {**self._base, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return encode_event(chunk)

    def usage(self, usage: TokenUsage | None) -> bytes:
        """The last chunk of a stream, if it was asked for."""
        if not self._include_usage:
            return b""
        return encode_event({**self._base, "choices": [], "usage": usage.as_openai() if usage else None})

    def whole(self, choices: list[dict[str, Any]], usage: TokenUsage | None) -> dict[str, Any]:
        """An answer that is not streamed."""
        public = {**self._head("chat.completion"), "choices": choices}
        if usage:
            public["usage"] = usage.as_openai()
        return public

    def _head(self, chat_object: str) -> dict[str, Any]:
        request = self._request
        return {
            "id": request.answer_id,
            "object": chat_object if self._is_chat else "text_completion",
            "created": request.created_s,
            "model": request.public_model,
        }


def encode_event(chunk: dict[str, Any]) -> bytes:
    """One SSE event that holds a JSON object, in ASCII: httpx cuts lines at U+2028, U+2029 and U+0085 too."""
    encoded = orjson.dumps(chunk)
    if not encoded.isascii():
        encoded = json.dumps(chunk, separators=(",", ":")).encode("ascii")
    return b"data: " + encoded + b"\n\n"


def escape_text(text: str) -> bytes:
    """The inside of a JSON string, in ASCII."""
    if text.isascii():
        return orjson.dumps(text)[1:-1]
    return json.dumps(text)[1:-1].encode("ascii")
