"""Part a model's reasoning from its answer by the marks around it.

Floor: wire (pure).

Reasoning is what stands between its marks at the beginning of an answer; a mark further on is text like any other,
since an answer may speak about marks. Whitespace next to the marks belongs to them.
"""

from __future__ import annotations

from enum import Enum, auto

from backends.wire.answer.deltas import WHITESPACE, Content, Delta, Reasoning
from backends.wire.answer.stop_words import held_length
from backends.wire.answer.styles import ReasoningMarks


class _At(Enum):
    BEGINNING = auto()
    INSIDE_BEGINNING = auto()
    INSIDE = auto()
    BEHIND = auto()
    CONTENT = auto()


class ReasoningSplitter:
    """The state of one answer; what may still be a mark is held back."""

    __slots__ = ("_at", "_held", "_marks")

    def __init__(self, marks: ReasoningMarks) -> None:
        self._marks = marks
        self._at = _At.BEGINNING
        self._held = ""

    def feed(self, text: str) -> list[Delta]:
        """Take more of the text; return what is known to be one or the other."""
        if self._at is _At.CONTENT:
            return [Content(text)]
        text = self._held + text
        self._held = ""
        out: list[Delta] = []
        if self._at is _At.BEGINNING:
            text = self._begin(text)
        if self._at is _At.INSIDE_BEGINNING:
            text = text.lstrip(WHITESPACE)
            if text:
                self._at = _At.INSIDE
        if self._at is _At.INSIDE:
            text = self._think(text, out)
        if self._at is _At.BEHIND:
            text = text.lstrip(WHITESPACE)
            if text:
                self._at = _At.CONTENT
        if self._at is _At.CONTENT and text:
            out.append(Content(text))
        return out

    def finish(self) -> list[Delta]:
        """The text has ended; a mark that was never completed was none."""
        held, self._held = self._held, ""
        if not held:
            return []
        is_open = self._at is _At.INSIDE or (self._at is _At.BEGINNING and self._marks.starts_open)
        return [Reasoning(held) if is_open else Content(held)]

    def _begin(self, text: str) -> str:
        """Decide what the text begins with; ``starts_open`` models may write the opening mark once more."""
        opens = self._marks.opens
        bare = text.lstrip(WHITESPACE)
        if bare.startswith(opens):
            self._at = _At.INSIDE_BEGINNING
            return bare[len(opens) :]
        if opens.startswith(bare):
            self._held = text
            return ""
        self._at = _At.INSIDE_BEGINNING if self._marks.starts_open else _At.CONTENT
        return text

    def _think(self, text: str, out: list[Delta]) -> str:
        closes = self._marks.closes
        end = text.find(closes)
        if end >= 0:
            self._at = _At.BEHIND
            out.append(Reasoning(text[:end].rstrip(WHITESPACE)))
            return text[end + len(closes) :]
        sure = text[: len(text) - held_length(text, (closes,))].rstrip(WHITESPACE)
        self._held = text[len(sure) :]
        out.append(Reasoning(sure))
        return ""
