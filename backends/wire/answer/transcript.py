"""Gather the deltas of one choice for an answer that is not streamed.

Floor: wire (pure).
"""

from __future__ import annotations

from typing import Any

from backends.wire.answer.choice import Choice
from backends.wire.answer.deltas import Content, Delta, Reasoning, ToolCall, call_id
from backends.wire.answer.logprobs import Scored, chat_logprobs, text_logprobs
from backends.wire.request import InferenceRequest, Kind


class Transcript:
    """What one choice said."""

    __slots__ = ("_arguments", "_content", "_names", "_reasoning", "_scored")

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._names: list[str] = []
        self._arguments: list[list[str]] = []
        self._scored: list[Scored] = []

    def add(self, deltas: list[Delta], scored: list[Scored]) -> None:
        """Something more was said."""
        self._scored += scored
        for delta in deltas:
            match delta:
                case Content(text):
                    self._content.append(text)
                case Reasoning(text):
                    self._reasoning.append(text)
                case ToolCall(index, name, arguments):
                    if name is not None:
                        self._names.append(name)
                        self._arguments.append([])
                    self._arguments[index].append(arguments)

    def as_openai(self, choice: Choice, request: InferenceRequest) -> dict[str, Any]:
        """The choice in a whole answer; its content is null only beside tool calls."""
        text = "".join(self._content)
        if request.kind is not Kind.CHAT:
            return {"text": text, **_frame(choice, text_logprobs(self._scored))}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self._reasoning:
            message["reasoning_content"] = "".join(self._reasoning)
        if self._names:
            message["content"] = text or None
            message["tool_calls"] = [
                {
                    "id": call_id(request.answer_id, choice.index, index),
                    "type": "function",
                    "function": {"name": name, "arguments": "".join(arguments)},
                }
                for index, (name, arguments) in enumerate(zip(self._names, self._arguments, strict=True))
            ]
        return {**_frame(choice, chat_logprobs(self._scored)), "message": message}


def _frame(choice: Choice, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {"index": choice.index, "logprobs": logprobs, "finish_reason": choice.reason}
