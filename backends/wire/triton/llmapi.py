"""TensorRT-LLM's ``llmapi`` model: ``sampling_param_*`` tensors, a finish reason, no counts.

Floor: wire (pure).
Source: TensorRT-LLM, triton_backend/all_models/llmapi. In the version read each response of a stream holds all the text
so far; as that reads like an oversight, the reader finds out what it gets.
"""

from __future__ import annotations

from collections.abc import Mapping

from backends.wire.failure import BackendFailure, FailureCode, Phase, Unsupported
from backends.wire.finish_reason import finish_reason
from backends.wire.sampling import GenerationDefaults, Piece, Sampling
from backends.wire.triton.dialect import Reader
from backends.wire.triton.draw import spelled_out
from backends.wire.triton.growth import Growth
from backends.wire.triton.inputs import (
    FLAGS,
    REAL_NUMBERS,
    TEXTS,
    WHOLE_NUMBERS,
    InputWriter,
    declared_types,
    refuse_other_required,
    require,
)
from backends.wire.triton.metadata import ModelInfo
from backends.wire.triton.outputs import Repeats, new_text, one_text
from backends.wire.triton.refusals import NUMBERS, check_logprobs, check_numbers, followed
from backends.wire.triton.tensors import DataType, InputTensor, OutputTensor

PREFIX = "sampling_param_"
REQUIRED_INPUTS = (
    "text_input",
    "streaming",
    "return_finish_reason",
    *(PREFIX + field for field in ("max_tokens", "temperature", "top_k", "top_p")),
)

_WHOLE = ("top_k", "seed", "min_tokens")
_KINDS: dict[str, frozenset[DataType]] = {
    **dict.fromkeys(("text_input", PREFIX + "stop"), TEXTS),
    **dict.fromkeys(("streaming", "return_finish_reason", PREFIX + "exclude_input_from_output"), FLAGS),
    PREFIX + "max_tokens": WHOLE_NUMBERS,
    **{PREFIX + field: WHOLE_NUMBERS if field in _WHOLE else REAL_NUMBERS for field in NUMBERS},
}


class LlmApiDialect:
    """One model that speaks like the LLM API's."""

    name = "trtllm-llmapi"
    reports_tokens = False

    def __init__(self, info: ModelInfo) -> None:
        """Raises: UnknownInterface: something is missing."""
        require(info, "TensorRT-LLM's LLM API", inputs=REQUIRED_INPUTS, outputs=("text_output", "finish_reason"))
        refuse_other_required(info, _KINDS)
        self._types = declared_types(info, _KINDS)
        self._batches = info.max_batch_size > 0
        self._honoured = frozenset(field for field in NUMBERS if PREFIX + field in self._types)

    def follow(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """What of the recommendations there are tensors for."""
        return followed(defaults, self._honoured)

    def check(self, sampling: Sampling) -> None:
        """Refuse what there are no tensors for.

        Raises:
            Unsupported: names the field of the request.
        """
        check_numbers(sampling, self._honoured)
        check_logprobs(sampling, has_chosen=False)
        if sampling.completions > 1:
            raise Unsupported("n", "must be 1 with this model")
        if sampling.guide is not None:
            raise Unsupported("response_format", "must be text with this model, which has no guided decoding")

    def encode(self, prompt: str, sampling: Sampling, *, stream: bool) -> list[InputTensor]:
        """The tensors of a request. Raises: Unsupported: as ``check``."""
        self.check(sampling)
        drawn = spelled_out(sampling)
        write = InputWriter(self._types, batches=self._batches)
        write.texts("text_input", [prompt])  # BYTES [1]
        write.number("streaming", stream)
        write.number("return_finish_reason", True)
        write.number(PREFIX + "max_tokens", sampling.max_tokens)
        write.number(PREFIX + "exclude_input_from_output", True)
        for field in NUMBERS:
            if field == "seed":
                write.seed(PREFIX + field, sampling.seed)
            else:
                write.number(PREFIX + field, getattr(drawn, field))
        if sampling.stop:
            write.texts(PREFIX + "stop", sampling.stop)  # BYTES [n]
        return write.tensors

    def reader(self, sampling: Sampling) -> Reader:
        """A reader for the responses to one request."""
        return LlmApiReader()


class LlmApiReader:
    """Reads texts that may be all there is so far, until a finish reason comes."""

    __slots__ = ("_growth", "_has_finished", "_repeats")

    def __init__(self) -> None:
        self._growth = Growth(is_whole=None)
        self._has_finished = False
        self._repeats = Repeats("finish_reason")

    def read(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        """What is new in a response. Raises: BackendFailure: it is malformed, or the engine gave up."""
        text = self._repeats.text(outputs)
        if text is not None and not self._has_finished:
            new = self._growth.add(text)
            return [Piece(0, new)] if new else []
        return self._read_all(outputs)

    def _read_all(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        text = new_text(outputs)  # BYTES [1]
        if text is None or self._has_finished:
            return []
        new = self._growth.add(text)
        finish = _public_reason(one_text(outputs, "finish_reason"))  # BYTES [1], "None" until the end
        if finish is not None:
            self._has_finished = True
            new += self._growth.rest()
        else:
            self._repeats.note(outputs)
        return [Piece(text=new, finish=finish)] if new or finish else []

    def finish(self) -> list[Piece]:
        """Nothing: the interface says itself how an answer ended."""
        return []


def _public_reason(said: bytes | None) -> str | None:
    word = (said or b"None").decode("ascii", "replace")
    if word == "None":
        return None
    if word == "timeout":
        raise BackendFailure(FailureCode.TIMEOUT, Phase.BODY)
    return finish_reason(word)
