"""OpenAI messages as a model's chat template wants them.

Floor: wire (pure). Templates differ: some take a list of content parts, some only text; some want a tool call's
arguments as an object, some as JSON text; some know no system role. What a template takes is a `MessageForm`; what it
does not take is refused by name, since a model would else be asked something different from what the customer said.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from backends.wire.failure import Unsupported

SHORT_ID = re.compile(r"[A-Za-z0-9]{9}")
"""What some templates demand of a call's id."""

_MEDIA = {"image_url": "an image", "input_audio": "audio", "video_url": "a video", "file": "a file"}
_OLD_OR_AUDIO = ("function_call", "audio")
_FITTED = frozenset({"role", "content", "tool_calls", "tool_call_id", "refusal"})


@dataclass(frozen=True, slots=True)
class MessageForm:
    """What a template takes.

    ``plain`` are the roles whose content may be text, ``parted`` those whose content may be a list of text parts.
    """

    plain: frozenset[str]
    parted: frozenset[str]
    has_developer: bool = False
    takes_tools: bool = False
    takes_calls: bool = False
    object_arguments: bool = True
    """A call's arguments are an object, else JSON text."""
    null_content: bool = False
    """A message that only calls tools has null for its content, else an empty text."""
    short_ids: bool = False
    """The ids of calls are exactly nine letters and digits."""


def fit_messages(messages: Sequence[Mapping[str, Any]], form: MessageForm) -> list[dict[str, Any]]:
    """Write messages in the form.

    Args:
        messages: of a checked request.
        form: what the template takes.

    Raises:
        Unsupported: names what the template has no place for.
    """
    names: dict[str, str] = {}  # of called functions, by the id of the call
    return [_fitted(f"messages[{number}]", message, form, names) for number, message in enumerate(messages)]


def _fitted(where: str, message: Mapping[str, Any], form: MessageForm, names: dict[str, str]) -> dict[str, Any]:
    for field in _OLD_OR_AUDIO:
        if message.get(field) is not None:
            raise Unsupported(f"{where}.{field}", "is not possible with this model")
    said = message["role"]
    role = "system" if said == "developer" and not form.has_developer else said
    if role not in form.plain | form.parted:
        raise Unsupported(f"{where}.role", f"must not be {said} with this model")
    fitted = {field: value for field, value in message.items() if field not in _FITTED and value is not None}
    fitted["role"] = role
    fitted["content"] = _content(f"{where}.content", role, message, form)
    if calls := message.get("tool_calls"):
        if not form.takes_calls:
            raise Unsupported(f"{where}.tool_calls", "are not possible with this model")
        fitted["tool_calls"] = [
            _call(f"{where}.tool_calls[{position}]", call, form, names) for position, call in enumerate(calls)
        ]
        if form.null_content and not fitted["content"]:
            fitted["content"] = None
    if role == "tool":
        called = message["tool_call_id"]
        fitted["tool_call_id"] = _id(called, form)
        if called in names:
            fitted.setdefault("name", names[called])
    return fitted


def _content(where: str, role: str, message: Mapping[str, Any], form: MessageForm) -> str | list[dict[str, Any]]:
    content = message.get("content")
    if content is None:
        content = message.get("refusal") or ""
    if isinstance(content, str):
        if role in form.plain:
            return content
        return [{"type": "text", "text": content}]
    texts = [_text(f"{where}[{position}]", part) for position, part in enumerate(content)]
    if role in form.parted:
        return [{"type": "text", "text": text} for text in texts]
    return "\n".join(texts)


def _text(where: str, part: Mapping[str, Any]) -> str:
    kind = part["type"]
    if kind in ("text", "refusal"):
        text: str = part[kind]
        return text
    raise Unsupported(where, f"must not be {_MEDIA.get(kind, 'of this type')}: this model takes text only")


def _call(where: str, call: Any, form: MessageForm, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unsupported(where, "must be an object with the name and the arguments of a function")
    called = call.get("id")
    if not isinstance(called, str):
        raise Unsupported(f"{where}.id", "must be text")
    names[called] = function["name"]
    arguments = _arguments(f"{where}.function.arguments", function.get("arguments"), form)
    return {
        "id": _id(called, form),
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _arguments(where: str, written: Any, form: MessageForm) -> str | dict[str, Any]:
    if not isinstance(written, str):
        raise Unsupported(where, "must be the JSON of an object, as text")
    try:
        arguments = orjson.loads(written) if written.strip() else {}
    except orjson.JSONDecodeError:
        arguments = None
    if not isinstance(arguments, dict):
        raise Unsupported(where, "must be the JSON of an object, as text")
    if form.object_arguments:
        return arguments
    return written if written.strip() else "{}"


def _id(called: str, form: MessageForm) -> str:
    """The same short id for the same long one, so that results find their calls."""
    if not form.short_ids or SHORT_ID.fullmatch(called):
        return called
    return hashlib.sha256(called.encode("utf-8", "replace")).hexdigest()[:9]
