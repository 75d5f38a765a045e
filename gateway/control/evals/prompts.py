"""What a model is asked about a row: the same prompt as in serving, so that a board and an endpoint agree.

Floor: control (pure). A task's system prompt of record goes before the row, as it goes before a customer's messages. A
task's scaffold is a template that customers fill in before they call; here it is filled in with the row.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Document:
    """A document of a row, with its bytes."""

    field_name: str
    mime: str
    data: bytes


def messages(
    row_input: Any,
    *,
    system_prompt: str | None,
    prompt_scaffold: str | None,
    labels: Sequence[str],
    documents: Sequence[Document] = (),
) -> list[dict[str, Any]]:
    """The messages of a chat request.

    Args:
        row_input: a text, or an object with a value for each input field.
        labels: those of the task, for its scaffold.
    """
    found: list[dict[str, Any]] = []
    if system_prompt is not None:
        found.append({"role": "system", "content": system_prompt})
    text = _asked(row_input, documents)
    if prompt_scaffold is not None:
        text = _filled(prompt_scaffold, text, row_input, labels)
    if not documents:
        found.append({"role": "user", "content": text})
        return found
    parts: list[dict[str, Any]] = [_part(document) for document in documents]
    if text:
        parts.append({"type": "text", "text": text})
    found.append({"role": "user", "content": parts})
    return found


def _asked(row_input: Any, documents: Sequence[Document]) -> str:
    """The row as text. An object of one text is that text; others are written with the names of their fields."""
    if isinstance(row_input, str):
        return row_input
    attached = {document.field_name for document in documents}
    fields = {name: value for name, value in row_input.items() if name not in attached and value is not None}
    if len(fields) == 1 and isinstance(only := next(iter(fields.values())), str):
        return only
    return "\n\n".join(f"{name}:\n{_text(value)}" for name, value in fields.items())


def _filled(scaffold: str, text: str, row_input: Any, labels: Sequence[str]) -> str:
    """A scaffold with its places filled in. In one pass: what a row says is never a place itself."""
    values: dict[str, str] = {"labels": ", ".join(labels), "text": text}
    if isinstance(row_input, Mapping):
        values |= {name: _text(value) for name, value in row_input.items() if name not in values and value is not None}
    pieces: list[str] = []
    rest, has_text = scaffold, False
    while rest:
        before, brace, after = rest.partition("{")
        pieces.append(before)
        name, end, following = after.partition("}")
        if brace and end and name in values:
            pieces.append(values[name])
            has_text = has_text or name not in ("labels",)
            rest = following
        else:
            pieces.append(brace)
            rest = after
    filled = "".join(pieces)
    return filled if has_text or not text else f"{filled}\n\n{text}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _part(document: Document) -> dict[str, Any]:
    url = f"data:{document.mime};base64,{b64encode(document.data).decode()}"
    if document.mime.startswith("image/"):
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"filename": f"{document.field_name}.pdf", "file_data": url}}
