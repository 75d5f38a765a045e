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

    __slots__ = ("_after", "_head_bytes", "_include_usage", "_is_chat", "_request")

    def __init__(self, request: InferenceRequest) -> None:
        self._request = request
        self._is_chat = request.kind is Kind.CHAT
        self._include_usage = request.include_usage
        head = encode_event(_head(request, "chat.completion.chunk"))
        self._head_bytes = head[: -len(b"}\n\n")] + b',"choices":['
        self._after = b'],"usage":null}\n\n' if request.include_usage else b"]}\n\n"

    def plain(self, index: int) -> tuple[bytes, bytes]:
        """What stands before and after the JSON-escaped text of a chunk that holds only text."""
        if self._is_chat:
            before, after = b'{"index":%d,"delta":{"content":"', b'"},"finish_reason":null}'
        else:
            before, after = b'{"index":%d,"text":"', b'","logprobs":null,"finish_reason":null}'
        return self._head_bytes + before % index, after + self._after

    def role(self, index: int) -> bytes:
        """The chunk that opens a choice of a chat; a text completion has none."""
        if not self._is_chat:
            return b""
        opening = b'{"index":%d,"delta":{"role":"assistant","content":""},"finish_reason":null}' % index
        return self._head_bytes + opening + self._after

    def end(self, index: int, reason: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """The chunk that ends a choice; it says nothing else."""
        if logprobs is not None:
            empty: dict[str, Any] = {"delta": {}} if self._is_chat else {"text": ""}
            return self.chunk(index, {**empty, "logprobs": logprobs}, reason)
        empty_bytes = b'"delta":{}' if self._is_chat else b'"text":"","logprobs":null'
        end = b'{"index":%d,%b,"finish_reason":"%b"}' % (index, empty_bytes, escape_text(reason))
        return self._head_bytes + end + self._after

    def chunk(self, index: int, content: dict[str, Any], reason: str | None = None) -> bytes:
        """One event with one choice; ``content`` is its ``delta`` or ``text``, and ``logprobs`` if there are any."""
        choice = {"index": index, **content}
        if not self._is_chat:
            choice.setdefault("logprobs", None)
        choice["finish_reason"] = reason
        return self._head_bytes + encode_ascii(choice) + self._after

    def usage(self, usage: TokenUsage | None) -> bytes:
        """The last chunk of a stream, if it was asked for."""
        if not self._include_usage:
            return b""
        counts = orjson.dumps(usage.as_openai()) if usage else b"null"
        return b'%b],"usage":%b}\n\n' % (self._head_bytes, counts)

    def whole(self, choices: list[dict[str, Any]], usage: TokenUsage | None) -> dict[str, Any]:
        """An answer that is not streamed."""
        return whole_answer(self._request, choices, usage)


def whole_answer(request: InferenceRequest, choices: list[dict[str, Any]], usage: TokenUsage | None) -> dict[str, Any]:
    """An answer that is not streamed, under our ``id``, ``created`` and ``model``."""
    public = _head(request, "chat.completion")
    public["choices"] = choices
    if usage:
        public["usage"] = usage.as_openai()
    return public


def _head(request: InferenceRequest, chat_object: str) -> dict[str, Any]:
    return {
        "id": request.answer_id,
        "object": chat_object if request.kind is Kind.CHAT else "text_completion",
        "created": request.created_s,
        "model": request.public_model,
    }


def encode_event(chunk: dict[str, Any]) -> bytes:
    """One SSE event that holds a JSON object, in ASCII."""
    return b"data: " + encode_ascii(chunk) + b"\n\n"


def encode_ascii(value: dict[str, Any]) -> bytes:
    """JSON in ASCII: httpx cuts lines at U+2028, U+2029 and U+0085 too."""
    encoded = orjson.dumps(value)
    return encoded if encoded.isascii() else json.dumps(value, separators=(",", ":")).encode("ascii")


def escape_text(text: str) -> bytes:
    """The inside of a JSON string, in ASCII."""
    if text.isascii():
        return orjson.dumps(text)[1:-1]
    return json.dumps(text)[1:-1].encode("ascii")
