"""What a text turns out to be: content, reasoning, or a part of a tool call.

Floor: wire (pure).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

WHITESPACE = " \t\r\n"
"""What models put around their marks for looks."""


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A part of tool call ``index`` (from 0). ``name`` stands in its first part only."""

    index: int
    name: str | None
    arguments: str


Delta = Content | Reasoning | ToolCall


def merge(deltas: list[Delta]) -> list[Delta]:
    """Join neighbours of one kind, so that what came at once leaves at once; empty ones are dropped."""
    merged: list[Delta] = []
    for delta in deltas:
        last = merged[-1] if merged else None
        match delta:
            case Content(text):
                if isinstance(last, Content):
                    merged[-1] = Content(last.text + text)
                elif text:
                    merged.append(delta)
            case Reasoning(text):
                if isinstance(last, Reasoning):
                    merged[-1] = Reasoning(last.text + text)
                elif text:
                    merged.append(delta)
            case ToolCall(index, name, arguments):
                if isinstance(last, ToolCall) and last.index == index:
                    merged[-1] = ToolCall(index, last.name, last.arguments + arguments)
                elif name is not None or arguments:
                    merged.append(delta)
    return merged


def call_id(answer_id: str, choice: int, index: int) -> str:
    """The id of a tool call: the same for the same answer, however often it is written."""
    return "call_" + hashlib.sha256(f"{answer_id}/{choice}/{index}".encode()).hexdigest()[:24]
