"""TensorRT-LLM's LLM API: texts that grow become deltas, and the finish reason is the engine's own."""

from __future__ import annotations

from typing import Any

import pytest

from backends.wire.failure import BackendFailure, FailureCode, Unsupported
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Piece, Sampling
from backends.wire.triton import DataType, InputTensor, Reader, detect
from tests.unit.triton_models import llmapi, sent, texts


def reader() -> Reader:
    return detect(llmapi()).reader(Sampling(max_tokens=8))


def test_everything_that_can_be_asked() -> None:
    """Each parameter goes into the tensor of its name; the prompt is always left out of the answer."""
    sampling = Sampling(
        max_tokens=7, temperature=0.5, top_p=0.25, top_k=40, seed=11, stop=("END", "\n"), presence_penalty=-1.5,
        frequency_penalty=0.75,
    )  # fmt: skip
    assert sent(detect(llmapi()), sampling) == {
        "text_input": [b"Hello"],
        "streaming": [True],
        "return_finish_reason": [True],
        "sampling_param_max_tokens": [7],
        "sampling_param_exclude_input_from_output": [True],
        "sampling_param_temperature": [0.5],
        "sampling_param_top_p": [0.25],
        "sampling_param_top_k": [40],
        "sampling_param_seed": [11],
        "sampling_param_presence_penalty": [-1.5],
        "sampling_param_frequency_penalty": [0.75],
        "sampling_param_stop": [b"END", b"\n"],
    }


def test_the_bits_that_are_sent() -> None:
    """Tensors have one dimension: the model takes its prompt in no other form."""
    sampling = Sampling(max_tokens=7, stop=("a", "b"))
    tensors = {tensor.name: tensor for tensor in detect(llmapi()).encode("hi", sampling, stream=False)}
    assert tensors["text_input"] == InputTensor("text_input", DataType.BYTES, (1,), b"\x02\x00\x00\x00hi")
    assert tensors["streaming"] == InputTensor("streaming", DataType.BOOL, (1,), b"\x00")
    assert tensors["sampling_param_stop"].shape == (2,)


def test_sampling_means_what_openai_says() -> None:
    """Told nothing the engine would be greedy, so that it is told; temperature 0 is greedy."""
    values = sent(detect(llmapi()), Sampling(max_tokens=1))
    assert (values["sampling_param_temperature"], values["sampling_param_top_p"]) == ([1.0], [1.0])
    greedy = sent(detect(llmapi()), Sampling(max_tokens=1, temperature=0))
    assert greedy["sampling_param_top_k"] == [1]
    assert "sampling_param_temperature" not in greedy


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"min_p": 0.1}, "min_p"),
        ({"min_tokens": 1}, "min_tokens"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({"logprobs": True}, "logprobs"),
        ({"completions": 2}, "n"),
        ({"guide": Guide(GuideKind.JSON)}, "response_format"),
    ],
)
def test_what_cannot_be_honoured_is_named(asked: dict[str, Any], param: str) -> None:
    """What there is no tensor for is refused by its name, never dropped."""
    with pytest.raises(Unsupported) as caught:
        detect(llmapi()).encode("x", Sampling(max_tokens=1, **asked), stream=True)
    assert caught.value.param == param


def test_a_newer_model_may_honour_more() -> None:
    """A parameter is honoured as soon as a model declares a tensor for it."""
    newer = detect(llmapi(extra={"sampling_param_min_p": "FP32", "sampling_param_min_tokens": "INT32"}))
    values = sent(newer, Sampling(max_tokens=9, min_p=0.5, min_tokens=2))
    assert (values["sampling_param_min_p"], values["sampling_param_min_tokens"]) == ([0.5], [2])


def test_recommendations_without_a_tensor_are_not_followed() -> None:
    """A model's own recommendation never makes a request fail that did not ask for it."""
    defaults = GenerationDefaults(0.6, 0.9, 20, 0.05, 1.05, (2,))
    assert detect(llmapi()).follow(defaults) == GenerationDefaults(0.6, 0.9, 20, None, None, (2,))


@pytest.mark.parametrize(
    "responses",
    [
        [b"Hello", b"Hello you", b"Hello you there"],  # all of it each time
        [b"Hello", b" you", b" there"],  # what is new
    ],
)
def test_whole_texts_and_deltas_make_the_same_answer(responses: list[bytes]) -> None:
    """It shows of itself which of both an engine's version sends."""
    read = reader()
    pieces = [piece for text in responses for piece in read.read({"text_output": texts(text)})]
    assert [piece.text for piece in pieces] == [b"Hello", b" you", b" there"]
    assert all(piece.tokens is None and piece.finish is None for piece in pieces)


@pytest.mark.parametrize(("said", "finish"), [(b"stop", "stop"), (b"length", "length"), (b"not_finished", "stop")])
def test_the_engine_says_how_it_ended(said: bytes, finish: str) -> None:
    """The finish reason is told with the last response, once, and nothing after it."""
    read = reader()
    assert read.read({"text_output": texts(b"Hel"), "finish_reason": texts(b"None")}) == [Piece(text=b"Hel")]
    assert read.read({"text_output": texts(b"Hello"), "finish_reason": texts(said)}) == [
        Piece(text=b"lo", finish=finish)
    ]
    assert read.read({"text_output": texts(b"Hello you"), "finish_reason": texts(said)}) == []
    assert read.finish() == []


def test_the_end_tells_what_was_kept_back() -> None:
    """Half a character at the very end is told with the finish reason."""
    read = reader()
    assert read.read({"text_output": texts("a\ufffd".encode()), "finish_reason": texts(b"None")}) == [Piece(text=b"a")]
    last = {"text_output": texts("a\ufffd".encode()), "finish_reason": texts(b"length")}
    assert read.read(last) == [Piece(text="\ufffd".encode(), finish="length")]


@pytest.mark.parametrize(("said", "code"), [(b"timeout", FailureCode.TIMEOUT), (b"cancelled", FailureCode.BROKEN)])
def test_an_engine_that_gave_up_did_not_answer(said: bytes, code: FailureCode) -> None:
    """An answer that the engine broke off itself is a failure, never a stop."""
    with pytest.raises(BackendFailure) as caught:
        reader().read({"text_output": texts(b"Hel"), "finish_reason": texts(said)})
    assert caught.value.code is code


def test_a_stream_that_only_ends_is_not_finished() -> None:
    """Without a finish reason there is none: whoever writes the answer will call it broken."""
    read = reader()
    read.read({"text_output": texts(b"Hel")})
    assert read.finish() == []
    assert not detect(llmapi()).reports_tokens
