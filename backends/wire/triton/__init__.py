"""The interfaces of language models on Triton: TensorRT-LLM's ensemble and BLS, its LLM API model, vLLM's backend.

Floor: wire (pure). Tensors in and out; the calls themselves are `backends.triton_grpc`'s.
"""

from backends.wire.triton.detection import detect
from backends.wire.triton.dialect import Dialect, Reader, UnknownInterface
from backends.wire.triton.metadata import ModelInfo, TensorInfo
from backends.wire.triton.tensors import (
    DataType,
    InputTensor,
    OutputTensor,
    pack_bytes,
    pack_numbers,
    read_bytes,
    read_numbers,
)

__all__ = [
    "DataType",
    "Dialect",
    "InputTensor",
    "ModelInfo",
    "OutputTensor",
    "Reader",
    "TensorInfo",
    "UnknownInterface",
    "detect",
    "pack_bytes",
    "pack_numbers",
    "read_bytes",
    "read_numbers",
]
