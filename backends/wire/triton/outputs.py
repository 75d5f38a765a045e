"""Read single values out of a response.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.triton.tensors import OutputTensor, read_bytes, read_numbers

MOST_TOKENS = 1 << 31
"""No response holds as many; a difference that went below zero looks like more."""


def one_text(outputs: Mapping[str, OutputTensor], name: str) -> bytes | None:
    """The only element of a BYTES tensor; ``None`` if the tensor is absent or empty.

    Raises:
        BackendFailure: there are several.
    """
    tensor = outputs.get(name)
    if tensor is None:
        return None
    texts = read_bytes(tensor)
    if len(texts) > 1:
        raise malformed()
    return texts[0] if texts else None


def new_text(outputs: Mapping[str, OutputTensor]) -> bytes | None:
    """The text of a response to one prompt; ``None`` if the response is only an end without any tensor.

    Raises:
        BackendFailure: there are tensors, but no text, or several.
    """
    if not outputs:
        return None
    if "text_output" not in outputs:
        raise malformed()
    return one_text(outputs, "text_output") or b""


def one_count(outputs: Mapping[str, OutputTensor], name: str) -> int | None:
    """The only element of a tensor of whole numbers, not negative; ``None`` if the tensor is absent or empty.

    Raises:
        BackendFailure: there are several, or it is no count.
    """
    tensor = outputs.get(name)
    if tensor is None:
        return None
    numbers = read_numbers(tensor)
    if not numbers:
        return None
    count = numbers[0]
    if len(numbers) > 1 or not isinstance(count, int) or not 0 <= count < MOST_TOKENS:
        raise malformed()
    return count


def malformed() -> BackendFailure:
    """The response is not what the interface promises."""
    return BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
