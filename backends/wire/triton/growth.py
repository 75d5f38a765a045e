"""What is new in a text that may come as a whole again and again.

Floor: wire (pure).
"""

from __future__ import annotations

SURELY_BYTES = 32
"""A response that repeats this much of the answer from its beginning, and goes on, is no delta."""
_UNFINISHED = "\ufffd".encode()
"""What a tokenizer writes for the bytes of a character whose rest is still to come."""


class Growth:
    """Turns the texts of successive responses into deltas.

    An engine sends either what is new or all there is so far. Where that isn't known it shows: a text that begins
    with all that was there before is taken as the whole, until one comes that doesn't.
    """

    __slots__ = ("_is_whole", "_last", "_received", "_told")

    def __init__(self, *, is_whole: bool | None) -> None:
        """Args: is_whole: whether each text is all there is so far; ``None`` if that has to be found out."""
        self._is_whole = is_whole
        self._told = b""
        self._last = b""
        self._received = b""

    def add(self, text: bytes) -> bytes:
        """What of this text is new and may be told. Trailing U+FFFD of a whole text waits for its character."""
        if self._is_whole is False:
            return text
        if self._is_whole is None:
            if not (text.startswith(self._told) or self._told.startswith(text)):
                return self._are_deltas(text)
            if len(self._told) >= SURELY_BYTES and len(text) > len(self._told):
                self._is_whole = True
                self._received = b""
            else:
                self._received += text
        self._last = text
        stable = text
        while stable.endswith(_UNFINISHED):
            stable = stable[: -len(_UNFINISHED)]
        # An engine that cuts a stop text off at the end sends less than before: nothing of it is new.
        new = stable[len(self._told) :]
        self._told += new
        return new

    def rest(self) -> bytes:
        """What was kept back, once nothing more comes."""
        new = self._last[len(self._told) :] if self._is_whole is not False else b""
        self._told += new
        return new

    def _are_deltas(self, text: bytes) -> bytes:
        """The guess was wrong: tell what it swallowed too."""
        self._is_whole = False
        whole = self._received + text
        self._received = self._last = b""
        return whole[len(self._told) :] if whole.startswith(self._told) else text
