"""Responses out of their bytes: whatever comes, they mean what protobuf says that they mean."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from backends import triton_responses
from backends.triton_responses import ResponseParser
from backends.triton_stubs import messages
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.triton import DataType, OutputTensor
from backends.wire.triton.errors import in_band_failure

TYPES = [*(datatype.value for datatype in DataType), "BF16", ""]
Meaning = tuple[dict[str, OutputTensor], bool] | tuple[FailureCode, Phase]


def by_protobuf(data: bytes) -> Meaning:
    """What a response means, by the generated classes alone."""
    try:
        response = messages.ModelStreamInferResponse.FromString(data)
    except DecodeError:
        return FailureCode.PROTOCOL, Phase.BODY
    if response.error_message:
        return in_band_failure(response.error_message, Phase.BODY).code, Phase.BODY
    answer = response.infer_response
    if len(answer.outputs) != len(answer.raw_output_contents):
        return FailureCode.PROTOCOL, Phase.BODY
    tensors = {}
    for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
        if tensor.datatype in TYPES[: len(DataType)]:
            tensors[tensor.name] = OutputTensor(DataType(tensor.datatype), tuple(tensor.shape), raw)
    final = dict(answer.parameters).get("triton_final_response")
    return tensors, final is not None and final.bool_param


def by_us(parser: ResponseParser, data: bytes) -> Meaning:
    """The same by ours."""
    try:
        outputs = parser.parse(data, Phase.BODY)
    except BackendFailure as failure:
        return failure.code, failure.phase
    assert len(outputs) == len(dict(outputs))
    assert outputs.get("nobody") is None
    return {name: outputs[name] for name in outputs if name in outputs}, parser.is_final


def response_of(tensors: list[tuple[str, str, list[int], bytes]], *, final: bool | None, request_id: str = "id") -> Any:
    response = messages.ModelStreamInferResponse()
    answer = response.infer_response
    answer.model_name, answer.model_version, answer.id = "ensemble", "1", request_id
    if final is not None:
        answer.parameters["triton_final_response"].bool_param = final
    for name, datatype, shape, raw in tensors:
        answer.outputs.add(name=name, datatype=datatype, shape=shape)
        answer.raw_output_contents.append(raw)
    return response


tensors = st.tuples(
    st.sampled_from(["text_output", "num_output_tokens", "2"]),
    st.sampled_from(TYPES),
    st.lists(st.sampled_from([0, 1, 2, 200, -1]), max_size=3),
    st.sampled_from([b"", b"\x32\x00", b"x" * 127, b"y" * 128, b"z" * 20_000]) | st.binary(max_size=9),
)
responses = st.builds(
    response_of,
    st.lists(tensors, max_size=4, unique_by=lambda tensor: tensor[0]),
    final=st.sampled_from([None, False, True]),
    request_id=st.sampled_from(["id", "", "x" * 200]),
)


@st.composite
def encoded(draw: st.DrawFn) -> bytes:
    """A response as some encoder might write it: in one piece or several, with what nobody asked for in between."""
    response = draw(responses)
    if draw(st.booleans()):
        return bytes(response.SerializeToString())
    answer = response.infer_response
    kind = draw(st.sampled_from(["contents first", "unknown behind", "unknown before", "twice", "error", "no content"]))
    contents = messages.ModelInferResponse(raw_output_contents=answer.raw_output_contents).SerializeToString()
    del answer.raw_output_contents[:]
    head = answer.SerializeToString()
    match kind:
        case "contents first":
            inner = contents + head
        case "unknown behind":
            inner = head + contents + b"\xf8\x07\x01"
        case "unknown before":
            inner = b"\x9a\x3e\x02hi" + head + contents
        case "no content":
            inner = head
        case _:
            inner = head + contents
    outer = b"\x12" + varint(len(inner)) + inner
    if kind == "twice":
        return outer + b"\x12" + varint(len(inner)) + inner
    return outer + b"\x0a\x04oops" if kind == "error" else outer


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


@given(st.lists(encoded(), min_size=1, max_size=4).flatmap(lambda some: st.lists(st.sampled_from(some), max_size=8)))
def test_a_stream_means_what_protobuf_says(stream: list[bytes]) -> None:
    """Also a response that begins like one before it, and whatever came between."""
    parser = ResponseParser()
    for data in stream:
        assert by_us(parser, data) == by_protobuf(data)


@given(encoded(), st.lists(st.tuples(st.integers(0, 400), st.integers(-1, 255)), min_size=1, max_size=3))
@example(b"", [(0, 0)])
@example(b"\x12", [(5, 0)])
def test_bytes_that_were_damaged_mean_what_protobuf_says(data: bytes, damage: list[tuple[int, int]]) -> None:
    """Cut off or changed, after the whole of it was read and remembered."""
    parser = ResponseParser()
    assert by_us(parser, data) == by_protobuf(data)
    for position, byte in damage:
        broken = data[:position] if byte < 0 else data[:position] + bytes([byte]) + data[position + 1 :]
        assert by_us(parser, broken) == by_protobuf(broken)


@given(st.binary(max_size=40))
def test_any_bytes_mean_what_protobuf_says(data: bytes) -> None:
    """A server may send anything."""
    assert by_us(ResponseParser(), data) == by_protobuf(data)


def test_protobuf_is_asked_once_for_responses_that_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the whole thing is for: a hundred deltas and an end are two ways to begin."""
    asked = 0

    class Counting:
        @staticmethod
        def FromString(data: bytes) -> Any:
            nonlocal asked
            asked += 1
            return messages.ModelStreamInferResponse.FromString(data)

    class Stubs:
        ModelStreamInferResponse = Counting
        ModelInferResponse = messages.ModelInferResponse

    monkeypatch.setattr(triton_responses, "messages", Stubs)
    parser = ResponseParser()
    for number in range(100):
        text = b"w" * number * 3
        data = response_of([("text_output", "BYTES", [1], text)], final=number == 99).SerializeToString()
        outputs = parser.parse(data, Phase.BODY)
        assert outputs["text_output"] == OutputTensor(DataType.BYTES, (1,), text)
        assert parser.is_final == (number == 99)
    assert asked == 2
