"""Cut a text at the first of its stop texts, though they come in pieces.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Iterable


def held_length(text: str, marks: Iterable[str]) -> int:
    """How many last characters of a text may be the beginning of one of the marks."""
    longest = 0
    for mark in marks:
        reach = min(len(mark) - 1, len(text))
        if reach <= longest:
            continue
        start = text.find(mark[0], len(text) - reach)
        while start >= 0:
            length = len(text) - start
            if length <= longest:
                break
            if mark.startswith(text[start:]):
                longest = length
                break
            start = text.find(mark[0], start + 1)
    return longest


class StopWords:
    """Pass a text on up to the stop text that is complete first; of those that end together the longest counts.

    What may begin a stop text is held back until it is known not to be one.
    """

    __slots__ = ("_begins", "_held", "_taken", "_words", "cut_at", "stop")

    def __init__(self, words: Iterable[str]) -> None:
        self._words = tuple(word for word in words if word)
        self._begins = tuple({word[0] for word in self._words})
        self._held = ""
        self._taken = 0  # characters passed on
        self.cut_at: int | None = None
        """Where the stop text begins, in characters from the beginning; set once it was found."""
        self.stop = ""

    def feed(self, text: str) -> str:
        """What surely stands before any stop text."""
        if not self._words or not text:
            return text
        if self.cut_at is not None:
            return ""
        if not self._held:
            for begin in self._begins:
                if begin in text:
                    break
            else:  # nearly always: no stop text can begin here
                self._taken += len(text)
                return text
        text = self._held + text
        found = self._first(text)
        if found is not None:
            start, end = found
            self.cut_at = self._taken + start
            self.stop = text[start:end]
            self._held = ""
            return text[:start]
        keep = len(text) - held_length(text, self._words)
        self._held = text[keep:]
        self._taken += keep
        return text[:keep]

    def finish(self) -> str:
        """The text has ended: what was held back began no stop text."""
        held, self._held = self._held, ""
        self._taken += len(held)
        return held

    def _first(self, text: str) -> tuple[int, int] | None:
        best: tuple[int, int] | None = None
        for word in self._words:
            start = text.find(word)
            if start < 0:
                continue
            end = start + len(word)
            if best is None or (end, start) < (best[1], best[0]):
                best = start, end
        return best
