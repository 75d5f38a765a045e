"""Find out what a chat template takes, by asking it to write small conversations and looking for what was said.

Floor: wire (pure). A template says nowhere which roles, content parts and tools it knows; reading its source for hints
fails with macros and new idioms, while what it writes can't mislead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backends.wire.chat_messages import MessageForm
from backends.wire.jinja_sandbox import BrokenTemplate, CompiledTemplate

_SAID = "qzxsaid"
_KEY = "qzxkey"
_LONG_ID = "call_0123456789abcdef"
_SHORT_ID = "a1b2c3d4e"
_USER: dict[str, Any] = {"role": "user", "content": "Hi"}
_ASSISTANT: dict[str, Any] = {"role": "assistant", "content": "Yes"}
_MORE = "qzxmore"
_PARTS: list[dict[str, Any]] = [{"type": "text", "text": _SAID}, {"type": "text", "text": _MORE}]
"""Two, since some templates write only the first."""
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "qzxtool",
        "description": "Look something up",
        "parameters": {"type": "object", "properties": {_KEY: {"type": "string", "description": "What"}}},
    },
}

Write = Callable[[Sequence[Mapping[str, Any]], Sequence[Any] | None], str | None]
"""A conversation as the template writes it, or None if it does not."""


def probe(template: CompiledTemplate, special_tokens: Mapping[str, str]) -> MessageForm:
    """Learn what a template takes.

    Raises:
        BrokenTemplate: it can't write what a user says.
    """

    def write(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None) -> str | None:
        variables = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        try:
            return template.write({**special_tokens, **variables})
        except Exception:  # whatever a template can do wrong
            return None

    plain = _roles(write, _SAID, (_SAID,))
    parted = _roles(write, _PARTS, (_SAID, _MORE))
    if "user" not in plain | parted:
        raise BrokenTemplate(
            "The chat template can't write what a user says: check that the file is the one that came with the model."
        )
    user = {"role": "user", "content": "Hi" if "user" in plain else [{"type": "text", "text": "Hi"}]}
    with_tools = write([user], [_TOOL])
    calls = _calls(write, user)
    results = bool(calls) and _SAID in (write([user, _calling(**calls), _result(calls["called"], _SAID)]) or "")
    parts = bool(calls) and _is_clean(write([user, _calling(**calls), _result(calls["called"], _PARTS)]), _SAID, _MORE)
    return MessageForm(
        plain=plain | {"tool"} if results else plain,
        parted=parted | {"tool"} if parts else parted,
        has_developer=any("developer" in text for text in template.texts),
        takes_tools=with_tools is not None and "qzxtool" in with_tools,
        takes_calls=bool(calls),
        object_arguments=isinstance(calls.get("arguments", {}), dict),
        null_content=bool(calls) and calls["content"] is None,
        short_ids=bool(calls) and calls["called"] == _SHORT_ID,
    )


def _roles(write: Write, content: Any, said: Sequence[str]) -> frozenset[str]:
    """The roles whose content may be like this."""
    conversations = {
        "user": [{"role": "user", "content": content}],
        "system": [{"role": "system", "content": content}, _USER],
        "developer": [{"role": "developer", "content": content}, _USER],
        "assistant": [_USER, {"role": "assistant", "content": content}, _USER],
    }
    if not _is_clean(write([_USER], None), "Hi"):  # takes no text at all
        conversations = {role: [_in_parts(message) for message in told] for role, told in conversations.items()}
    return frozenset(role for role, told in conversations.items() if _is_clean(write(told, None), *said))


def _in_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    if message["content"] in ("Hi", "Yes"):
        return {**message, "content": [{"type": "text", "text": message["content"]}]}
    return dict(message)


def _is_clean(written: str | None, *said: str) -> bool:
    """All that was said stands there, and not as the code of a list."""
    if written is None or "'type'" in written or '"type"' in written:
        return False
    return all(text in written for text in said)


def _calls(write: Write, user: Mapping[str, Any]) -> dict[str, Any]:
    """The first way of writing a tool call that the template takes, empty if there is none."""
    for called in (_LONG_ID, _SHORT_ID):
        for arguments in ({_KEY: _SAID}, f'{{"{_KEY}": "{_SAID}"}}'):
            for content in ("", None):
                way: dict[str, Any] = {"called": called, "arguments": arguments, "content": content}
                written = write([user, _calling(**way), _result(called, "Found")], None)
                if written is None or _KEY not in written or _SAID not in written:
                    continue
                is_code = f"'{_KEY}'" in written or f'\\"{_KEY}\\"' in written
                if not is_code:
                    return way
    return {}


def _calling(*, called: str, arguments: Any, content: str | None) -> dict[str, Any]:
    function = {"name": "qzxtool", "arguments": arguments}
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"id": called, "type": "function", "function": function}],
    }


def _result(called: str, content: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": called, "name": "qzxtool", "content": content}
