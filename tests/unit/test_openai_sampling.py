"""Every field of an OpenAI request is honoured, harmless, or refused by name; none is dropped in silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.wire.failure import Unsupported
from backends.wire.openai_sampling import HARMLESS, PROMPT, read_sampling
from backends.wire.request import Kind
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Sampling
from gateway.core import openai

NOTHING = GenerationDefaults()
RECOMMENDED = GenerationDefaults(0.6, 0.9, 20, 0.05, 1.05, (2,))
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}


def read(
    body: dict[str, Any], kind: Kind = Kind.CHAT, *, max_tokens: int = 10, defaults: GenerationDefaults = NOTHING
) -> Sampling:
    return read_sampling(body, kind, max_tokens=max_tokens, completions=1, defaults=defaults)


def refused(body: dict[str, Any], kind: Kind = Kind.CHAT) -> Unsupported:
    with pytest.raises(Unsupported) as caught:
        read(body, kind)
    return caught.value


def attempt(body: dict[str, Any], kind: Kind) -> Sampling | str:
    """The sampling, or the name of the field that was refused."""
    try:
        return read(body, kind)
    except Unsupported as refusal:
        return refusal.param


def test_nothing_asked() -> None:
    """A request that says nothing leaves everything to the engine."""
    assert read({"messages": []}) == Sampling(max_tokens=10)


def test_everything_asked() -> None:
    """Each parameter of the OpenAI schema, and vLLM's further ones, are read."""
    body = {
        "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": -3, "stop": ["a", "b"],
        "min_tokens": 2, "presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.5, "logprobs": True,
        "top_logprobs": 3, "response_format": {"type": "json_object"},
    }  # fmt: skip
    assert read(body) == Sampling(
        max_tokens=10, temperature=0.5, top_p=0.25, top_k=40, min_p=0.125, seed=-3, stop=("a", "b"), min_tokens=2,
        presence_penalty=1, frequency_penalty=-1, repetition_penalty=1.5, logprobs=True, top_logprobs=3,
        guide=Guide(GuideKind.JSON),
    )  # fmt: skip


def test_recommendations_fill_the_gaps() -> None:
    """A model's own recommendations count where the request says nothing."""
    assert read({}, defaults=RECOMMENDED) == Sampling(
        max_tokens=10, temperature=0.6, top_p=0.9, top_k=20, min_p=0.05, repetition_penalty=1.05
    )


def test_a_request_overrules_recommendations() -> None:
    """What the request says counts, also when it says nothing shall be cut or punished."""
    body = {"temperature": 0, "top_p": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1}
    assert read(body, defaults=RECOMMENDED) == Sampling(max_tokens=10, temperature=0, top_p=1)


@pytest.mark.parametrize(
    "body",
    [
        {"top_k": 0}, {"top_k": -1}, {"min_p": 0}, {"min_tokens": 0}, {"presence_penalty": 0},
        {"frequency_penalty": 0.0}, {"repetition_penalty": 1.0}, {"stop": []}, {"logprobs": False},
        {"top_logprobs": 0}, {"response_format": {"type": "text"}}, {"logit_bias": {}}, {"modalities": ["text"]},
        {"best_of": 1}, {"echo": False}, {"suffix": ""}, {"user": "u"}, {"metadata": {"a": "b"}}, {"store": True},
        {"service_tier": "auto"}, {"n": 1}, {"prompt_cache_key": "k"}, {"safety_identifier": "s"},
        {"tool_choice": "auto"}, {"tool_choice": "none"}, {"anything": None}, {"reasoning_effort": "low"},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_no_hindrance(body: dict[str, Any]) -> None:
    """A field that means nothing for the text, or asks for what is so anyway, needs no engine that knows it."""
    assert read(body) == Sampling(max_tokens=10)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"verbosity": "low"}, "verbosity"),
        ({"suffix": "x"}, "suffix"),
        ({"echo": True}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"never_heard_of": 1}, "never_heard_of"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"response_format": {}}, "response_format.type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_schema", "json_schema": 7}}, "response_format.json_schema.schema"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"top_k": "40"}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"min_p": "x"}, "min_p"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 1.5}, "min_tokens"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 1e300}, "repetition_penalty"),
    ],
)
def test_what_cannot_be_honoured_is_named(body: dict[str, Any], param: str) -> None:
    """A field that can't be honoured makes a refusal that names it and goes on as a sentence."""
    refusal = refused(body)
    assert refusal.param == param
    assert refusal.reason.startswith(("must", "is ", "are ", "may "))
    assert refusal.is_callers_fault


def test_a_name_is_not_echoed_at_length() -> None:
    """A field with an endless name doesn't make an endless error."""
    assert len(refused({"x" * 10_000: 1}).param) <= 64


def test_a_schema_is_handed_on_as_it_is() -> None:
    """The schema's JSON goes to the guide, with its fields in the caller's order."""
    wrapped = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    guide = read({"response_format": wrapped}).guide
    assert guide is not None
    assert guide.kind is GuideKind.JSON_SCHEMA
    assert json.loads(guide.text) == SCHEMA
    assert list(json.loads(guide.text)) == list(SCHEMA)


def test_stop_may_be_one_text() -> None:
    """One text is a list of one."""
    assert read({"stop": "END"}).stop == ("END",)


@pytest.mark.parametrize(("value", "logprobs", "top"), [(None, False, 0), (0, True, 0), (3, True, 3)])
def test_logprobs_of_completions(value: int | None, logprobs: bool, top: int) -> None:
    """A completion asks with a number; 0 asks for the chosen tokens alone."""
    sampling = read({"prompt": "x", "logprobs": value}, Kind.COMPLETION)
    assert (sampling.logprobs, sampling.top_logprobs) == (logprobs, top)


def test_fields_of_chats_are_no_fields_of_completions() -> None:
    """What only a chat can ask for is refused in a completion."""
    assert refused({"prompt": "x", "response_format": {"type": "json_object"}}, Kind.COMPLETION).param == (
        "response_format"
    )


def test_min_tokens_never_exceeds_what_is_granted() -> None:
    """Credit may bound an answer below what its caller wants at least."""
    assert read({"min_tokens": 50}, max_tokens=10).min_tokens == 10


@pytest.mark.parametrize("kind", [Kind.CHAT, Kind.COMPLETION])
def test_no_field_that_the_gateway_knows_is_forgotten(kind: Kind) -> None:
    """Each field in the gateway's table of checks changes the sampling, is refused, or is named as harmless here."""
    telling: dict[str, Any] = {
        "temperature": 0.5, "top_p": 0.5, "frequency_penalty": 1, "presence_penalty": 1, "seed": 1, "stop": "x",
        "logprobs": 1 if kind is Kind.COMPLETION else True, "response_format": {"type": "json_object"},
        "top_logprobs": 1, "logit_bias": {"1": 1}, "suffix": "x",
    }  # fmt: skip
    for field in openai._CHECKS[kind]:
        if field in HARMLESS or field in PROMPT:
            continue
        body = {field: telling[field]}
        if field == "top_logprobs":
            body["logprobs"] = True
        outcome = attempt(body, kind)
        assert outcome == field or (isinstance(outcome, Sampling) and outcome != Sampling(max_tokens=10)), field
