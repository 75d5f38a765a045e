"""What a vendor's model is asked: messages in OpenAI's form, read once, so that each adapter can write them in its own.

Floor: control (pure). Texts, images and PDF, the latter two as data URLs: nothing is ever fetched for a message, by us
or by a vendor on our behalf.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

_DATA_URL: Final = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.ASCII | re.IGNORECASE)
# Some vendors want a name for each file and none of them reads it.
_NAME: Final = "document.pdf"


class InputRefused(ValueError):
    """A message has a form that is not taken here. The text is a public sentence."""


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    text: str


@dataclass(frozen=True, slots=True)
class Blob:
    """An image or a document.

    Attributes:
        mime: in lower case.
        data: base64, as it came.
        name: of a file.
    """

    mime: str
    data: str = field(repr=False)
    name: str

    @property
    def is_image(self) -> bool:
        """Whether it is one; else it is a document."""
        return self.mime.startswith("image/")

    @property
    def data_url(self) -> str:
        """Both in one."""
        return f"data:{self.mime};base64,{self.data}"


Part = Text | Blob


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side said; at least one part."""

    role: Literal["user", "assistant"]
    parts: Sequence[Part]


@dataclass(frozen=True, slots=True)
class Conversation:
    """``system``: the instructions, in their order; the turns follow them."""

    system: Sequence[str]
    turns: Sequence[Turn]


def read_conversation(messages: Sequence[Mapping[str, Any]]) -> Conversation:
    """Read messages of the roles ``system``, ``developer``, ``user`` and ``assistant``.

    Instructions among the turns come before them: not every vendor has a place for them elsewhere.

    Raises:
        InputRefused: another role or kind of part, a URL that is no base64 data URL, or nobody says anything.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        role, parts = message.get("role"), _parts(message.get("content"))
        if role in ("system", "developer"):
            for part in parts:
                if not isinstance(part, Text):
                    raise InputRefused("Instructions must be text.")
                system.append(part.text)
        elif role == "user" or role == "assistant":
            turns.append(Turn(role, parts))
        else:
            raise InputRefused("A message must be from system, developer, user or assistant.")
    if not turns:
        raise InputRefused("There must be a message of a user.")
    return Conversation(system, turns)


def _parts(content: object) -> Sequence[Part]:
    if isinstance(content, str):
        return [Text(content)]
    if not isinstance(content, list) or not content:
        raise InputRefused("A message's content must be a text or a list of parts.")
    return [_part(one) for one in content]


def _part(part: object) -> Part:
    match part:
        case {"type": "text", "text": str(text)}:
            return Text(text)
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            blob = _blob(url, _NAME)
            if not blob.is_image:
                raise InputRefused("An image must have an image's type.")
            return blob
        case {"type": "file", "file": {"file_data": str(url), **rest}}:
            name = rest.get("filename")
            return _blob(url, name if isinstance(name, str) and name else _NAME)
        case _:
            raise InputRefused("A part of a message must be a text, an image or a file.")


def _blob(url: str, name: str) -> Blob:
    head = _DATA_URL.match(url)
    if head is None:
        raise InputRefused("Images and files must be data URLs in base64.")
    return Blob(head.group(1).lower(), url[head.end() :], name)
