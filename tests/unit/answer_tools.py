"""What the tests of the answer writer share: how to write an answer, and how a client reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.wire.allowance import Allowance, no_bound
from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.answer.writer import AnswerWriter
from backends.wire.request import InferenceRequest, Kind
from backends.wire.sampling import Piece

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in ("weather", "f", "g")]


def words(text: str) -> int:
    """A tokenizer for tests: words and single other characters."""
    return len(re.findall(r"\w+|\W", text))


def writer(
    *,
    stream: bool = True,
    tools: ToolStyle | None = None,
    reasoning: ReasoningMarks | None = None,
    stop: tuple[str, ...] = (),
    count: Callable[[str], int] | None = words,
    allow: Allowance = no_bound,
    completions: int = 1,
    kind: Kind = Kind.CHAT,
    include_usage: bool = False,
    body: dict[str, Any] | None = None,
    prompt_tokens: int | None = 9,
) -> AnswerWriter:
    request = InferenceRequest(
        kind=kind,
        body={"tools": TOOLS, **(body or {})} if tools else body or {},
        stream=stream,
        include_usage=include_usage,
        answer_id="chatcmpl-1",
        created_s=1_700_000_000,
        public_model="ep_x",
        completions=completions,
    )
    return AnswerWriter(
        request, prompt_tokens=prompt_tokens, stop=stop, tools=tools, reasoning=reasoning, count=count, allow=allow
    )


@dataclass
class Read:
    """What a client makes of one choice."""

    content: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None
    logprobs: list[tuple[str, float]] = field(default_factory=list)


def chunks_of(stream: bytes) -> list[dict[str, Any]]:
    if not stream:
        return []
    assert stream.isascii()
    assert stream.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in stream[:-2].split(b"\n\n")]


def read_stream(stream: bytes, index: int = 0) -> Read:
    """Put a stream together as the OpenAI reference says, and check its form."""
    read = Read()
    choices = [c for chunk in chunks_of(stream) for c in chunk["choices"] if c["index"] == index]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    for choice in choices[1:]:
        delta = choice["delta"]
        assert read.reason is None, "nothing follows the end"
        assert "role" not in delta
        assert bool(delta) != (choice["finish_reason"] is not None)
        read.content += delta.get("content", "")
        read.reasoning += delta.get("reasoning_content", "")
        for call in delta.get("tool_calls", []):
            if call["index"] == len(read.calls):
                assert set(call) == {"index", "id", "type", "function"}
                read.calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            else:
                assert call["index"] == len(read.calls) - 1, "calls come one after the other"
                assert set(call) == {"index", "function"}
                assert set(call["function"]) == {"arguments"}
            read.calls[call["index"]]["arguments"] += call["function"]["arguments"]
        scored = (choice.get("logprobs") or {}).get("content", [])
        read.logprobs += [(token["token"], token["logprob"]) for token in scored]
        read.reason = choice["finish_reason"]
    return read


def read_whole(body: bytes, index: int = 0) -> Read:
    """The same from an answer that is not streamed."""
    choice = json.loads(body)["choices"][index]
    message = choice["message"]
    calls = [
        {"id": call["id"], "name": call["function"]["name"], "arguments": call["function"]["arguments"]}
        for call in message.get("tool_calls", [])
    ]
    assert message["content"] is not None or calls
    return Read(
        content=message["content"] or "",
        reasoning=message.get("reasoning_content", ""),
        calls=calls,
        reason=choice["finish_reason"],
        logprobs=[(t["token"], t["logprob"]) for t in (choice["logprobs"] or {}).get("content", [])],
    )


def streamed(texts: Sequence[str | bytes], *, finish: str = "stop", **options: Any) -> Read:
    """What a client reads of a streamed answer whose engine says these texts."""
    answer = writer(**options)
    out = b"".join(answer.feed(Piece(text=_bytes(text))) for text in texts)
    out += answer.feed(Piece(finish=finish))
    return read_stream(out + answer.finish())


def whole(texts: Sequence[str | bytes], *, finish: str = "stop", **options: Any) -> Read:
    """The same, not streamed."""
    answer = writer(stream=False, **options)
    for text in texts:
        assert answer.feed(Piece(text=_bytes(text))) == b""
    answer.feed(Piece(finish=finish))
    assert answer.finish() == b""
    return read_whole(answer.whole())


def read(text: str, **options: Any) -> Read:
    """What a client reads, which is the same streamed by characters, streamed at once, and whole."""
    once = whole([text], **options)
    assert streamed([text], **options) == once
    assert streamed(list(text), **options) == once
    return once


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text
