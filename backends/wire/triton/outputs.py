"""The tensors of a response, and single values out of them.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.triton.tensors import DataType, OutputTensor, read_bytes, read_numbers

Place = tuple[int, DataType, tuple[int, ...]]
"""Which of the contents is a tensor's, its type and its shape."""

MOST_TOKENS = 1 << 31
"""No response holds as many; a difference that went below zero looks like more."""


class Outputs(Mapping[str, OutputTensor]):
    """The tensors of a response, each made when it is asked for: most are of no interest, and there are thousands of
    responses a second.

    Attributes:
        places: of each tensor; the same object for responses whose tensors have the same names, types and shapes.
        contents: the raw bytes of each tensor.
    """

    __slots__ = ("contents", "places")

    def __init__(self, places: dict[str, Place], contents: list[bytes]) -> None:
        self.places = places
        self.contents = contents

    def __getitem__(self, name: str) -> OutputTensor:
        place, datatype, shape = self.places[name]
        return OutputTensor(datatype, shape, self.contents[place])

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping, without an exception for what is absent."""
        found = self.places.get(name)
        if found is None:
            return default
        return OutputTensor(found[1], found[2], self.contents[found[0]])

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Repeats:
    """Knows a response that says nothing new but its text, so that its other tensors need not be read again.

    Args:
        names: the tensors that must be as they were; others are of no interest.
    """

    __slots__ = ("_at", "_names", "_places", "_said", "_text_at")

    def __init__(self, *names: str) -> None:
        self._names = names
        self._places: dict[str, Place] | None = None
        self._at: list[int] = []
        self._said: list[bytes] = []
        self._text_at = 0

    def text(self, outputs: Mapping[str, OutputTensor]) -> bytes | None:
        """The text of such a response; ``None`` if it has to be read as a whole."""
        if type(outputs) is not Outputs or outputs.places is not self._places:
            return None
        contents = outputs.contents
        if [contents[at] for at in self._at] != self._said:
            return None
        raw = contents[self._text_at]
        if len(raw) < 4 or int.from_bytes(raw[:4], "little") != len(raw) - 4:
            return None
        return raw[4:]

    def note(self, outputs: Mapping[str, OutputTensor]) -> None:
        """This response was read as a whole, and was good: others may be like it."""
        if type(outputs) is not Outputs:
            return
        text = outputs.get("text_output")
        if text is None or len(read_bytes(text)) != 1:
            self._places = None
            return
        self._places = places = outputs.places
        self._text_at = places["text_output"][0]
        self._at = [places[name][0] for name in self._names if name in places]
        self._said = [outputs.contents[at] for at in self._at]


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
