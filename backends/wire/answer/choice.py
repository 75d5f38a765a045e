"""One choice of an answer: its bytes become text, its text becomes deltas.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Callable

from backends.wire.answer.deltas import Content, Delta, Reasoning, merge
from backends.wire.answer.logprobs import ChoiceLogprobs
from backends.wire.answer.meter import ChoiceMeter, TokenCount
from backends.wire.answer.reasoning import ReasoningSplitter
from backends.wire.answer.stop_words import StopWords
from backends.wire.answer.styles import ReasoningMarks
from backends.wire.answer.tool_calls import ToolCallParser
from backends.wire.answer.utf8 import Utf8Joiner
from backends.wire.sampling import Piece


class Choice:
    """The state of one choice.

    Args:
        index: from 0.
        stop: texts that end it.
        reasoning: how its model marks reasoning, if it does.
        tools: finds its tool calls, if it may make any.
        count: counts tokens where the engine does not say.
    """

    __slots__ = (
        "_characters", "_joiner", "_splitter", "_stops", "_tools", "has_begun", "index", "is_plain", "logprobs",
        "meter", "reason", "was_stopped",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        *,
        stop: tuple[str, ...],
        reasoning: ReasoningMarks | None,
        tools: Callable[[], ToolCallParser] | None,
        count: TokenCount | None,
    ) -> None:
        self.index = index
        self._joiner = Utf8Joiner()
        self._stops = StopWords(stop)
        self._splitter = ReasoningSplitter(reasoning) if reasoning else None
        self._tools = tools() if tools else None
        self.is_plain = self._splitter is None and self._tools is None
        """Its text is content and nothing else: `feed_plain` may be used."""
        self._characters = 0  # decoded so far
        self.meter = ChoiceMeter(count)
        self.logprobs = ChoiceLogprobs()
        self.has_begun = False
        self.was_stopped = False
        """A stop text was found: nothing that follows counts."""
        self.reason: str | None = None
        """Why it ended; set once it has."""

    @property
    def cut_at(self) -> int | None:
        """Where its stop text begins, if one was found."""
        return self._stops.cut_at

    @property
    def has_called(self) -> bool:
        """Whether it holds a whole tool call."""
        return self._tools is not None and self._tools.calls > 0

    def feed(self, piece: Piece) -> list[Delta]:
        """Take the next piece; return what is known of the text by now."""
        self.meter.note(piece)
        if piece.logprobs:
            self.is_plain = False
            self.logprobs.note(piece, self._characters)
        return self._merged(self._take(self._joiner.feed(piece.text))) if piece.text else []

    def feed_plain(self, piece: Piece) -> str:
        """The same as `feed`, for a piece with text and without log probabilities; what is known is content."""
        self.meter.note(piece)
        return self._decode(self._joiner.feed(piece.text))

    def finish(self) -> list[Delta]:
        """Return what was held back: the text has ended, be it at a stop text."""
        out: list[Delta] = []
        if not self.was_stopped:
            out += self._take(self._joiner.finish())
            out += self._split(self._stops.finish())
        if self._splitter is not None:
            out += self._parse(self._splitter.finish())
        if self._tools is not None:
            out += self._tools.finish()
        return self._merged(out)

    def _take(self, text: str) -> list[Delta]:
        return self._split(self._decode(text))

    def _decode(self, text: str) -> str:
        """What of this text surely stands before any stop text."""
        before = self._characters
        self._characters += len(text)
        passed = self._stops.feed(text)
        cut_at = self._stops.cut_at
        if cut_at is not None and not self.was_stopped:
            self.was_stopped = True
            text = text[: cut_at + len(self._stops.stop) - before]
        self.meter.generated(text)
        return passed

    def _split(self, text: str) -> list[Delta]:
        if not text:
            return []
        if self._splitter is None:
            return self._parse([Content(text)])
        return self._parse(self._splitter.feed(text))

    def _parse(self, deltas: list[Delta]) -> list[Delta]:
        if self._tools is None:
            return deltas
        out: list[Delta] = []
        for delta in deltas:
            if isinstance(delta, Content):
                out += self._tools.feed(delta.text)
            else:
                out.append(delta)
        return out

    def _merged(self, deltas: list[Delta]) -> list[Delta]:
        merged = merge(deltas)
        for delta in merged:
            if isinstance(delta, Reasoning):
                self.meter.reasoned(delta.text)
        return merged
