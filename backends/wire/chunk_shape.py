"""What the chunks of an engine look like, so that most of them need no JSON parse.

Floor: wire (pure). Two things are learned, always from a chunk that was parsed. A `Shape` is a plain chunk (one text of
choice 0, nothing else) without its text. `Habits` are what the streams of one engine have in common: the *preamble* up
to ``"choices":``, in which only id and time differ from stream to stream; the shape; and the few chunks that hold no
text at all (the role, the end, the usage). Recognition is exact: every byte but the text, the id, the time and the
counts of ``usage`` is compared, and these four must be well-formed. Whatever differs is parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

from backends.wire.answer.chunks import escape_text

MAX_KNOWN = 64
MAX_KNOWN_BYTES = 2048

NOT_PLAIN = re.compile(rb"[^\x20\x21\x23-\x5b\x5d-\x7f]")
"""Finds what may not stand as it is in our JSON strings, or might not: ASCII without quote, backslash and controls."""

_OURS = re.compile(rb'(?:[\x20\x21\x23-\x5b\x5d-\x7f\n]++|\\["\\bfnrt])*+')
"""Texts that stand as we would write them, with line ends between them."""

_ANY_TEXT = rb'(?:[^"\\\x00-\x1f]++|\\["\\/bfnrtu])*+'
_TEXT = re.compile(_ANY_TEXT)
_COUNT = rb"(?:0|[1-9][0-9]{0,17}+)"
_NUMBER = _COUNT + rb"(?![.0-9eE])"
_COUNTS = re.compile(rb'"usage": ?(\{(?:[^{}"\\]|"[a-z_]+"|\{(?:[^{}"\\]|"[a-z_]+")*\})*\})')
_ID = re.compile(rb'"id": ?"([A-Za-z0-9_.:-]{1,128})"')
_CREATED = re.compile(rb'"created": ?(' + _NUMBER + rb")")
_PROBE = "\x01"
_CHOICES = b'"choices":'
_USAGE = b'"usage":'


@dataclass(frozen=True, slots=True)
class Shape:
    """A plain chunk without its preamble and its text.

    Attributes:
        opening: from ``"choices":`` up to the text.
        end: from the text to the end of the event, its blank line included; empty if usage is counted in it.
        counted: else a pattern of the text (group 1) and all that follows it, with any counts.
    """

    opening: bytes
    end: bytes
    counted: re.Pattern[bytes] | None


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a chunk without text says.

    Attributes:
        index: of its only choice; ``None`` if it has none.
        reason: the public word for why that choice ended, if it did.
        counts: whether it bears usage.
    """

    index: int | None
    reason: str | None
    counts: bool


class Habits:
    """What is known of one engine's streams of one kind. Bounded; forgets all when it is full."""

    __slots__ = ("_known", "_preamble", "shape")

    def __init__(self) -> None:
        self._preamble: re.Pattern[bytes] | None = None
        self._known: dict[bytes, Meaning] = {}
        self.shape: Shape | None = None

    def preamble_of(self, event: bytes) -> bytes:
        """What every chunk of this stream will begin with if the engine keeps its habits; else nothing."""
        match = self._preamble.match(event) if self._preamble is not None else None
        return match[0] if match is not None else b""

    def learn_preamble(self, event: bytes) -> bytes:
        """The preamble of an event that was parsed; nothing if it does not begin with id and time."""
        if b"\n" in event or not event.startswith(b"data:"):
            return b""
        preamble = event[: max(0, event.find(_CHOICES))]
        name, created = _ID.search(preamble), _CREATED.search(preamble)
        if name is None or created is None or name.end() > created.start():
            return b""
        pattern = b"".join(
            (
                re.escape(preamble[: name.start(1)]),
                rb"[A-Za-z0-9_.:-]{1,128}",
                re.escape(preamble[name.end(1) : created.start(1)]),
                _NUMBER,
                re.escape(preamble[created.end(1) :]),
                rb"(?=" + _CHOICES + rb")",
            )
        )
        if self._preamble is None or self._preamble.pattern != pattern:
            self._preamble = re.compile(pattern)
            self._known.clear()
            self.shape = None
        return preamble

    def meaning_of(self, rest: bytes) -> tuple[Meaning, Any] | None:
        """What is behind a preamble: its meaning, and the engine's usage object or ``None``. ``None``: not known."""
        meaning = self._known.get(rest)
        if meaning is not None and not meaning.counts:
            return meaning, None
        head, usage = _at_usage(rest)
        meaning = self._known.get(head)
        if meaning is None:
            return None
        try:
            return meaning, orjson.loads(usage)
        except orjson.JSONDecodeError:
            return None

    def learn(self, rest: bytes, index: int | None, reason: str | None, *, counts: bool) -> None:
        """Remember a chunk that was parsed: it holds no text, and at most one choice."""
        if counts:
            rest, usage = _at_usage(rest)
            try:
                orjson.loads(usage)
            except orjson.JSONDecodeError:
                return  # it is not the last key, or something follows it
        if not rest or len(rest) > MAX_KNOWN_BYTES:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known[rest] = Meaning(index, reason, counts)


def shape_of(event: bytes, content_key: bytes, preamble_size: int) -> Shape | None:
    """Take a plain chunk apart.

    Args:
        event: a chunk that was parsed and holds one text of choice 0 and nothing else for a client.
        content_key: the key of that text with its quotes and colon.
        preamble_size: bytes that differ from stream to stream, at its start.
    """
    if b"\n" in event or event.count(content_key) != 1:
        return None
    start = event.index(content_key) + len(content_key)
    start += event[start : start + 1] == b" "
    text = _TEXT.match(event, start + 1)
    if text is None or event[start : start + 1] != b'"' or event[text.end() : text.end() + 1] != b'"':
        return None
    lead, trail = event[: start + 1], event[text.end() :]
    if not _holds(orjson.loads(lead[5:] + b"\\u0001" + trail), content_key):
        return None
    counts = _COUNTS.search(trail)
    if counts is None:
        return Shape(lead[preamble_size:], trail + b"\n\n", None)
    pattern = b"".join(
        (
            b"(" + _ANY_TEXT + b")",
            re.escape(trail[: counts.start(1)]),
            re.sub(rb"[0-9]+", lambda _: _COUNT, re.escape(counts[1])),
            re.escape(trail[counts.end(1) :] + b"\n\n"),
        )
    )
    return Shape(lead[preamble_size:], b"", re.compile(pattern))


def public_text(raw: bytes) -> bytes | None:
    """The inside of a JSON string as we write it, in ASCII. ``None``: it is not the inside of one."""
    if NOT_PLAIN.search(raw) is None:
        return raw
    if _TEXT.fullmatch(raw) is None:
        return None
    if raw.isascii() and b"\\u" not in raw and b"\\/" not in raw:
        return raw
    try:
        return escape_text(orjson.loads(b'"%b"' % raw))
    except orjson.JSONDecodeError:
        return None


def public_texts(raw: list[bytes]) -> list[bytes] | None:
    """`public_text` of many; ``None`` if one of them is none."""
    if NOT_PLAIN.search(b"".join(raw)) is None:
        return raw
    joined = b"\n".join(raw)
    if _OURS.fullmatch(joined) is not None and joined.count(b"\n") == len(raw) - 1:
        return raw
    public = list(map(public_text, raw))
    texts = [text for text in public if text is not None]
    return texts if len(texts) == len(raw) else None


def _holds(chunk: dict[str, Any], content_key: bytes) -> bool:
    """Whether the place where a probe was put is the text of the chunk's only choice."""
    choice = chunk["choices"][0]
    name = content_key[1:-2].decode()
    holder = choice.get("delta") if name == "content" else choice
    return isinstance(holder, dict) and holder.get(name) == _PROBE


def _at_usage(rest: bytes) -> tuple[bytes, bytes]:
    """Cut the end of a chunk, ``…"usage":{…}}``, into what precedes the value and the value.

    Where a value that is valid by itself is followed by a single brace, it is the last one of the outermost object.
    """
    head, key, usage = rest.rpartition(_USAGE)
    return (head + key, usage[:-1]) if key and usage.endswith(b"}") else (b"", b"")
