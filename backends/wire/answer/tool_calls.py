"""Find a model's tool calls in its text while it comes.

Floor: wire (pure).

A call is announced when its name and the beginning of its arguments are there, and from then on its arguments leave as
they come. Until then its text is kept; if it turns out to be no call, all of it is content, marks included. What breaks
later ends the call where it broke, and the rest is content. So no character is lost, and a text gives the same answer
wherever it is cut. Whitespace next to a call belongs to the call.

Sources: the chat templates' formats as vLLM documents them ("Tool calling"), Hermes function calling, Llama 3.1 model
card, Mistral's tokenizer documentation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum, auto

from backends.wire.answer.call_scanner import CallScanner
from backends.wire.answer.deltas import WHITESPACE, Content, Delta, ToolCall
from backends.wire.answer.stop_words import held_length
from backends.wire.answer.styles import ToolStyle
from backends.wire.answer.tool_rules import ToolRules

_MISTRAL_HEAD = re.compile(r"\s*([\w.\-]{1,128})\s*(?:\[CALL_ID\]\s*\w{0,64}\s*)?(?:\[ARGS\]\s*)?", re.ASCII)
_MISTRAL_HEAD_RUN = re.compile(r"[\w.\-\[\] \t\r\n]*", re.ASCII)
_MISTRAL_HEAD_LENGTH = 256
_STEP_CHARS = 4096
"""A long text is read in steps, so that each of many marks in it costs the rest of a step, not of the text."""


class _At(Enum):
    TEXT = auto()
    HEAD = auto()
    CALL = auto()
    BEHIND = auto()


class ToolCallParser:
    """What all styles share: text, calls, and what stands between them.

    A style says which mark opens a call, and what may stand before, between and behind the calls.
    """

    mark = ""
    glue = WHITESPACE
    """Characters between and behind calls that mean nothing."""

    def __init__(self, rules: ToolRules) -> None:
        self._rules = rules
        self._at = _At.TEXT
        self._buffer = ""  # not looked at yet
        self._kept = ""  # looked at, and either markup or content
        self._space = ""  # content, unless a call follows
        self._is_trimming = False  # whitespace behind a call
        self._scanner = CallScanner(rules.accepts)
        self._is_announced = False
        self._announced = 0
        self._out: list[Delta] = []
        self.calls = 0
        """Calls that came whole."""

    def feed(self, text: str) -> list[Delta]:
        """Take more of the text; return what it is known to be."""
        for start in range(0, max(1, len(text)), _STEP_CHARS):
            self._buffer += text[start : start + _STEP_CHARS]
            while self._buffer and self._step():
                pass
        out, self._out = self._out, []
        return out

    def finish(self) -> list[Delta]:
        """The text has ended: what is kept is content, unless it is part of a call."""
        out = self.feed("")
        if self._at is _At.CALL:
            if self._announced and not self._kept.strip(WHITESPACE + ",;"):
                self._kept = ""  # a separator that no further call followed
            self._end_of_call()
        if self._at is not _At.BEHIND or self._buffer.strip(self.glue):
            self._say(self._kept + self._buffer)
        self._buffer = self._kept = ""
        if self._space:
            self._out.append(Content(self._space))
            self._space = ""
        out += self._out
        self._out = []
        return out

    # -- what a style says ---------------------------------------------------------------------------------------------

    def _head(self) -> bool:
        """Read what stands between the mark and the call; False while more is needed."""
        self._begin_call()
        return True

    def _behind(self) -> bool:
        """Read what follows a call; False while more is needed."""
        raise NotImplementedError

    # -- the machine ---------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        match self._at:
            case _At.TEXT:
                return self._text()
            case _At.HEAD:
                return self._head()
            case _At.CALL:
                return self._call()
            case _At.BEHIND:
                return self._behind()

    def _text(self) -> bool:
        start = self._buffer.find(self.mark)
        if start < 0:
            self._say(self._take(len(self._buffer) - held_length(self._buffer, (self.mark,))))
            return False
        self._say(self._take(start))
        self._keep(len(self.mark))
        self._at = _At.HEAD
        return True

    def _call(self) -> bool:
        scanner = self._scanner
        text = self._take(scanner.feed(self._buffer))
        if scanner.is_call:
            if not self._is_announced:
                self._announce()
            arguments = scanner.take()
            if arguments:
                self._part(None, arguments)
        else:
            self._kept += text
        if scanner.is_over:
            self._end_of_call()
            return True
        return False

    def _begin_call(self, *, name: str | None = None, accepts: Callable[[str], bool] | None = None) -> None:
        self._scanner = CallScanner(accepts or self._rules.accepts, is_strict=accepts is not None, name=name)
        self._is_announced = False
        self._at = _At.CALL

    def _announce(self) -> None:
        self._is_announced = True
        self._announced += 1
        self._kept = ""
        self._space = ""
        self._is_trimming = True
        self._part(self._scanner.name, "")

    def _part(self, name: str | None, arguments: str) -> None:
        if self._announced == 1 or self._rules.parallel:
            self._out.append(ToolCall(self._announced - 1, name, arguments))

    def _end_of_call(self) -> None:
        if not self._is_announced:
            self._is_content()
            return
        self.calls += self._scanner.has_all_arguments
        self._at = _At.BEHIND

    def _is_content(self) -> None:
        kept, self._kept = self._kept, ""
        self._at = _At.TEXT
        self._say(kept)

    def _say(self, text: str) -> None:
        if self._is_trimming:
            text = text.lstrip(WHITESPACE)
            self._is_trimming = not text
        text = self._space + text
        body = text.rstrip(WHITESPACE)
        self._space = text[len(body) :]
        if body:
            self._out.append(Content(body))

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _keep(self, length: int) -> None:
        self._kept += self._take(length)


class HermesParser(ToolCallParser):
    """``<tool_call>{"name": …, "arguments": …}</tool_call>``; the closing mark may be missing."""

    mark = "<tool_call>"
    closes = "</tool_call>"

    def _behind(self) -> bool:
        rest = self._buffer.lstrip(WHITESPACE)
        if self.closes.startswith(rest) and rest != self.closes:
            return False
        if rest.startswith(self.closes):
            self._buffer = rest[len(self.closes) :]
        self._at = _At.TEXT
        return True


class Llama3Parser(ToolCallParser):
    """``{"name": …, "parameters": …}`` at the beginning, or behind ``<|python_tag|>``; more behind a ``;``.

    Without the tag only the name tells a call from an answer in JSON: it must be that of a function on offer.
    """

    mark = "<|python_tag|>"
    glue = WHITESPACE + ";"

    def __init__(self, rules: ToolRules) -> None:
        super().__init__(rules)
        self._is_beginning = True

    def _text(self) -> bool:
        if self._is_beginning:
            bare = self._buffer.lstrip(WHITESPACE)
            if not bare:
                return False
            self._is_beginning = False
            if bare.startswith("{"):
                self._keep(len(self._buffer) - len(bare))
                self._begin_call(accepts=self._rules.knows)
                return True
        return super()._text()

    def _behind(self) -> bool:
        rest = self._buffer.lstrip(self.glue)
        if self.mark.startswith(rest) and rest != self.mark:
            return False
        before = len(self._buffer) - len(rest)
        if rest.startswith("{"):
            self._keep(before)
            self._begin_call(accepts=self._rules.knows)
        elif rest.startswith(self.mark):
            self._keep(before + len(self.mark))
            self._at = _At.HEAD
        else:
            self._at = _At.TEXT
        return True


class MistralParser(ToolCallParser):
    """``[TOOL_CALLS]`` and then a JSON array of calls, or the name of one and the object of its arguments.

    Newer models write ``[ARGS]``, and before it ``[CALL_ID]`` with an id, between name and arguments.
    """

    mark = "[TOOL_CALLS]"

    def __init__(self, rules: ToolRules) -> None:
        super().__init__(rules)
        self._is_array = False
        self._head_length = 0

    def _head(self) -> bool:
        if self._head_length == 0:
            bare = self._buffer.lstrip(WHITESPACE)
            self._keep(len(self._buffer) - len(bare))
            if not bare:
                return False
            self._is_array = bare[0] == "["
            if self._is_array or bare[0] == "{":
                self._keep(self._is_array)
                self._begin_call()
                return True
        return self._named()

    def _named(self) -> bool:
        run = _MISTRAL_HEAD_RUN.match(self._buffer, 0, _MISTRAL_HEAD_LENGTH - self._head_length)
        assert run is not None
        length = run.end()
        self._keep(length)
        self._head_length += length
        if not self._buffer and self._head_length < _MISTRAL_HEAD_LENGTH:
            return False
        head = self._kept[len(self._kept) - self._head_length :]
        self._head_length = 0
        found = _MISTRAL_HEAD.fullmatch(head) if len(head) < _MISTRAL_HEAD_LENGTH else None
        if found is not None and self._buffer.startswith("{") and self._rules.accepts(found[1]):
            self._begin_call(name=found[1])
        else:
            self._is_content()
        return True

    def _behind(self) -> bool:
        if not self._is_array:
            self._at = _At.TEXT
            return True
        rest = self._buffer.lstrip(WHITESPACE)
        if not rest:
            return False
        before = len(self._buffer) - len(rest)
        if rest[0] == ",":
            self._keep(before + 1)
            self._begin_call()
            return True
        if rest[0] == "]":
            self._buffer = rest[1:]
        self._is_array = False
        self._at = _At.TEXT
        return True


_PARSERS: dict[ToolStyle, type[ToolCallParser]] = {
    ToolStyle.HERMES: HermesParser,
    ToolStyle.LLAMA3: Llama3Parser,
    ToolStyle.MISTRAL: MistralParser,
}


def tool_call_parser(style: ToolStyle, rules: ToolRules) -> ToolCallParser:
    """The parser of a style."""
    return _PARSERS[style](rules)
