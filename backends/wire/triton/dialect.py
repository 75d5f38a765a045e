"""The seam between one Triton interface and the rest: how a request is put, how responses are read.

Floor: wire (pure).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from backends.wire.sampling import GenerationDefaults, Piece, Sampling
from backends.wire.triton.tensors import InputTensor, OutputTensor


class UnknownInterface(Exception):
    """A model does not speak any interface we know. The message is a sentence for the operator."""


class Reader(Protocol):
    """Reads the responses of one request, in order."""

    def read(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        """What is new in a response; may be nothing.

        Raises:
            BackendFailure: the response is not what the interface promises, or the engine gave up.
        """

    def finish(self) -> list[Piece]:
        """The stream has ended cleanly (``triton_final_response``): the finish reasons that follow from the counts."""


class Dialect(Protocol):
    """One interface of one model. Holds no state of a request."""

    @property
    def name(self) -> str:
        """The interface: ``trtllm-ensemble``, ``trtllm-llmapi`` or ``vllm``."""

    @property
    def reports_tokens(self) -> bool:
        """Whether responses count their tokens; else they must be counted from the text."""

    def follow(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """What of its makers' recommendations the model has a place for; to be asked once, before `read_sampling`.

        Without it, a request would be refused for what its caller never asked.
        """

    def check(self, sampling: Sampling) -> None:
        """Refuse what the model cannot honour.

        Raises:
            Unsupported: names the field of the request.
        """

    def encode(self, prompt: str, sampling: Sampling, *, stream: bool) -> list[InputTensor]:
        """The tensors of a checked request.

        Raises:
            Unsupported: as ``check``.
        """

    def reader(self, sampling: Sampling) -> Reader:
        """A reader for the responses to one request."""
