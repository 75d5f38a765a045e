"""A response that says nothing new but its text is read by its bytes: it means what it means when it is read whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.failure import BackendFailure
from backends.wire.sampling import Piece, Sampling
from backends.wire.triton import DataType, Dialect, OutputTensor, Reader, detect, pack_bytes, pack_numbers
from backends.wire.triton.outputs import Outputs, Place
from tests.unit.triton_models import ensemble, llmapi, vllm

DIALECTS = {"ensemble": detect(ensemble()), "vllm": detect(vllm()), "llmapi": detect(llmapi())}
Said = dict[str, OutputTensor]


def number(name: str, values: tuple[int, ...]) -> st.SearchStrategy[tuple[str, OutputTensor] | None]:
    """A tensor with one of these numbers, mostly the first; it may be absent, empty or double."""
    one = st.sampled_from((values[0], *values)).map(
        lambda value: (name, OutputTensor(DataType.INT32, (1,), pack_numbers(DataType.INT32, [value])))
    )
    odd = st.sampled_from([(0,), (2,)]).map(
        lambda shape: (name, OutputTensor(DataType.INT32, shape, bytes(4 * shape[0])))
    )
    return st.one_of(one, one, one, one, odd, st.none())


def word(name: str, values: tuple[bytes, ...]) -> st.SearchStrategy[tuple[str, OutputTensor] | None]:
    """The same with a text, whose length may be a lie."""
    one = st.sampled_from(values).map(lambda value: (name, OutputTensor(DataType.BYTES, (1,), pack_bytes([value]))))
    odd = st.sampled_from([b"", b"\x05\x00\x00\x00abc", b"\x01\x00\x00\x00ab", b"\x00\x00"]).map(
        lambda raw: (name, OutputTensor(DataType.BYTES, (1,), raw))
    )
    two = st.just((name, OutputTensor(DataType.BYTES, (2,), pack_bytes([b"a", b"b"]))))
    return st.one_of(one, one, one, one, odd, two, st.none())


anything = st.tuples(
    word("text_output", (b" a", b"\xc3", b"\xa4", b"")),
    word("finish_reason", (b"None", b"None", b"None", b"stop", b"length", b"abort", b"timeout")),
    number("num_output_tokens", (1, 2, -1)),
    number("num_input_tokens", (7, 8)),
    number("batch_index", (0, 0, 0, 1)),
    number("sequence_index", (0, 1, 5)),
).map(lambda tensors: dict(tensor for tensor in tensors if tensor is not None))


def usual(raw: bytes, finish: bytes, tokens: int, sequence: int, batch: int) -> Said:
    """All tensors are there; what they hold may be new, or a lie."""
    ints = {"num_output_tokens": tokens, "num_input_tokens": 7, "batch_index": batch, "sequence_index": sequence}
    return {
        "text_output": OutputTensor(DataType.BYTES, (1,), raw),
        "finish_reason": OutputTensor(DataType.BYTES, (1,), pack_bytes([finish])),
        **{
            name: OutputTensor(DataType.INT32, (1,), pack_numbers(DataType.INT32, [value]))
            for name, value in ints.items()
        },
    }


def mostly(usually: Any, *seldom: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from([usually] * 12 + list(seldom))


responses = st.one_of(
    *[
        st.builds(
            usual,
            mostly(pack_bytes([b" a"]), pack_bytes([b"\xc3"]), pack_bytes([b" sea" * 9]), b"\5\0\0\0a", b"\1\0\0\0ab"),
            mostly(b"None", b"stop", b"abort"),
            mostly(1, 2, 0, -1),
            mostly(0, 1, 1, 1, 1),
            mostly(0, 1),
        )
    ] * 6,
    anything,
)  # fmt: skip


def as_they_come(said: Said, known: dict[object, dict[str, Place]]) -> Outputs:
    """As the parser of a stream hands them out: alike responses share their places."""
    places = {name: (at, tensor.datatype, tensor.shape) for at, (name, tensor) in enumerate(said.items())}
    shared = known.setdefault(tuple(places.items()), places)
    return Outputs(shared, [tensor.raw for tensor in said.values()])


def read(reader: Reader, outputs: Mapping[str, OutputTensor]) -> list[Piece] | str:
    try:
        return reader.read(outputs)
    except BackendFailure as failure:
        return f"{failure.code} {failure.phase}"


def check(dialect: Dialect, sampling: Sampling, stream: list[Said]) -> None:
    known: dict[object, dict[str, Place]] = {}
    ours, plain = dialect.reader(sampling), dialect.reader(sampling)
    for said in stream:
        expected = read(plain, said)
        assert read(ours, as_they_come(said, known)) == expected
        if isinstance(expected, str):
            return  # the call is over
    assert ours.finish() == plain.finish()


@pytest.mark.parametrize("name", DIALECTS)
@given(
    stream=st.lists(responses, min_size=3, max_size=12),
    completions=st.sampled_from([1, 2]),
    logprobs=st.booleans(),
)
def test_what_is_read_by_its_bytes_is_what_is_read_whole(
    name: str, stream: list[Said], completions: int, logprobs: bool
) -> None:
    """On each interface, whatever stands between two responses that are alike."""
    if name != "ensemble":
        completions = 1
    check(DIALECTS[name], Sampling(max_tokens=5, completions=completions, logprobs=logprobs), stream)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_tensors_of_alike_responses_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is for: after the first ones no tensor is looked up any more."""
    looked_up = 0
    get = Outputs.get

    def counting(outputs: Outputs, tensor: str, default: object = None) -> object:
        nonlocal looked_up
        looked_up += 1
        return get(outputs, tensor, default)

    monkeypatch.setattr(Outputs, "get", counting)
    known: dict[object, dict[str, Place]] = {}
    reader = DIALECTS[name].reader(Sampling(max_tokens=100))
    counts = []
    for position in range(50):
        looked_up = 0
        said = {
            "text_output": OutputTensor(DataType.BYTES, (1,), pack_bytes([b" word %d" % position])),
            "finish_reason": OutputTensor(DataType.BYTES, (1,), pack_bytes([b"None"])),
            "num_output_tokens": OutputTensor(DataType.INT32, (1,), pack_numbers(DataType.INT32, [1])),
            "num_input_tokens": OutputTensor(DataType.INT32, (1,), pack_numbers(DataType.INT32, [9])),
        }
        assert [piece.text for piece in reader.read(as_they_come(said, known))] == [b" word %d" % position]
        counts.append(looked_up)
    assert counts[0] > 0
    assert counts[2:] == [0] * 48
