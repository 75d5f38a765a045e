"""Tensors, bit by bit: what we pack is what Triton's own client packs, and nonsense is never read as numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor, triton_to_np_dtype

from backends.wire.failure import BackendFailure, FailureCode
from backends.wire.triton import DataType, OutputTensor, pack_bytes, pack_numbers, read_bytes, read_numbers

NUMERIC = [datatype for datatype in DataType if datatype is not DataType.BYTES]


@pytest.mark.parametrize(
    ("datatype", "values", "raw"),
    [
        (DataType.BOOL, [True, False], b"\x01\x00"),
        (DataType.UINT8, [0, 255], b"\x00\xff"),
        (DataType.UINT16, [258], b"\x02\x01"),
        (DataType.UINT32, [1, 2**32 - 1], b"\x01\x00\x00\x00\xff\xff\xff\xff"),
        (DataType.UINT64, [2**64 - 1], b"\xff" * 8),
        (DataType.INT8, [-1], b"\xff"),
        (DataType.INT16, [-2], b"\xfe\xff"),
        (DataType.INT32, [-2, 65536], b"\xfe\xff\xff\xff\x00\x00\x01\x00"),
        (DataType.INT64, [-(2**63)], b"\x00" * 7 + b"\x80"),
        (DataType.FP16, [1.0], b"\x00\x3c"),
        (DataType.FP32, [1.0, -0.5], b"\x00\x00\x80\x3f\x00\x00\x00\xbf"),
        (DataType.FP64, [1.0], b"\x00" * 6 + b"\xf0\x3f"),
    ],
)
def test_numbers_bits(datatype: DataType, values: list[float], raw: bytes) -> None:
    """Each type of number has exactly these bits, and they are read back as the same numbers."""
    assert pack_numbers(datatype, values) == raw
    assert read_numbers(OutputTensor(datatype, (len(values),), raw)) == values


def test_texts_bits() -> None:
    """Each text follows its length as four little-endian bytes; the length counts bytes, not characters."""
    raw = b"\x02\x00\x00\x00\xc3\xa4\x00\x00\x00\x00\x01\x00\x00\x00a"
    assert pack_bytes(["ä".encode(), b"", b"a"]) == raw
    assert read_bytes(OutputTensor(DataType.BYTES, (3,), raw)) == ["ä".encode(), b"", b"a"]


@given(elements=st.lists(st.binary(max_size=40), max_size=8))
def test_texts_are_those_of_tritons_client(elements: list[bytes]) -> None:
    """Triton's own client packs texts to the same bits, and reads ours."""
    raw = pack_bytes(elements)
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    theirs = serialize_byte_tensor(array)
    assert raw == (theirs.item() if theirs.size else b"")
    assert list(deserialize_bytes_tensor(raw)) == elements
    assert read_bytes(OutputTensor(DataType.BYTES, (len(elements),), raw)) == elements


@pytest.mark.parametrize("datatype", NUMERIC)
def test_numbers_are_those_of_numpy(datatype: DataType) -> None:
    """Numpy, which Triton's client packs with, has the same bits for every type."""
    values = [0, 1] if datatype is DataType.BOOL else [0, 1, 100]
    array = np.array(values, dtype=triton_to_np_dtype(str(datatype)))
    assert pack_numbers(datatype, values) == array.tobytes()
    assert read_numbers(OutputTensor(datatype, array.shape, array.tobytes())) == values


@pytest.mark.parametrize(
    ("datatype", "value"),
    [(DataType.UINT64, -1), (DataType.INT32, 2**31), (DataType.UINT32, 2**32), (DataType.FP32, 1e39)],
)
def test_what_does_not_fit_is_not_packed(datatype: DataType, value: float) -> None:
    """A number outside its type is an error, never another number."""
    with pytest.raises(OverflowError):
        pack_numbers(datatype, [value])


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_number_may_have_any_shape_of_one_element(shape: tuple[int, ...]) -> None:
    """vLLM's backend sends a count without any dimension; that is one element, too."""
    assert read_numbers(OutputTensor(DataType.UINT32, shape, b"\x07\x00\x00\x00")) == [7]


@pytest.mark.parametrize(
    "tensor",
    [
        OutputTensor(DataType.BYTES, (1,), b"\x05\x00\x00\x00abc"),  # shorter than it says
        OutputTensor(DataType.BYTES, (1,), b"\x05\x00"),  # cut inside the length
        OutputTensor(DataType.BYTES, (2,), b"\x01\x00\x00\x00a"),  # fewer than the shape says
        OutputTensor(DataType.BYTES, (0,), b"\x01\x00\x00\x00a"),  # more than the shape says
        OutputTensor(DataType.BYTES, (-1,), b""),
        OutputTensor(DataType.INT32, (1,), b"\x01\x00\x00\x00"),  # no texts
    ],
)
def test_malformed_texts(tensor: OutputTensor) -> None:
    """Texts that don't agree with their lengths or their shape are a fault of the engine."""
    with pytest.raises(BackendFailure) as caught:
        read_bytes(tensor)
    assert caught.value.code is FailureCode.PROTOCOL


@pytest.mark.parametrize(
    "tensor",
    [
        OutputTensor(DataType.INT32, (2,), b"\x01\x00\x00\x00"),
        OutputTensor(DataType.INT32, (1,), b"\x01\x00\x00"),
        OutputTensor(DataType.INT32, (-1,), b""),
        OutputTensor(DataType.BYTES, (1,), b"\x00\x00\x00\x00"),
    ],
)
def test_malformed_numbers(tensor: OutputTensor) -> None:
    """Numbers that don't fill their shape are a fault of the engine."""
    with pytest.raises(BackendFailure) as caught:
        read_numbers(tensor)
    assert caught.value.code is FailureCode.PROTOCOL
