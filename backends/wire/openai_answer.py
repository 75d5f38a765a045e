"""Turn an engine's whole JSON answer into the public one.

Floor: wire (pure). Keeps the fields of the OpenAI schema and writes ours over the identifying ones; whatever an
engine adds (checkpoint names, fingerprints, cache internals) is gone because it is never copied.
"""

from __future__ import annotations

from typing import Any

import orjson

from backends.wire.answer.chunks import whole_answer
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.finish_reason import finish_reason
from backends.wire.openai_stream import clean_logprobs, clean_tool_calls
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, read_usage

MESSAGE_FIELDS = ("reasoning_content", "refusal")


def rebuild_answer(raw: bytes, request: InferenceRequest) -> tuple[bytes, Observed]:
    """Translate one whole answer.

    Returns:
        The public JSON and what it holds: usage if it was reported, and the number of non-empty texts.

    Raises:
        BackendFailure: it is no answer of this kind.
    """
    try:
        answer = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise _malformed() from None
    if not isinstance(answer, dict) or answer.get("error"):
        raise _malformed()
    usage = read_usage(answer.get("usage"))
    if request.kind is Kind.EMBEDDING:
        rows = _embeddings(answer)
        public: dict[str, Any] = {"object": "list", "data": rows, "model": request.public_model}
        if usage:
            public["usage"] = {"prompt_tokens": usage.prompt, "total_tokens": usage.prompt}
        return _encode(public), Observed(usage, len(rows))
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices:
        raise _malformed()
    clean = _chat_choice if request.kind is Kind.CHAT else _text_choice
    public = whole_answer(request, [clean(choice, position) for position, choice in enumerate(choices)], usage)
    return _encode(public), Observed(usage, len(choices))


def _encode(public: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(public)
    except TypeError:  # nested deeper than JSON is written here
        raise _malformed() from None


def _chat_choice(choice: object, position: int) -> dict[str, Any]:
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise _malformed()
    public: dict[str, Any] = {"role": "assistant", "content": message.get("content")}
    for name in MESSAGE_FIELDS:
        if message.get(name):
            public[name] = message[name]
    if message.get("reasoning") and "reasoning_content" not in public:
        public["reasoning_content"] = message["reasoning"]
    if message.get("tool_calls"):
        public["tool_calls"] = clean_tool_calls(message["tool_calls"])
    elif not isinstance(public["content"], str):
        public["content"] = ""  # the contract: never null for text
    framed = _frame(choice, position)
    framed["message"] = public
    return framed


def _text_choice(choice: object, position: int) -> dict[str, Any]:
    if not isinstance(choice, dict) or not isinstance(choice.get("text"), str):
        raise _malformed()
    return {"text": choice["text"], **_frame(choice, position)}


def _frame(choice: dict[str, Any], position: int) -> dict[str, Any]:
    index, logprobs = choice.get("index"), choice.get("logprobs")
    return {
        "index": index if isinstance(index, int) else position,
        "logprobs": clean_logprobs(logprobs) if logprobs is not None else None,
        "finish_reason": finish_reason(choice.get("finish_reason")),
    }


def _embeddings(answer: dict[str, Any]) -> list[dict[str, Any]]:
    data = answer.get("data")
    if not isinstance(data, list) or not data:
        raise _malformed()
    rows: list[dict[str, Any]] = []
    for position, row in enumerate(data):
        if not isinstance(row, dict) or not isinstance(row.get("embedding"), list | str):
            raise _malformed()
        rows.append({"object": "embedding", "index": row.get("index", position), "embedding": row["embedding"]})
    return rows


def _malformed() -> BackendFailure:
    return BackendFailure(FailureCode.PROTOCOL, Phase.HEAD)
