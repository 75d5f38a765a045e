"""What a request allows a model to call.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolRules:
    """``only`` is the one function that was named; without ``parallel`` only the first call counts."""

    functions: frozenset[str]
    only: str | None = None
    parallel: bool = True

    def accepts(self, name: str) -> bool:
        """Whether a call of this function is a call; a function that nobody offered is the caller's to refuse."""
        return self.only is None or name == self.only

    def knows(self, name: str) -> bool:
        """Whether the function was offered, and may be called: asked where nothing else marks a call as one."""
        return name in self.functions and self.accepts(name)


def tool_rules(body: Mapping[str, Any]) -> ToolRules | None:
    """Read ``tools``, ``tool_choice`` and ``parallel_tool_calls``; ``None`` if no text of the answer is a call."""
    tools = body.get("tools")
    choice = body.get("tool_choice")
    if not isinstance(tools, list) or not tools or choice == "none":
        return None
    functions = frozenset(name for tool in tools if (name := _name(tool)) is not None)
    return ToolRules(functions, _name(choice), body.get("parallel_tool_calls") is not False)


def _name(tool: object) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
