"""vLLM's Triton backend: one JSON text of parameters, deltas with exact counts and the engine's finish reason."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest

from backends.wire.failure import BackendFailure, FailureCode, Unsupported
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Piece, Sampling
from backends.wire.triton import DataType, InputTensor, OutputTensor, detect
from tests.unit.triton_models import numbers, sent, texts, vllm


def parameters(sampling: Sampling) -> dict[str, Any]:
    (text,) = sent(detect(vllm()), sampling)["sampling_parameters"]
    return json.loads(text)


def response(text: bytes, tokens: int, finish: bytes = b"None", **others: OutputTensor) -> Mapping[str, OutputTensor]:
    return {
        "text_output": texts(text),
        "finish_reason": texts(finish),
        "num_output_tokens": numbers(DataType.UINT32, tokens),
        "num_input_tokens": numbers(DataType.UINT32, 5, shape=()),
        **others,
    }


def test_everything_that_can_be_asked() -> None:
    """Parameters have vLLM's names and stand in one JSON text."""
    sampling = Sampling(
        max_tokens=7, temperature=0.5, top_p=0.25, top_k=40, min_p=0.125, seed=11, stop=("END", "\n"), min_tokens=3,
        presence_penalty=-1.5, frequency_penalty=0.75, repetition_penalty=1.25, logprobs=True,
    )  # fmt: skip
    assert parameters(sampling) == {
        "max_tokens": 7, "temperature": 0.5, "top_p": 0.25, "top_k": 40, "min_p": 0.125, "seed": 11,
        "stop": ["END", "\n"], "min_tokens": 3, "presence_penalty": -1.5, "frequency_penalty": 0.75,
        "repetition_penalty": 1.25, "logprobs": 0,
    }  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_the_prompt_is_always_left_out(stream: bool) -> None:
    """A stream with the prompt is an error there, an answer with it would be one here."""
    values = sent(detect(vllm()), Sampling(max_tokens=7), stream=stream)
    assert values.pop("sampling_parameters") == [b'{"max_tokens":7}']
    assert values == {
        "text_input": [b"Hello"],
        "stream": [stream],
        "exclude_input_in_output": [True],
        "return_finish_reason": [True],
        "return_num_input_tokens": [True],
        "return_num_output_tokens": [True],
    }


def test_the_bits_that_are_sent() -> None:
    """Each tensor has one dimension with one element."""
    for tensor in detect(vllm()).encode("hi", Sampling(max_tokens=7, logprobs=True), stream=True):
        assert tensor.shape == (1,)
    assert detect(vllm()).encode("hi", Sampling(max_tokens=7), stream=True)[0] == InputTensor(
        "text_input", DataType.BYTES, (1,), b"\x02\x00\x00\x00hi"
    )


def test_guides() -> None:
    """A guide is a JSON text inside the JSON, which all releases take."""
    schema = Guide(GuideKind.JSON_SCHEMA, '{"type": "object"}')
    assert json.loads(parameters(Sampling(max_tokens=1, guide=schema))["guided_decoding"]) == {
        "json": {"type": "object"}
    }
    anything = parameters(Sampling(max_tokens=1, guide=Guide(GuideKind.JSON)))
    assert json.loads(anything["guided_decoding"]) == {"json_object": True}


def test_a_negative_seed_is_a_seed() -> None:
    """-1, which means no seed there, becomes another number, always the same."""
    assert parameters(Sampling(max_tokens=1, seed=-1))["seed"] == 2**63 - 1
    assert parameters(Sampling(max_tokens=1, seed=0))["seed"] == 0


@pytest.mark.parametrize(
    ("without", "asked", "param"),
    [
        ((), {"completions": 2}, "n"),
        ((), {"logprobs": True, "top_logprobs": 2}, "top_logprobs"),
        (("return_logprobs",), {"logprobs": True}, "logprobs"),
        (("logprobs",), {"logprobs": True}, "logprobs"),
    ],
)
def test_what_cannot_be_honoured_is_named(without: tuple[str, ...], asked: dict[str, Any], param: str) -> None:
    """What doesn't come back whole is refused by its name, never dropped."""
    with pytest.raises(Unsupported) as caught:
        detect(vllm(without=without)).encode("x", Sampling(max_tokens=1, **asked), stream=True)
    assert caught.value.param == param


def test_all_recommendations_are_followed() -> None:
    """vLLM has a place for each of them."""
    defaults = GenerationDefaults(0.6, 0.9, 20, 0.05, 1.05, (2,))
    assert detect(vllm()).follow(defaults) == defaults


def test_deltas_counts_and_the_end() -> None:
    """Each response is a delta with its count; the prompt is counted once; the engine says how it ended."""
    read = detect(vllm()).reader(Sampling(max_tokens=8))
    assert read.read(response(b"Hel", 1)) == [Piece(text=b"Hel", tokens=1, prompt_tokens=5)]
    assert read.read(response(b"Hel", 2)) == [Piece(text=b"Hel", tokens=2)]
    assert read.read(response(b"", 1, b"length")) == [Piece(tokens=1, finish="length")]
    assert read.read(response(b"more", 1, b"length")) == []
    assert read.read({}) == []
    assert read.finish() == []


@pytest.mark.parametrize("said", [b"abort", b"error"])
def test_an_engine_that_gave_up_did_not_answer(said: bytes) -> None:
    """An answer that the engine broke off itself is a failure, never a stop."""
    with pytest.raises(BackendFailure) as caught:
        detect(vllm()).reader(Sampling(max_tokens=8)).read(response(b"x", 1, said))
    assert caught.value.code is FailureCode.BROKEN


def test_a_count_below_zero_is_nonsense() -> None:
    """A difference that went below zero looks like four billion tokens: nobody pays for those."""
    with pytest.raises(BackendFailure) as caught:
        detect(vllm()).reader(Sampling(max_tokens=8)).read(response(b"x", 2**32 - 3))
    assert caught.value.code is FailureCode.PROTOCOL


def test_logprobs_of_the_chosen_tokens() -> None:
    """Of each position the first entry is the token that was chosen."""
    read = detect(vllm()).reader(Sampling(max_tokens=8, logprobs=True))
    positions = [{"7": {"logprob": -0.5, "rank": 2}, "9": {"logprob": -0.25, "rank": 1}}, {"3": {"logprob": -1.5}}]
    told = read.read(response(b"ab", 2, logprobs=texts(json.dumps(positions).encode())))
    unlikely = json.dumps([{"7": {"logprob": -math.inf}}]).encode()
    assert read.read(response(b"x", 1, logprobs=texts(unlikely)))[0].logprobs == (-math.inf,)
    assert told[0].logprobs == (-0.5, -1.5)
    assert read.read(response(b"c", 1, logprobs=texts(b"null")))[0].logprobs is None


@pytest.mark.parametrize("raw", [b"{", b"[1]", b"[{}]", b'[{"7": 1}]', b'[{"7": {"logprob": null}}]', b"7"])
def test_logprobs_that_are_none(raw: bytes) -> None:
    """Log probabilities that can't be read are a fault of the engine."""
    with pytest.raises(BackendFailure) as caught:
        detect(vllm()).reader(Sampling(max_tokens=8, logprobs=True)).read(response(b"x", 1, logprobs=texts(raw)))
    assert caught.value.code is FailureCode.PROTOCOL
