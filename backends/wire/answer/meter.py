"""Count the tokens of one choice: what the engine said, else what a tokenizer says, else the pieces.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from backends.wire.sampling import Piece

_SEGMENT_CHARS = 256
"""So much text at most is counted again when it is asked how many tokens there are, as it is near a bound."""

TokenCount = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Tally:
    """``deltas`` are pieces with text; ``reported`` is false once we counted ourselves."""

    completion: int
    deltas: int
    reasoning: int
    reported: bool


class ChoiceMeter:
    """The tokens of one choice.

    A piece that said nothing visible yet costs nothing yet; it is counted with the next one that is handed out.
    """

    __slots__ = (
        "_count", "_deltas", "_has_ended", "_has_report", "_hidden", "_hidden_reasoning", "_reasoning", "_reported",
        "_shown_deltas", "_shown_tokens", "_text", "_tokens",
    )  # fmt: skip

    def __init__(self, count: TokenCount | None) -> None:
        self._count = count
        self._tokens = 0
        self._deltas = 0
        self._has_report = False
        self._reported = True  # of every piece with text
        self._shown_tokens = 0
        self._shown_deltas = 0
        self._hidden = ""
        self._hidden_reasoning = ""
        self._text = _TextCount(count) if count else None
        self._reasoning = _TextCount(count) if count else None
        self._has_ended = False

    def note(self, piece: Piece) -> None:
        """A piece has come. One with text of which the engine does not say how many tokens it is, is one at least."""
        self._deltas += bool(piece.text)
        if piece.tokens is not None:
            self._has_report = True
            self._tokens += piece.tokens
        elif piece.text:
            self._reported = False
            self._tokens += 1

    def generated(self, text: str) -> None:
        """Text that came, with all marks and with the stop text that ended it."""
        if self._count is not None and not self._has_report:  # an engine that counts is believed
            self._hidden += text

    def reasoned(self, text: str) -> None:
        """Text that turned out to be reasoning."""
        if self._count is not None:
            self._hidden_reasoning += text

    def shown(self) -> None:
        """Something was handed out; all that came before it is counted now."""
        self._shown_tokens = self._tokens
        self._shown_deltas = self._deltas
        if self._text is not None and self._hidden:
            self._text.add(self._hidden)
            self._hidden = ""
        if self._reasoning is not None and self._hidden_reasoning:
            self._reasoning.add(self._hidden_reasoning)
            self._hidden_reasoning = ""

    def end(self) -> None:
        """Nothing more comes: all is counted, and exactly."""
        self.shown()
        self._has_ended = True

    def tally(self) -> Tally:
        """What was handed out."""
        if self._has_report or self._text is None or self._reasoning is None:
            completion = self._shown_tokens
        else:
            completion = self._text.total() if self._has_ended else self._text.so_far()
        reasoning = 0
        if self._reasoning is not None:
            reasoning = self._reasoning.total() if self._has_ended else self._reasoning.so_far()
        is_reported = self._reported and (self._has_report or not self._shown_deltas)
        return Tally(completion, self._shown_deltas, min(reasoning, completion), is_reported)

    def with_next(self, piece: Piece) -> Tally:
        """What will have been handed out if this piece is, and all that was kept back before it."""
        said = self.tally()
        is_counted = piece.tokens is not None or not piece.text
        if self._has_report or piece.tokens or self._count is None:
            completion = self._tokens + (piece.tokens or 0 if is_counted else 1)
        else:
            more = self._hidden + piece.text.decode("utf-8", "replace")
            completion = said.completion + (self._count(more) if more else 0)
        return Tally(completion, self._deltas + bool(piece.text), said.reasoning, said.reported and is_counted)


class _TextCount:
    """The tokens of a text that grows: about right at any time without counting all of it again, exact at its end."""

    __slots__ = ("_before", "_count", "_counted", "_parts", "_tail", "_total")

    def __init__(self, count: TokenCount) -> None:
        self._count = count
        self._parts: list[str] = []
        self._before = 0
        self._tail = ""
        self._counted: int | None = 0
        self._total: int | None = None

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._tail += text
        self._counted = self._total = None
        if len(self._tail) > _SEGMENT_CHARS:
            # Tokenizers begin a token at a space, so that is where the sum of two counts is the count of the whole.
            end = max(self._tail.rfind(" "), _SEGMENT_CHARS // 2)
            self._before += self._count(self._tail[:end])
            self._tail = self._tail[end:]

    def so_far(self) -> int:
        if self._counted is None:
            self._counted = self._before + self._count(self._tail)
        return self._counted

    def total(self) -> int:
        if self._total is None:
            self._total = self._count("".join(self._parts)) if self._parts else 0
        return self._total
