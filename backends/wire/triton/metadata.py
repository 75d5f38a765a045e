"""What a Triton server says of a model: its tensors and how it answers.

Floor: wire (pure). The edge fills these from ModelMetadata and ModelConfig.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output.

    Attributes:
        datatype: as the metadata names it ("BYTES", "INT32", …), a word we may not know.
        shape: as in the model's configuration, without the batch dimension; -1 stands for any size.
        optional: whether a request may leave it out; from the configuration, the metadata doesn't say.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """One model.

    Attributes:
        decoupled: whether it may answer a request more than once; a stream needs it.
        max_batch_size: above 0, each tensor has one more dimension in front.
        parameters: of its configuration, as text.
    """

    name: str
    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    decoupled: bool
    max_batch_size: int = 0
    parameters: Mapping[str, str] = field(default_factory=dict)
