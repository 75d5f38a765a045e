"""Responses of a stream, out of their bytes.

Floor: edge, because the generated messages are; it does no input or output.

The responses to one request are alike: model, id, parameters and the description of the tensors are the same bytes
again and again, and only the contents behind them change. So what stands before the contents is parsed once by
protobuf; a response that begins with the same bytes has the same meaning, and only its contents are cut out. That is
right because the encoding of a message is a sequence of fields, and two sequences put together mean what both mean.
Whatever does not fit, in any way, is protobuf's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.message import DecodeError

from backends.triton_stubs import messages
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.triton.errors import in_band_failure
from backends.wire.triton.outputs import Outputs, Place
from backends.wire.triton.tensors import DataType, OutputTensor

FINAL_RESPONSE = "triton_final_response"
MOST_HEADS = 16
"""A stream whose responses begin in more ways than these is not worth the trouble."""
_KNOWN_TYPES = {datatype.value: datatype for datatype in DataType}
_INFER_RESPONSE = 0x12
"""Field 2 of `ModelStreamInferResponse`, of the type with a length."""
_CONTENT = 0x32
"""Field 6 of `ModelInferResponse`, ``raw_output_contents``, of the type with a length."""


class ResponseParser:
    """Parses the responses of one stream, in any order."""

    __slots__ = ("_count", "_head", "_heads", "_is_final", "_places", "is_final")

    def __init__(self) -> None:
        self._head = b""  # of the last response: all of its fields that stand before the contents
        self._heads = 0
        self._places: dict[str, Place] = {}
        self._count = 0
        self._is_final = False  # of a response with this head
        self.is_final = False
        """Whether the response that was parsed last is the last of its request."""

    def parse(self, data: bytes, phase: Phase) -> Mapping[str, OutputTensor]:
        """The tensors of a response.

        Args:
            phase: where the request stands; a failure bears it.

        Raises:
            BackendFailure: it says that the model failed, or is none.
        """
        start = _start(data)
        head = self._head
        if start and head and data.startswith(head, start):
            contents = _contents(data, start + len(head))
            if contents is not None and len(contents) == self._count:
                self.is_final = self._is_final
                return Outputs(self._places, contents)
        return self._parse_all(data, start, phase)

    def _parse_all(self, data: bytes, start: int, phase: Phase) -> Mapping[str, OutputTensor]:
        try:
            response = messages.ModelStreamInferResponse.FromString(data)
        except DecodeError:
            raise BackendFailure(FailureCode.PROTOCOL, phase) from None
        if response.error_message:
            raise in_band_failure(response.error_message, phase)
        answer = response.infer_response
        contents = list(answer.raw_output_contents)
        if len(contents) != len(answer.outputs):
            raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
        places = {
            tensor.name: (place, datatype, tuple(tensor.shape))
            for place, tensor in enumerate(answer.outputs)
            if (datatype := _KNOWN_TYPES.get(tensor.datatype)) is not None
        }
        parameters = answer.parameters
        self.is_final = FINAL_RESPONSE in parameters and parameters[FINAL_RESPONSE].bool_param
        if start and contents and self._heads < MOST_HEADS:
            self._learn(data, start, answer, places, len(contents))
        return Outputs(places, contents)

    def _learn(self, data: bytes, start: int, answer: Any, places: dict[str, Place], count: int) -> None:
        """Keep the head of this response, if protobuf says that it is all there is besides the contents."""
        self._heads += 1
        end = _end_of_head(data, start)
        head = data[start:end]
        del answer.raw_output_contents[:]
        try:
            is_all = messages.ModelInferResponse.FromString(head) == answer
        except DecodeError:
            return
        if is_all:
            self._head, self._places, self._count, self._is_final = head, places, count, self.is_final


def _start(data: bytes) -> int:
    """Where the answer begins, if the response is one answer and nothing else; else 0."""
    try:
        if data[0] != _INFER_RESPONSE:
            return 0
        length, start = _varint(data, 1)
    except IndexError:
        return 0
    return start if start + length == len(data) else 0


def _contents(data: bytes, position: int) -> list[bytes] | None:
    """The contents, if from here on there is nothing else."""
    contents: list[bytes] = []
    size = len(data)
    try:
        while position < size:
            if data[position] != _CONTENT:
                return None
            length = data[position + 1]
            if length < 0x80:
                position += 2
            else:
                length, position = _varint(data, position + 1)
            contents.append(data[position : position + length])
            position += length
    except IndexError:
        return None
    return contents if position == size else None


def _end_of_head(data: bytes, position: int) -> int:
    """Where the first content begins. All known fields before it have a length; what has none ends the search."""
    try:
        while position < len(data) and data[position] != _CONTENT and data[position] & 0x87 == 2:
            length, start = _varint(data, position + 1)
            position = start + length
    except IndexError:
        pass
    return position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of the encoding, and where it ends. Raises: IndexError: it doesn't end."""
    number = shift = 0
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
