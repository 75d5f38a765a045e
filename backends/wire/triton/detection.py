"""Which interface a model speaks, told from its tensors.

Floor: wire (pure).
"""

from __future__ import annotations

from backends.wire.triton.dialect import Dialect, UnknownInterface
from backends.wire.triton.metadata import ModelInfo


def detect(info: ModelInfo) -> Dialect:
    """The interface of a model.

    Raises:
        UnknownInterface: with a sentence for the operator that names what is missing.
    """
    raise UnknownInterface(f"The model {info.name} speaks no interface that is known here.")
