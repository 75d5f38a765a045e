"""Run the Jinja source of a chat template: in a sandbox, with the helpers that such templates rely on, and bounded.

Floor: wire (pure): the clock is handed in. Helpers and whitespace rules are those that Hugging Face documents for chat
templates ("Writing a chat template"), so that a template gives here what it gives there. A template comes from the
operator and what it writes from customers; the bounds stop a mistaken template, not one made to do harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.ext import loopcontrols as LoopControls
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import MAX_RANGE, ImmutableSandboxedEnvironment

MOST_SOURCE_CHARS = 1 << 20
"""The longest templates in use have some 20,000 characters."""
MOST_RENDERED_CHARS = 1 << 24
MOST_STEPS = 1_000_000
"""Of all ``range`` loops of one rendering together; Jinja's sandbox has a bound for each of them."""
HIGHEST_POWER = 64

Clock = Callable[[], datetime]


class BrokenTemplate(ValueError):
    """A template that can't be used; the text is a sentence for the operator."""


class TemplateRefuses(Exception):
    """The template called ``raise_exception``: it does not take these messages."""


class TooMuch(Exception):
    """The template writes or loops without an end in sight."""


class CompiledTemplate:
    """A template that can be rendered.

    Args:
        source: in Jinja.
        now: the clock behind ``strftime_now``; without one the template has no such function.

    Raises:
        BrokenTemplate: too long, or no valid Jinja.
    """

    def __init__(self, source: str, *, now: Clock | None = None) -> None:
        if len(source) > MOST_SOURCE_CHARS:
            raise BrokenTemplate(f"The chat template has more than {MOST_SOURCE_CHARS} characters.")
        environment = _environment(now)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(tree)
        except TemplateSyntaxError as error:
            raise BrokenTemplate(
                f"The chat template is no valid Jinja: line {error.lineno}: {error.message}."
            ) from error
        except (TemplateError, RecursionError) as error:
            raise BrokenTemplate(f"The chat template is no valid Jinja ({type(error).__name__}).") from error
        self.variables: frozenset[str] = frozenset(meta.find_undeclared_variables(tree))
        """What the template asks to be told."""
        self.texts: tuple[str, ...] = tuple(_texts(tree))
        """What the template may write or compare with."""
        self.helpers: frozenset[str] = frozenset(environment.globals)

    def write(self, variables: Mapping[str, Any]) -> str:
        """Render.

        Raises:
            TemplateRefuses, TooMuch: see there.
            Exception: whatever a template can do wrong.
        """
        pieces: list[str] = []
        room = MOST_RENDERED_CHARS
        for piece in self._template.generate({**variables, "range": _BoundedRange()}):
            room -= len(piece)
            if room < 0:
                raise TooMuch
            pieces.append(piece)
        return "".join(pieces)


def _environment(now: Clock | None) -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControls, GenerationTag])
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise_exception
    if now is not None:
        clock = now
        environment.globals["strftime_now"] = lambda form: clock().strftime(form)
    return environment


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained on it. Jinja's own filter is for web pages: it would write ``<`` as ``\\u003c``."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the model says, for training; here it only writes it."""

    tags = {"generation"}  # noqa: RUF012  # as the base class declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Read the tag."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which a multiplication can't fill the memory either."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (_is_small(left) and _is_small(right)):
            raise SecurityError("a power of large numbers")
        if operator == "*" and max(_length(left, right), _length(right, left)) > MOST_RENDERED_CHARS:
            raise TooMuch
        return super().call_binop(context, operator, left, right)


def _is_small(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= HIGHEST_POWER


def _length(repeated: Any, times: Any) -> int:
    if isinstance(repeated, str | bytes | list | tuple) and isinstance(times, int):
        return len(repeated) * times
    return 0


class _BoundedRange:
    """``range`` of one rendering."""

    def __init__(self) -> None:
        self._room = MOST_STEPS

    def __call__(self, *bounds: int) -> range:
        asked = range(*bounds)
        self._room -= len(asked)
        if self._room < 0 or len(asked) > MAX_RANGE:
            raise TooMuch
        return asked


def _raise_exception(message: object = None) -> NoReturn:
    raise TemplateRefuses(str(message))


def _texts(tree: nodes.Template) -> Iterator[str]:
    for data in tree.find_all(nodes.TemplateData):
        yield data.data
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
