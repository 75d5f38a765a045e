"""How a model writes what is not plain text: its tool calls and its reasoning.

Floor: wire (pure).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ToolStyle(StrEnum):
    """The form in which a model writes tool calls.

    Hermes and Qwen: ``<tool_call>{"name": …, "arguments": {…}}</tool_call>``, once for each call.
    Llama-3: ``{"name": …, "parameters": {…}}`` instead of an answer, with or without ``<|python_tag|>`` before it;
    several are parted by ``;``.
    Mistral: ``[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`` or, newer, ``[TOOL_CALLS]name{…}`` for each call.
    """

    HERMES = "hermes"
    LLAMA3 = "llama3_json"
    MISTRAL = "mistral"


@dataclass(frozen=True, slots=True)
class ReasoningMarks:
    """What stands around a model's reasoning. ``starts_open``: the template has already written the opening mark."""

    opens: str = "<think>"
    closes: str = "</think>"
    starts_open: bool = False
