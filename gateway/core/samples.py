"""Samples of live answers, as a worker hands them to the control process to be judged.

Floor: core (pure). A sample is kept in memory only, and by neither side for longer than it takes to judge it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

MAX_SAMPLE_BYTES: Final = 256 * 1024
"""Of messages and answer together; larger ones are not judged."""


@dataclass(slots=True)
class Sample:
    """One answered chat.

    Attributes:
        question: its messages as text, each behind its role.
        answer: what the first choice said.
    """

    endpoint_id: str
    question: str
    answer: str


def make_sample(endpoint_id: str, messages: Any, body: bytes, *, stream: bool) -> bytes | None:
    """A sample on its way; ``None`` for what a judge could not read: images, sounds, calls of tools, no text.

    Args:
        messages: checked ones of the request.
        body: the answer as the client got it: JSON, or the events of a stream.
    """
    question = _question(messages)
    answer = _streamed_text(body) if stream else _text(body)
    if question is None or not answer:
        return None
    sample = orjson.dumps([endpoint_id, question, answer])
    return sample if len(sample) <= MAX_SAMPLE_BYTES else None


def read_sample(data: bytes) -> Sample:
    """The sample again.

    Raises:
        ValueError: it is none.
    """
    endpoint_id, question, answer = orjson.loads(data)
    return Sample(endpoint_id, question, answer)


def _question(messages: Any) -> str | None:
    lines: list[str] = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                return None
            content = "\n".join(part["text"] for part in content)
        if not isinstance(content, str):
            return None
        lines.append(f"{message['role']}: {content}")
    return "\n".join(lines)


def _text(body: bytes) -> str | None:
    try:
        content = orjson.loads(body)["choices"][0]["message"].get("content")
    except (orjson.JSONDecodeError, LookupError, TypeError, AttributeError):
        return None
    return content if isinstance(content, str) else None


def _streamed_text(events: bytes) -> str | None:
    pieces: list[str] = []
    for line in events.split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        try:
            chunk = orjson.loads(line[6:])
        except orjson.JSONDecodeError:
            return None
        for choice in chunk.get("choices") or ():
            if choice.get("index") == 0 and isinstance(piece := (choice.get("delta") or {}).get("content"), str):
                pieces.append(piece)
    return "".join(pieces)
