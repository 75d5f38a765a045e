"""What an OpenAI request asks of the text's making, for engines that are not asked in OpenAI's words.

Floor: wire (pure). Each field of a request is honoured, belongs to the prompt, is harmless, or is refused by name: none
is dropped in silence. Fields of the OpenAI schema come checked; those beyond it are checked here.
Sources: OpenAI API reference (chat, completions); vLLM's extra sampling parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from backends.wire.failure import Unsupported
from backends.wire.request import Kind
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Sampling

MOST_TOP_K = 1 << 24
"""More than any vocabulary has."""
MOST_REPETITION_PENALTY = 100.0
LONGEST_NAME = 64
"""Of a field that nobody knows, this much is said back."""

PROMPT = frozenset(
    {"messages", "prompt", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "chat_template_kwargs"}
)
"""Fields that make the prompt or say how the answer is read; whoever renders the prompt honours or refuses them."""

HARMLESS = frozenset(
    {
        "max_completion_tokens", "max_tokens", "metadata", "model", "n", "prediction", "prompt_cache_key",
        "prompt_cache_retention", "safety_identifier", "service_tier", "store", "stream", "stream_options", "user",
    }
)  # fmt: skip
"""Fields that change no word of an answer, or that the gateway has answered itself."""


def read_sampling(
    body: Mapping[str, Any], kind: Kind, *, max_tokens: int, completions: int, defaults: GenerationDefaults
) -> Sampling:
    """Read every field of a checked body: each is honoured, is harmless, or is refused by name.

    Numbers that ask for nothing (no penalty, all of the vocabulary) come out as ``None``.

    Args:
        body: of an `InferenceRequest`.
        max_tokens: the bound on completion tokens of one choice.
        completions: how many choices are wanted.
        defaults: what the model's makers recommend where the request says nothing; those that the engine can follow.

    Raises:
        Unsupported: names the field.
    """
    _refuse_others(body, kind)
    wants_logprobs, top_logprobs = _logprobs(body, kind)
    top_k = _extra(body, "top_k", _whole(-1, MOST_TOP_K), defaults.top_k)
    min_tokens = _extra(body, "min_tokens", _whole(0, None), None)
    return Sampling(
        max_tokens=max_tokens,
        temperature=_either(body.get("temperature"), defaults.temperature),
        top_p=_either(body.get("top_p"), defaults.top_p),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        min_p=_extra(body, "min_p", _real(0, 1), defaults.min_p) or None,
        seed=body.get("seed"),
        stop=_stop(body.get("stop")),
        # The caller's credit may bound an answer below what he wants at least.
        min_tokens=min(min_tokens, max_tokens) if min_tokens else None,
        presence_penalty=body.get("presence_penalty") or None,
        frequency_penalty=body.get("frequency_penalty") or None,
        repetition_penalty=_unless(1, _repetition_penalty(body, defaults)),
        completions=completions,
        logprobs=wants_logprobs,
        top_logprobs=top_logprobs,
        guide=_guide(body.get("response_format")),
    )


def _either(asked: float | None, recommended: float | None) -> float | None:
    return recommended if asked is None else asked


def _unless(neutral: float, value: float | None) -> float | None:
    return None if value == neutral else value


# -- fields that are honoured ------------------------------------------------------------------------------------------


def _repetition_penalty(body: Mapping[str, Any], defaults: GenerationDefaults) -> float | None:
    check = _real(0, MOST_REPETITION_PENALTY, above_low=True)
    penalty: float | None = _extra(body, "repetition_penalty", check, defaults.repetition_penalty)
    return penalty


def _stop(value: str | list[str] | None) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else tuple(value or ())
    if "" in texts:
        raise Unsupported("stop", "must not hold an empty text")
    return texts


def _logprobs(body: Mapping[str, Any], kind: Kind) -> tuple[bool, int]:
    """Whether log probabilities are wanted, and of how many alternatives."""
    wanted = body.get("logprobs")
    if kind is Kind.COMPLETION:
        return wanted is not None, wanted or 0
    alternatives: int = body.get("top_logprobs") or 0
    if alternatives and not wanted:
        raise Unsupported("top_logprobs", "may only be given when logprobs is true")
    return bool(wanted), alternatives


def _guide(response_format: Mapping[str, Any] | None) -> Guide | None:
    if response_format is None:
        return None
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return Guide(GuideKind.JSON)
        case "json_schema":
            named = response_format.get("json_schema")
            schema = named.get("schema") if isinstance(named, Mapping) else None
            if not isinstance(schema, Mapping):
                raise Unsupported("response_format.json_schema.schema", "must be an object")
            return Guide(GuideKind.JSON_SCHEMA, orjson.dumps(schema).decode())
        case _:
            raise Unsupported("response_format.type", "must be one of text, json_object, json_schema")


Check = Callable[[str, Any], None]


def _extra(body: Mapping[str, Any], name: str, check: Check, default: Any) -> Any:
    """A field beyond the OpenAI schema, which nobody has checked yet."""
    value = body.get(name)
    if value is None:
        return default
    check(name, value)
    return value


def _whole(low: int, high: int | None) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise Unsupported(name, "must be a whole number")
        if value < low or (high is not None and value > high):
            raise Unsupported(name, f"must be at least {low}" + (f" and at most {high}" if high is not None else ""))

    return check


def _real(low: float, high: float, *, above_low: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise Unsupported(name, "must be a number")
        if not low <= value <= high or (above_low and value == low):
            raise Unsupported(name, f"must be {'above' if above_low else 'at least'} {low:g} and at most {high:g}")

    return check


# -- fields that are refused, unless they ask for nothing --------------------------------------------------------------


def _is_empty(value: Any) -> bool:
    return not value  # None, false, zero, an empty text, list or object


def _is_single(value: Any) -> bool:
    return value in (None, 1)


def _is_text_only(value: Any) -> bool:
    return value in (None, [], ["text"])


_ASKS_NOTHING: dict[str, Callable[[Any], bool]] = {
    "best_of": _is_single,
    "echo": _is_empty,
    "logit_bias": _is_empty,
    "modalities": _is_text_only,
    "suffix": _is_empty,
}
"""For fields that can't be honoured: whether a value of theirs needs no honouring. All others only with ``null``."""

_HONOURED = frozenset(
    {
        "frequency_penalty", "logprobs", "min_p", "min_tokens", "presence_penalty", "repetition_penalty", "seed",
        "stop", "temperature", "top_k", "top_p",
    }
)  # fmt: skip
_ONLY_CHAT = frozenset({"response_format", "top_logprobs"})

_NOT_FORCED = "must be auto or none: this model can't be made to call a function"


def _refuse_others(body: Mapping[str, Any], kind: Kind) -> None:
    """Raises: Unsupported: a field asks for what is not done here."""
    honoured = _HONOURED | _ONLY_CHAT if kind is Kind.CHAT else _HONOURED
    for name, value in body.items():
        if name in honoured or name in HARMLESS or name in PROMPT or value is None:
            continue
        asks_nothing = _ASKS_NOTHING.get(name)
        if asks_nothing is None or not asks_nothing(value):
            raise Unsupported(name[:LONGEST_NAME], "is not possible with this model")
    if body.get("tool_choice") not in (None, "auto", "none"):
        raise Unsupported("tool_choice", _NOT_FORCED)
