"""Write a conversation as the one text that a model was trained to go on from, with the model's own template.

Floor: wire (pure): the template's source comes in, text goes out. The prompt holds the model's special tokens where the
template writes them, the one at its very beginning too: whoever counts or encodes it adds none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from backends.wire.chat_messages import MessageForm, fit_messages
from backends.wire.failure import BackendFailure, FailureCode, Phase, Unsupported
from backends.wire.jinja_sandbox import BrokenTemplate, Clock, CompiledTemplate, TooMuch
from backends.wire.template_probe import probe

__all__ = ["BrokenTemplate", "ChatTemplate"]

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
OWN_VARIABLES = frozenset({"add_generation_prompt", "chat_template", "continue_final_message", "messages", "tools"})
"""Of the template's variables, those that a caller can't set."""
THINKING = "enable_thinking"
EFFORT = "reasoning_effort"


class ChatTemplate:
    """How one model's conversations are written.

    Args:
        source: the template, in Jinja.
        special_tokens: the model's, by the names that templates use: ``bos_token`` and so on.
        tool_source: another template for requests with tools, if the model has one.
        now: the clock behind ``strftime_now``, in the time zone that shall be written.

    Raises:
        BrokenTemplate: with a sentence for the operator.
    """

    def __init__(
        self,
        source: str,
        *,
        special_tokens: Mapping[str, str],
        tool_source: str | None = None,
        now: Clock | None = None,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._plain = _Variant(source, self._special_tokens, now)
        self._tools = self._plain if tool_source is None else _Variant(tool_source, self._special_tokens, now)

    @property
    def form(self) -> MessageForm:
        """What the template takes from a request without tools."""
        return self._plain.form

    @property
    def tool_form(self) -> MessageForm:
        """What the template takes from a request with tools."""
        return self._tools.form

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        options: Mapping[str, Any] = NO_OPTIONS,
    ) -> str:
        """Write the prompt, up to where the model's answer begins.

        Args:
            messages: of a checked OpenAI request.
            tools: of the request; an empty list is none.
            options: what the caller tells the template, such as ``enable_thinking``; ``reasoning_effort`` may be
                among them.

        Raises:
            Unsupported: the model has no place for something, or its template refuses it.
            BackendFailure: ``CONTEXT_LENGTH``, it becomes longer than any model reads; ``MISCONFIGURED``, the template
                fails whatever it is given.
        """
        tools = list(tools) if tools else None
        variant = self._plain if tools is None else self._tools
        if tools is not None and not variant.form.takes_tools:
            raise Unsupported("tools", "are not possible with this model")
        told = self._checked(options, variant.template)
        fitted = fit_messages(messages, variant.form)
        try:
            return variant.write(fitted, tools, told)
        except Exception as error:  # whatever a template can do wrong
            raise self._blamed(error, variant, fitted, tools, told) from error

    def _checked(self, options: Mapping[str, Any], template: CompiledTemplate) -> dict[str, Any]:
        """The options in this template's words; what it would not even look at is refused."""
        told = dict(options)
        effort = told.get(EFFORT)
        if effort is not None and EFFORT not in template.variables:
            if THINKING not in template.variables:
                raise Unsupported(EFFORT, "can't be set with this model")
            del told[EFFORT]
            told.setdefault(THINKING, effort != "none")
        forbidden = OWN_VARIABLES | self._special_tokens.keys() | template.helpers
        for name in told:
            if name in forbidden:
                raise Unsupported(f"chat_template_kwargs.{name}"[:100], "can't be set")
            if name not in template.variables:
                raise Unsupported(f"chat_template_kwargs.{name}"[:100], "means nothing to this model")
        return told

    def _blamed(
        self,
        error: Exception,
        variant: _Variant,
        fitted: list[dict[str, Any]],
        tools: list[Mapping[str, Any]] | None,
        told: dict[str, Any],
    ) -> BackendFailure:
        """Whose fault it is: left out one by one, what makes the template fail shows itself."""
        if not variant.can_write(variant.greeting, None, {}):
            return BackendFailure(FailureCode.MISCONFIGURED, Phase.CONNECT)
        if isinstance(error, TooMuch):
            return BackendFailure(FailureCode.CONTEXT_LENGTH, Phase.CONNECT)
        if told and variant.can_write(fitted, tools, {}):
            return Unsupported("chat_template_kwargs", "can't be used like this with this model")
        if tools is not None and variant.can_write(fitted, None, told):
            return Unsupported("tools", "can't be written as this model needs them")
        return Unsupported(
            "messages", "can't be written as this model needs them; it may want its roles in another order"
        )


class _Variant:
    """One template and what it takes."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: Clock | None) -> None:
        self.template = CompiledTemplate(source, now=now)
        self.form = probe(self.template, special_tokens)
        self.greeting = fit_messages([{"role": "user", "content": "Hi"}], self.form)
        self._special_tokens = special_tokens

    def write(
        self, messages: list[dict[str, Any]], tools: list[Mapping[str, Any]] | None, told: Mapping[str, Any]
    ) -> str:
        own = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": True}
        return self.template.write({**own, **told, **self._special_tokens})

    def can_write(
        self, messages: list[dict[str, Any]], tools: list[Mapping[str, Any]] | None, told: Mapping[str, Any]
    ) -> bool:
        try:
            self.write(messages, tools, told)
        except Exception:  # whatever a template can do wrong
            return False
        return True
