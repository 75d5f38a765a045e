"""TensorRT-LLM's ensemble and BLS: every parameter has its tensor, every answer its finish reason and its counts."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.failure import BackendFailure, FailureCode, Unsupported
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Piece, Sampling
from backends.wire.triton import DataType, InputTensor, ModelInfo, OutputTensor, Reader, detect
from tests.unit.triton_models import bls, ensemble, numbers, sent, texts

ALL = Sampling(
    max_tokens=7,
    temperature=0.5,
    top_p=0.25,
    top_k=40,
    seed=11,
    stop=("END", "\n"),
    min_tokens=3,
    presence_penalty=-1.5,
    frequency_penalty=0.75,
    repetition_penalty=1.25,
    completions=2,
    logprobs=True,
    guide=Guide(GuideKind.JSON_SCHEMA, '{"type":"object"}'),
)


def response(text: bytes, tokens: int | None = 1, **others: OutputTensor) -> Mapping[str, OutputTensor]:
    outputs = {"text_output": texts(text), "num_input_tokens": numbers(DataType.INT32, 5, shape=(1, 1)), **others}
    if tokens is not None:
        outputs["num_output_tokens"] = numbers(DataType.INT32, tokens, shape=(1, 1))
    return outputs


def index(name: str, number: int) -> dict[str, OutputTensor]:
    return {name: numbers(DataType.INT32, number, shape=(1, 1))}


def reader(info: ModelInfo, max_tokens: int = 8, **asked: Any) -> Reader:
    return detect(info).reader(Sampling(max_tokens=max_tokens, **asked))


def test_everything_that_can_be_asked() -> None:
    """Each parameter goes into the tensor of its name, with its value."""
    assert sent(detect(ensemble()), ALL) == {
        "text_input": [b"Hello"],
        "max_tokens": [7],
        "stream": [True],
        "exclude_input_in_output": [True],
        "return_num_input_tokens": [True],
        "return_num_output_tokens": [True],
        "temperature": [0.5],
        "top_p": [0.25],
        "top_k": [40],
        "seed": [11],
        "stop_words": [b"END", b"\n"],
        "min_tokens": [3],
        "presence_penalty": [-1.5],
        "frequency_penalty": [0.75],
        "repetition_penalty": [1.25],
        "num_return_sequences": [2],
        "return_log_probs": [True],
        "guided_decoding_guide_type": [b"json_schema"],
        "guided_decoding_guide": [b'{"type":"object"}'],
    }


def test_the_bits_that_are_sent() -> None:
    """Types, shapes and raw bytes are those of the model's configuration."""
    sampling = Sampling(max_tokens=7, temperature=0.5, stop=("END", "\n"))
    tensors = {tensor.name: tensor for tensor in detect(ensemble()).encode("hä", sampling, stream=True)}
    assert tensors["text_input"] == InputTensor("text_input", DataType.BYTES, (1, 1), b"\x03\x00\x00\x00h\xc3\xa4")
    assert tensors["max_tokens"] == InputTensor("max_tokens", DataType.INT32, (1, 1), b"\x07\x00\x00\x00")
    assert tensors["stream"] == InputTensor("stream", DataType.BOOL, (1, 1), b"\x01")
    assert tensors["temperature"] == InputTensor("temperature", DataType.FP32, (1, 1), b"\x00\x00\x00\x3f")
    assert tensors["stop_words"] == InputTensor(
        "stop_words", DataType.BYTES, (1, 2), b"\x03\x00\x00\x00END\x01\x00\x00\x00\n"
    )


def test_a_model_that_does_not_batch_gets_one_dimension_less() -> None:
    """With a max_batch_size of 0 there is no batch dimension."""
    tensors = detect(ensemble(max_batch_size=0)).encode("x", ALL, stream=True)
    assert {tensor.name: tensor.shape for tensor in tensors if tensor.shape != (1,)} == {"stop_words": (2,)}


def test_old_names_and_other_widths() -> None:
    """A model from before the renaming gets the old names; a number is as wide as the model declares it."""
    old = ensemble(without=("seed", "min_tokens"), extra={"random_seed": "INT64", "min_length": "INT64"})
    tensors = {tensor.name: tensor for tensor in detect(old).encode("x", ALL, stream=True)}
    assert tensors["random_seed"] == InputTensor("random_seed", DataType.INT64, (1, 1), struct.pack("<q", 11))
    assert tensors["min_length"] == InputTensor("min_length", DataType.INT64, (1, 1), struct.pack("<q", 3))
    assert "seed" not in tensors
    assert "min_tokens" not in tensors


@pytest.mark.parametrize(("seed", "raw"), [(-1, b"\xff" * 8), (0, b"\x00" * 8), (2**63 - 1, b"\xff" * 7 + b"\x7f")])
@pytest.mark.parametrize("datatype", ["UINT64", "INT64"])
def test_any_seed_fits(seed: int, raw: bytes, datatype: str) -> None:
    """A negative seed, which OpenAI allows, has its place in an unsigned tensor."""
    tensors = detect(ensemble(extra={"seed": datatype})).encode("x", Sampling(max_tokens=1, seed=seed), stream=True)
    assert next(tensor.raw for tensor in tensors if tensor.name == "seed") == raw


def test_a_request_that_says_nothing_is_drawn_as_openai_says() -> None:
    """TensorRT-LLM would be greedy when told nothing; the OpenAI API draws from all tokens at temperature 1."""
    values = sent(detect(ensemble()), Sampling(max_tokens=1))
    assert (values["temperature"], values["top_p"], "top_k" in values) == ([1.0], [1.0], False)


def test_temperature_zero_is_greedy() -> None:
    """Temperature 0 becomes the choice of the likeliest token, which every version understands."""
    values = sent(detect(ensemble()), Sampling(max_tokens=1, temperature=0, top_p=0.5, top_k=9))
    assert (values["top_k"], "temperature" in values, "top_p" in values) == ([1], False, False)


def test_optional_tensors_are_only_sent_where_they_are() -> None:
    """A model that lacks optional tensors is never sent them."""
    bare = ("exclude_input_in_output", "return_num_input_tokens", "return_num_output_tokens", "stop_words")
    values = sent(detect(ensemble(without=bare)), Sampling(max_tokens=1, stop=("x",)))
    assert not values.keys() & set(bare)


def test_words_that_must_be_sent() -> None:
    """The oldest configurations demand stop words and bad words: an empty text stands for none."""
    demanding = ensemble(required=("stop_words", "bad_words"))
    values = sent(detect(demanding), Sampling(max_tokens=1))
    assert (values["stop_words"], values["bad_words"]) == ([b""], [b""])
    assert sent(detect(demanding), Sampling(max_tokens=1, stop=("x",)))["stop_words"] == [b"x"]


def test_any_json_needs_no_guide() -> None:
    """A JSON object of any form is only a type of guide."""
    values = sent(detect(ensemble()), Sampling(max_tokens=1, guide=Guide(GuideKind.JSON)))
    assert values["guided_decoding_guide_type"] == [b"json"]
    assert "guided_decoding_guide" not in values


@pytest.mark.parametrize(
    ("info", "asked", "param"),
    [
        (ensemble(), {"min_p": 0.1}, "min_p"),
        (ensemble(without=("seed",)), {"seed": 1}, "seed"),
        (ensemble(without=("min_tokens",)), {"min_tokens": 1}, "min_tokens"),
        (ensemble(without=("repetition_penalty",)), {"repetition_penalty": 1.5}, "repetition_penalty"),
        (ensemble(without=("return_log_probs",)), {"logprobs": True}, "logprobs"),
        (ensemble(without=("output_log_probs",)), {"logprobs": True}, "logprobs"),
        (ensemble(), {"logprobs": True, "top_logprobs": 1}, "top_logprobs"),
        (ensemble(without=("num_return_sequences",)), {"completions": 2}, "n"),
        (ensemble(without=("sequence_index",)), {"completions": 2}, "n"),
        (bls(), {"completions": 2}, "n"),
        (ensemble(without=("guided_decoding_guide",)), {"guide": Guide(GuideKind.JSON)}, "response_format"),
    ],
)
def test_what_cannot_be_honoured_is_named(info: ModelInfo, asked: dict[str, Any], param: str) -> None:
    """What there is no tensor for is refused by its name, by the check and by the encoder alike."""
    sampling = Sampling(max_tokens=1, **asked)
    for refuse in (
        lambda: detect(info).check(sampling),
        lambda: detect(info).encode("x", sampling, stream=True),
    ):
        with pytest.raises(Unsupported) as caught:
            refuse()
        assert caught.value.param == param
        assert caught.value.is_callers_fault


def test_recommendations_without_a_tensor_are_not_followed() -> None:
    """A model's own recommendation never makes a request fail that did not ask for it."""
    dialect = detect(ensemble(without=("repetition_penalty",)))
    defaults = GenerationDefaults(0.6, 0.9, 20, 0.05, 1.05, (2,))
    assert dialect.follow(defaults) == GenerationDefaults(0.6, 0.9, 20, None, None, (2,))


# -- answers -----------------------------------------------------------------------------------------------------------


def test_deltas_and_their_counts() -> None:
    """Each response is a delta with its own count; the prompt, which each repeats, is counted once."""
    read = reader(ensemble())
    assert read.read(response(b"Hel")) == [Piece(text=b"Hel", tokens=1, prompt_tokens=5)]
    assert read.read(response(b"lo", 2)) == [Piece(text=b"lo", tokens=2)]
    assert read.read({}) == []
    assert read.finish() == [Piece(tokens=0, finish="stop")]


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=9), max_tokens=st.integers(1, 12))
def test_the_finish_reason_follows_from_the_counts(counts: list[int], max_tokens: int) -> None:
    """As many tokens as were allowed, or more, mean length; fewer mean stop."""
    read = reader(ensemble(), max_tokens)
    pieces = [piece for count in counts for piece in read.read(response(b"x", count))]
    assert sum(piece.tokens or 0 for piece in pieces) == sum(counts)
    assert [piece.finish for piece in read.finish()] == ["length" if sum(counts) >= max_tokens else "stop"]


def test_a_whole_answer() -> None:
    """One response with everything counts like many."""
    read = reader(ensemble(), 3)
    assert read.read(response(b"Hello you", 3)) == [Piece(text=b"Hello you", tokens=3, prompt_tokens=5)]
    assert [piece.finish for piece in read.finish()] == ["length"]


def test_an_answer_that_never_began_has_no_end() -> None:
    """No response, no finish reason: whoever writes the answer will call it broken."""
    assert reader(ensemble()).finish() == []


def test_a_response_without_any_text() -> None:
    """An empty list of texts is no text, and its tokens count."""
    assert reader(ensemble()).read({**response(b""), "text_output": texts()}) == [Piece(tokens=1, prompt_tokens=5)]


def test_choices_are_told_apart_and_counted_apart() -> None:
    """With n, each response belongs to the choice that it names, and each choice ends for its own reason."""
    read = reader(ensemble(), 2, completions=2)
    assert read.read(response(b"a", **index("sequence_index", 1)))[0].choice == 1
    assert read.read(response(b"b", **index("sequence_index", 0)))[0].choice == 0
    assert read.read(response(b"c", **index("sequence_index", 1))) == [Piece(choice=1, text=b"c", tokens=1)]
    assert [(piece.choice, piece.finish) for piece in read.finish()] == [(0, "stop"), (1, "length")]


@pytest.mark.parametrize(
    "outputs",
    [
        response(b"x", **index("sequence_index", 2)),
        response(b"x", **index("sequence_index", -1)),
        response(b"x", **index("batch_index", 1)),
        response(b"x", -1),
        {"text_output": texts(b"a", b"b")},
        {"num_output_tokens": numbers(DataType.INT32, 1)},
        {"text_output": numbers(DataType.INT32, 1)},
        {"text_output": texts(b"a"), "num_output_tokens": numbers(DataType.FP32, 1.0)},
        {"text_output": texts(b"a"), "num_output_tokens": numbers(DataType.INT32, 1, 2)},
    ],
)
def test_nonsense_is_a_fault_of_the_engine(outputs: Mapping[str, OutputTensor]) -> None:
    """A response that is not what the interface promises ends the request as the engine's fault."""
    with pytest.raises(BackendFailure) as caught:
        reader(ensemble(), completions=2).read(outputs)
    assert caught.value.code is FailureCode.PROTOCOL


def test_logprobs_are_those_of_the_new_tokens() -> None:
    """Whether a response repeats the earlier tokens' log probabilities or not, only the new ones are told."""
    for later in ([-3.0], [-1.0, -2.0, -3.0]):
        read = reader(ensemble(), logprobs=True)
        first = numbers(DataType.FP32, -1.0, -2.0, 0.0, shape=(1, 1, 3))  # filled up behind
        assert read.read(response(b"ab", 2, output_log_probs=first))[0].logprobs == (-1.0, -2.0)
        tensor = numbers(DataType.FP32, *later, shape=(1, 1, len(later)))
        assert read.read(response(b"c", 1, output_log_probs=tensor))[0].logprobs == (-3.0,)
        assert read.read(response(b"", 0, output_log_probs=tensor))[0].logprobs == ()


def test_logprobs_nobody_asked_for_are_not_told() -> None:
    """A model that always sends log probabilities doesn't make us tell them."""
    tensor = numbers(DataType.FP32, -1.0, shape=(1, 1, 1))
    assert reader(ensemble()).read(response(b"a", output_log_probs=tensor))[0].logprobs is None


def test_a_model_that_does_not_count() -> None:
    """An old model without counts is always asked for a stream, whose responses are a token each."""
    dialect = detect(ensemble(without=("return_num_output_tokens", "return_num_input_tokens")))
    assert not dialect.reports_tokens
    assert sent(dialect, Sampling(max_tokens=1), stream=False)["stream"] == [True]
    read = dialect.reader(Sampling(max_tokens=2))
    assert read.read({"text_output": texts(b"a")}) == [Piece(text=b"a")]
    assert read.read({"text_output": texts(b"b")}) == [Piece(text=b"b")]
    assert read.finish() == [Piece(finish="length")]


def test_a_model_that_would_repeat_the_prompt_is_asked_for_a_stream() -> None:
    """Where the prompt can't be left out of an answer, a stream is asked for, which never has it."""
    dialect = detect(ensemble(without=("exclude_input_in_output",)))
    assert dialect.reports_tokens
    assert sent(dialect, Sampling(max_tokens=1), stream=False)["stream"] == [True]


def test_a_model_that_counts_is_asked_for_what_is_wanted() -> None:
    """A model that can leave the prompt out and counts may answer at once."""
    assert sent(detect(ensemble()), Sampling(max_tokens=1), stream=False)["stream"] == [False]


def test_bls_that_accumulates_sends_whole_texts() -> None:
    """BLS with accumulate_tokens sends all the text each time; only what is new is told, and no half character."""
    read = reader(bls(parameters={"accumulate_tokens": "true"}))
    assert read.read(response(b"gr"))[0].text == b"gr"
    assert read.read(response("gr\ufffd".encode()))[0].text == b""
    assert read.read(response("grün".encode()))[0].text == "ün".encode()
    assert read.read(response("grün\ufffd".encode()))[0].text == b""
    assert read.finish() == [Piece(text="\ufffd".encode(), tokens=0, finish="stop")]


def test_bls_that_does_not_accumulate_sends_deltas() -> None:
    """The switch off, equal texts after each other are tokens of their own."""
    for parameters in ({"accumulate_tokens": "false"}, {"accumulate_tokens": "${accumulate_tokens}"}, {}):
        read = reader(bls(parameters=parameters))
        assert [read.read(response(b"ha"))[0].text for _ in range(2)] == [b"ha", b"ha"]
