"""Collects the input tensors of one request, each as the model declares it.

Floor: wire (pure). A model may declare another width of a number than the version that was read, and has one more
dimension in front when it batches; both are taken from what the server says of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from backends.wire.triton.dialect import UnknownInterface
from backends.wire.triton.metadata import ModelInfo
from backends.wire.triton.tensors import DataType, InputTensor, pack_bytes, pack_numbers

TEXTS = frozenset({DataType.BYTES})
FLAGS = frozenset({DataType.BOOL})
WHOLE_NUMBERS = frozenset({DataType.INT32, DataType.INT64, DataType.UINT32, DataType.UINT64})
REAL_NUMBERS = frozenset({DataType.FP32, DataType.FP64})
_SIGNED_64 = frozenset({DataType.INT64, DataType.INT32})


class InputWriter:
    """Writes tensors for one model. Tensors that the model doesn't have are left out."""

    __slots__ = ("_leading", "_types", "tensors")

    def __init__(self, types: Mapping[str, DataType], *, batches: bool) -> None:
        self._types = types
        self._leading: tuple[int, ...] = (1,) if batches else ()
        self.tensors: list[InputTensor] = []

    def texts(self, name: str, texts: Iterable[str]) -> None:
        """BYTES [n], or [1, n]. A lone surrogate, which UTF-8 can't hold, becomes a question mark."""
        if name in self._types:
            elements = [text.encode("utf-8", "replace") for text in texts]
            self._add(name, len(elements), pack_bytes(elements))

    def number(self, name: str, value: float | None) -> None:
        """One number or flag, [1] or [1, 1]; nothing for ``None``."""
        datatype = self._types.get(name)
        if value is not None and datatype is not None:
            self._add(name, 1, pack_numbers(datatype, (value,)))

    def seed(self, name: str, value: int | None) -> None:
        """One seed; a value outside the type is folded into it, the same one always to the same."""
        datatype = self._types.get(name)
        if value is not None and datatype is not None:
            bits = 32 if datatype in (DataType.INT32, DataType.UINT32) else 64
            folded = value % (1 << bits)
            if datatype in _SIGNED_64 and folded >> (bits - 1):
                folded -= 1 << bits
            self._add(name, 1, pack_numbers(datatype, (folded,)))

    def _add(self, name: str, count: int, raw: bytes) -> None:
        self.tensors.append(InputTensor(name, self._types[name], (*self._leading, count), raw))


def declared_types(info: ModelInfo, kinds: Mapping[str, frozenset[DataType]]) -> dict[str, DataType]:
    """The types of those inputs that we may write and the model has.

    Args:
        kinds: by the input's name, the types that fit what we write.

    Raises:
        UnknownInterface: one of them is of another kind than expected.
    """
    types: dict[str, DataType] = {}
    for name, fitting in kinds.items():
        tensor = info.inputs.get(name)
        if tensor is None:
            continue
        if tensor.datatype not in fitting:
            wanted = " or ".join(sorted(fitting))
            raise UnknownInterface(
                f"The model {info.name} declares its input {name} as {tensor.datatype}; {wanted} is needed."
            )
        types[name] = DataType(tensor.datatype)
    return types


def require(info: ModelInfo, looks_like: str, *, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Check that a model can stream and has the tensors without which nothing works.

    Raises:
        UnknownInterface: names what is missing.
    """
    lacking = [f"input {name}" for name in inputs if name not in info.inputs]
    lacking += [f"output {name}" for name in outputs if name not in info.outputs]
    if lacking:
        raise UnknownInterface(f"The model {info.name} looks like {looks_like}, but has no {', no '.join(lacking)}.")
    if not info.decoupled:
        raise UnknownInterface(
            f"The model {info.name} looks like {looks_like}, but is not decoupled and so can't stream. Set decoupled "
            "in its transaction policy and load it again."
        )


def refuse_other_required(info: ModelInfo, writable: Iterable[str]) -> None:
    """Check that no input is demanded that we never write.

    Raises:
        UnknownInterface: names those inputs.
    """
    known = frozenset(writable)
    others = sorted(name for name, tensor in info.inputs.items() if not tensor.optional and name not in known)
    if others:
        raise UnknownInterface(
            f"The model {info.name} demands the inputs {', '.join(others)}, which an OpenAI request doesn't give. Make "
            "them optional in its configuration."
        )
