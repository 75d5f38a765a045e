"""Find the end of a JSON object that comes in pieces, without parsing it.

Floor: wire (pure).
"""

from __future__ import annotations

import re

_STRING_RUN = re.compile(r'[^"\\]*')
_PLAIN_RUN = re.compile(r"[0-9A-Za-z+\-.,: \t\r\n]*")
_CLOSES = {"{": "}", "[": "]"}


class StringScanner:
    """Follow a JSON string from behind its opening quote to its closing one."""

    __slots__ = ("_is_escaped", "is_done")

    def __init__(self) -> None:
        self._is_escaped = False
        self.is_done = False

    def feed(self, text: str, start: int) -> int:
        """Where the string ends, behind its quote; the text's end while it goes on."""
        while start < len(text):
            if self._is_escaped:
                self._is_escaped = False
                start += 1
                continue
            run = _STRING_RUN.match(text, start)
            assert run is not None
            start = run.end()
            if start == len(text):
                break
            start += 1
            if text[start - 1] == '"':
                self.is_done = True
                break
            self._is_escaped = True
        return start


class NestedScanner:
    """Follow a JSON object or array from its opening bracket to its closing one.

    Only strings and brackets are understood: a value that no parser would take passes as it stands, as long as it could
    be meant as JSON. What cannot be, such as a bracket that closes another one, breaks it.
    """

    __slots__ = ("_stack", "_string", "is_broken", "is_done")

    def __init__(self) -> None:
        self._stack: list[str] = []
        self._string: StringScanner | None = None
        self.is_done = False
        self.is_broken = False

    def feed(self, text: str, start: int) -> int:
        """Where the value ends, or before which character it broke; the text's end while it goes on."""
        while start < len(text):
            if self._string is not None:
                start = self._string.feed(text, start)
                if self._string.is_done:
                    self._string = None
                continue
            run = _PLAIN_RUN.match(text, start)
            assert run is not None
            start = run.end()
            if start == len(text):
                break
            if not self._step(text[start]):
                self.is_broken = True
                break
            start += 1
            if not self._stack:
                self.is_done = True
                break
        return start

    def _step(self, char: str) -> bool:
        if char == '"':
            self._string = StringScanner()
        elif char in _CLOSES:
            self._stack.append(_CLOSES[char])
        elif not self._stack or self._stack.pop() != char:
            return False
        return True
