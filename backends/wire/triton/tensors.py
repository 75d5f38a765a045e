"""Tensors as Triton's gRPC protocol carries them: a type, a shape and raw bytes.

Floor: wire (pure). Knows numbers and texts, nothing of what a tensor means.
Numbers are little-endian without padding; an element of a BYTES tensor is its length as a little-endian UINT32, then
its bytes. Source: KServe open inference protocol v2, "Tensor Data"; Triton's extension for raw contents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from backends.wire.failure import BackendFailure, FailureCode, Phase

_LENGTH = struct.Struct("<I")


class DataType(StrEnum):
    """The types of the protocol, by their names there."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


_FORMATS: dict[DataType, str] = {
    DataType.BOOL: "?",
    DataType.UINT8: "B",
    DataType.UINT16: "H",
    DataType.UINT32: "I",
    DataType.UINT64: "Q",
    DataType.INT8: "b",
    DataType.INT16: "h",
    DataType.INT32: "i",
    DataType.INT64: "q",
    DataType.FP16: "e",
    DataType.FP32: "f",
    DataType.FP64: "d",
}
_ONE = {datatype: struct.Struct(f"<{layout}") for datatype, layout in _FORMATS.items()}


@dataclass(frozen=True, slots=True)
class InputTensor:
    """What is sent: ``raw`` goes into ``raw_input_contents``."""

    name: str
    datatype: DataType
    shape: tuple[int, ...]
    raw: bytes


@dataclass(slots=True)
class OutputTensor:
    """What came back: ``raw`` out of ``raw_output_contents``. Not frozen: several are made for every response."""

    datatype: DataType
    shape: tuple[int, ...]
    raw: bytes


def pack_bytes(elements: Iterable[bytes]) -> bytes:
    """The raw content of a BYTES tensor."""
    return b"".join([_LENGTH.pack(len(element)) + element for element in elements])


def pack_numbers(datatype: DataType, values: Sequence[float]) -> bytes:
    """The raw content of a tensor of numbers or booleans.

    Raises:
        OverflowError: a value does not fit the type.
    """
    try:
        return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
    except struct.error:
        raise OverflowError(f"a value does not fit {datatype}") from None


def read_bytes(tensor: OutputTensor) -> list[bytes]:
    """The elements of a BYTES tensor.

    Raises:
        BackendFailure: it is none, or its content does not agree with itself or its shape.
    """
    raw = tensor.raw
    if tensor.datatype is not DataType.BYTES:
        raise _malformed()
    count = _count(tensor.shape)
    if count == 1 and len(raw) >= _LENGTH.size and _LENGTH.unpack_from(raw)[0] == len(raw) - _LENGTH.size:
        return [raw[_LENGTH.size :]]
    elements: list[bytes] = []
    position = 0
    while position < len(raw):
        start = position + _LENGTH.size
        if start > len(raw):
            raise _malformed()
        position = start + _LENGTH.unpack_from(raw, position)[0]
        if position > len(raw):
            raise _malformed()
        elements.append(raw[start:position])
    if len(elements) != count:
        raise _malformed()
    return elements


def read_numbers(tensor: OutputTensor) -> list[float]:
    """The elements of a tensor of numbers: ``int``, ``float`` or ``bool`` as its type is.

    Raises:
        BackendFailure: it holds texts, or its content does not agree with its shape.
    """
    one = _ONE.get(tensor.datatype)
    if one is None:
        raise _malformed()
    count = _count(tensor.shape)
    if len(tensor.raw) != count * one.size:
        raise _malformed()
    if count == 1:  # nearly always
        return [one.unpack(tensor.raw)[0]]
    return list(struct.unpack(f"<{count}{_FORMATS[tensor.datatype]}", tensor.raw))


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        if size < 0:
            raise _malformed()
        count *= size
    return count


def _malformed() -> BackendFailure:
    return BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
