"""Read one tool call, a JSON object with a name and arguments, while it comes.

Floor: wire (pure). Knows the object, never what stands around it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from enum import Enum, auto

from backends.wire.answer.deltas import WHITESPACE
from backends.wire.answer.json_value import NestedScanner, StringScanner

ARGUMENTS_KEYS = ("arguments", "parameters")
CALL_KEYS = frozenset({"name", "type", "id", *ARGUMENTS_KEYS})
_SCALAR_RUN = re.compile(r"[0-9A-Za-z+\-.]*")


class _At(Enum):
    OPEN = auto()
    KEY_OR_END = auto()
    COLON = auto()
    VALUE = auto()
    STRING = auto()
    NESTED = auto()
    SCALAR = auto()
    COMMA_OR_END = auto()
    DONE = auto()
    BROKEN = auto()


class _For(Enum):
    """What a value is read for."""

    KEY = auto()
    NAME = auto()
    ARGUMENTS = auto()
    NOTHING = auto()


class CallScanner:
    """The state of one call.

    Its arguments are the model's own text of them, byte for byte, and can be taken as soon as the name is known.
    Arguments that the model wrote as a string are what the string holds; ``null``, or none at all, are ``{}``.

    Args:
        accepts: whether a function of this name may be called.
        is_strict: nothing marks the object as a call: one with a name alone, or with foreign keys, is none.
        name: known already; then only the object of the arguments is read.
    """

    __slots__ = (
        "_accepts", "_at", "_fresh", "_has_arguments", "_is_bare", "_is_strict", "_nested", "_purpose", "_said",
        "_string", "has_all_arguments", "is_call", "name",
    )  # fmt: skip

    def __init__(self, accepts: Callable[[str], bool], *, is_strict: bool = False, name: str | None = None) -> None:
        self._accepts = accepts
        self._is_strict = is_strict
        self._is_bare = name is not None
        self._at = _At.OPEN if name is None else _At.VALUE
        self._purpose = _For.NOTHING if name is None else _For.ARGUMENTS
        self._said = ""  # the string or scalar that is being read
        self._string = StringScanner()
        self._nested = NestedScanner()
        self._fresh = ""
        self._has_arguments = False
        self.name = name
        self.is_call = False
        """It has a name and arguments, if only their beginning: nothing can make it plain text any more."""
        self.has_all_arguments = False

    @property
    def is_over(self) -> bool:
        """Nothing more is read: the object has ended, or it cannot be one."""
        return self._at in (_At.DONE, _At.BROKEN)

    def feed(self, text: str) -> int:
        """Read on; return how many characters belong to the object. What cannot belong to it is not taken."""
        position = 0
        while position < len(text) and not self.is_over:
            position = self._step(text, position)
        return position

    def take(self) -> str:
        """The arguments that came since the last time."""
        fresh, self._fresh = self._fresh, ""
        return fresh

    # -- one step: a token, or as much of a value as there is ----------------------------------------------------------

    def _step(self, text: str, position: int) -> int:
        match self._at:
            case _At.STRING:
                end = self._string.feed(text, position)
                self._said += text[position:end]
                if self._string.is_done:
                    self._end_of_string()
                return end
            case _At.NESTED:
                end = self._nested.feed(text, position)
                self._nest(text[position:end])
                return end
            case _At.SCALAR:
                run = _SCALAR_RUN.match(text, position)
                assert run is not None
                self._said += run[0]
                if run.end() < len(text):
                    self._end_of_scalar()
                return run.end()
        char = text[position]
        if char in WHITESPACE:
            return position + 1
        return position + self._token(char)

    def _token(self, char: str) -> int:
        """Characters taken: 1 if the character fits here, 0 if it begins a scalar or breaks the object."""
        match self._at, char:
            case _At.OPEN, "{":
                self._at = _At.KEY_OR_END
            case _At.KEY_OR_END, '"':
                self._read_string(_For.KEY)
            case ((_At.KEY_OR_END | _At.COMMA_OR_END), "}"):
                self._end()
            case _At.COLON, ":":
                self._at = _At.VALUE
            case _At.COMMA_OR_END, ",":
                self._at = _At.KEY_OR_END
            case _At.VALUE, _:
                return self._value(char)
            case _:
                return self._break()
        return 1

    def _value(self, char: str) -> int:
        purpose = self._purpose
        if char == '"' and not self._is_bare:
            self._read_string(purpose)
            return 1
        if char == "{" or (char == "[" and purpose is _For.NOTHING):
            if purpose is _For.NAME:
                return self._break()
            self._nested = NestedScanner()
            self._at = _At.NESTED
            return 0
        if purpose is _For.NAME or self._is_bare or _SCALAR_RUN.fullmatch(char) is None:
            return self._break()
        self._said = ""
        self._at = _At.SCALAR
        return 0

    def _read_string(self, purpose: _For) -> None:
        self._purpose = purpose
        self._said = ""
        self._string = StringScanner()
        self._at = _At.STRING

    def _nest(self, text: str) -> None:
        nested = self._nested
        if self._purpose is _For.ARGUMENTS:
            self._has_arguments = True
            self._fresh += text
            self._decide()
        if nested.is_broken:
            self._break()
        elif nested.is_done:
            self._end_of_value()

    def _end_of_string(self) -> None:
        try:
            said = json.loads('"' + self._said, strict=False)
            said.encode()
        except ValueError:  # an escape that is none, or half a surrogate pair
            self._break()
            return
        match self._purpose:
            case _For.KEY if self._is_strict and said not in CALL_KEYS:
                self._break()
            case _For.KEY:
                self._at = _At.COLON
                self._purpose = self._meaning(said)
            case _For.NAME:
                self._take_name(said)
            case _For.ARGUMENTS:
                self._take_arguments(said)
            case _For.NOTHING:
                self._end_of_value()

    def _meaning(self, key: str) -> _For:
        if key == "name" and self.name is None:
            return _For.NAME
        return _For.ARGUMENTS if key in ARGUMENTS_KEYS and not self._has_arguments else _For.NOTHING

    def _take_name(self, name: str) -> None:
        if not name or not self._accepts(name):
            self._break()
            return
        self.name = name
        self._decide()
        self._end_of_value()

    def _take_arguments(self, text: str) -> None:
        """Arguments that were written as a string, or as ``null``."""
        try:
            is_object = isinstance(json.loads(text), dict)
        except (ValueError, RecursionError):
            is_object = False
        if not is_object:
            self._break()
            return
        self._has_arguments = True
        self._fresh = text
        self._decide()
        self._end_of_value()

    def _end_of_scalar(self) -> None:
        if self._purpose is not _For.ARGUMENTS:
            self._end_of_value()
        elif self._said == "null":
            self._take_arguments("{}")
        else:
            self._break()

    def _end_of_value(self) -> None:
        if self._purpose is _For.ARGUMENTS:
            self.has_all_arguments = True
        self._at = _At.DONE if self._is_bare else _At.COMMA_OR_END

    def _end(self) -> None:
        self._at = _At.DONE
        if not self._has_arguments and not self._is_strict and self.name is not None:
            self._fresh = "{}"
            self._has_arguments = self.has_all_arguments = True
            self._decide()

    def _decide(self) -> None:
        self.is_call = self.name is not None and self._has_arguments

    def _break(self) -> int:
        self._at = _At.BROKEN
        return 0
