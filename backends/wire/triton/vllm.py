"""vLLM's Triton backend: sampling parameters as one JSON text, deltas with their counts and a finish reason.

Floor: wire (pure).
Source: triton-inference-server/vllm_backend, src/model.py and src/utils, from release 24.10 on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from backends.wire.failure import Unsupported
from backends.wire.finish_reason import finish_reason
from backends.wire.sampling import GenerationDefaults, Guide, GuideKind, Piece, Sampling
from backends.wire.triton.dialect import Reader
from backends.wire.triton.inputs import FLAGS, TEXTS, InputWriter, declared_types, refuse_other_required, require
from backends.wire.triton.metadata import ModelInfo
from backends.wire.triton.outputs import Repeats, malformed, new_text, one_count, one_text
from backends.wire.triton.refusals import NUMBERS, check_logprobs
from backends.wire.triton.tensors import DataType, InputTensor, OutputTensor

REQUIRED_INPUTS = (
    "text_input",
    "stream",
    "sampling_parameters",
    "exclude_input_in_output",
    "return_finish_reason",
    "return_num_output_tokens",
)
REQUIRED_OUTPUTS = ("text_output", "finish_reason", "num_output_tokens")

_KINDS: dict[str, frozenset[DataType]] = {
    **dict.fromkeys(("text_input", "sampling_parameters"), TEXTS),
    **dict.fromkeys(("stream", "exclude_input_in_output", "return_finish_reason", "return_logprobs"), FLAGS),
    **dict.fromkeys(("return_num_input_tokens", "return_num_output_tokens"), FLAGS),
}


class VllmDialect:
    """One model of vLLM's backend."""

    name = "vllm"
    reports_tokens = True

    def __init__(self, info: ModelInfo) -> None:
        """Raises: UnknownInterface: something is missing."""
        require(info, "vLLM's backend of release 24.10 or newer", inputs=REQUIRED_INPUTS, outputs=REQUIRED_OUTPUTS)
        refuse_other_required(info, _KINDS)
        self._types = declared_types(info, _KINDS)
        self._batches = info.max_batch_size > 0
        self._counts_prompt = "return_num_input_tokens" in self._types and "num_input_tokens" in info.outputs
        self._has_logprobs = "return_logprobs" in self._types and "logprobs" in info.outputs

    def follow(self, defaults: GenerationDefaults) -> GenerationDefaults:
        """All of the recommendations."""
        return defaults

    def check(self, sampling: Sampling) -> None:
        """Refuse what does not come back whole.

        Raises:
            Unsupported: names the field of the request.
        """
        check_logprobs(sampling, has_chosen=self._has_logprobs)
        if sampling.completions > 1:
            # vLLM's engine hands out one choice at a time; the backend drops its index and mixes the choices up.
            raise Unsupported("n", "must be 1 with this model")

    def encode(self, prompt: str, sampling: Sampling, *, stream: bool) -> list[InputTensor]:
        """The tensors of a request. Raises: Unsupported: as ``check``."""
        self.check(sampling)
        write = InputWriter(self._types, batches=self._batches)
        write.texts("text_input", [prompt])  # BYTES [1]
        write.number("stream", stream)
        write.texts("sampling_parameters", [orjson.dumps(_parameters(sampling)).decode()])
        # A stream that doesn't exclude it is an error; an answer that doesn't begins with its prompt.
        write.number("exclude_input_in_output", True)
        write.number("return_finish_reason", True)
        write.number("return_num_input_tokens", self._counts_prompt or None)
        write.number("return_num_output_tokens", True)
        write.number("return_logprobs", sampling.logprobs or None)
        return write.tensors

    def reader(self, sampling: Sampling) -> Reader:
        """A reader for the responses to one request."""
        return VllmReader(counts_prompt=self._counts_prompt, wants_logprobs=sampling.logprobs)


class VllmReader:
    """Reads deltas of one choice, until a finish reason comes."""

    __slots__ = ("_counts_prompt", "_has_finished", "_repeats", "_tokens", "_wants_logprobs")

    def __init__(self, *, counts_prompt: bool, wants_logprobs: bool) -> None:
        self._counts_prompt = counts_prompt
        self._wants_logprobs = wants_logprobs
        self._has_finished = False
        self._repeats = Repeats("finish_reason", "num_output_tokens")
        self._tokens: int | None = None  # of the last response

    def read(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        """What is new in a response. Raises: BackendFailure: it is malformed, or the engine gave up."""
        text = self._repeats.text(outputs)
        if text is not None and not self._has_finished:
            return [Piece(0, text, self._tokens)]
        return self._read_all(outputs)

    def _read_all(self, outputs: Mapping[str, OutputTensor]) -> list[Piece]:
        text = new_text(outputs)  # BYTES [1]
        if text is None or self._has_finished:
            return []
        word = (one_text(outputs, "finish_reason") or b"None").decode("ascii", "replace")  # BYTES [1]
        finish = None if word == "None" else finish_reason(word)
        self._has_finished = finish is not None
        prompt_tokens = one_count(outputs, "num_input_tokens") if self._counts_prompt else None  # UINT32 [1] or []
        self._counts_prompt = self._counts_prompt and prompt_tokens is None  # every response repeats it
        tokens = one_count(outputs, "num_output_tokens")  # UINT32 [1], those of this response
        logprobs = _chosen(one_text(outputs, "logprobs")) if self._wants_logprobs else None
        if finish is None and not self._counts_prompt and not self._wants_logprobs:
            self._tokens = tokens
            self._repeats.note(outputs)
        return [Piece(text=text, tokens=tokens, prompt_tokens=prompt_tokens, finish=finish, logprobs=logprobs)]

    def finish(self) -> list[Piece]:
        """Nothing: the interface says itself how an answer ended."""
        return []


def _parameters(sampling: Sampling) -> dict[str, Any]:
    parameters: dict[str, Any] = {"max_tokens": sampling.max_tokens}
    parameters |= {field: value for field in NUMBERS if (value := getattr(sampling, field)) is not None}
    if sampling.seed is not None and sampling.seed < 0:
        parameters["seed"] = sampling.seed % (1 << 63)  # -1 would mean none
    if sampling.stop:
        parameters["stop"] = list(sampling.stop)
    if sampling.logprobs:
        parameters["logprobs"] = 0
    if sampling.guide is not None:
        # A text inside the JSON: older releases take nothing else, newer ones take both.
        parameters["guided_decoding"] = orjson.dumps(_guided(sampling.guide)).decode()
    return parameters


def _guided(guide: Guide) -> dict[str, Any]:
    return {"json_object": True} if guide.kind is GuideKind.JSON else {"json": orjson.loads(guide.text)}


def _chosen(raw: bytes | None) -> tuple[float, ...] | None:
    """The log probability of each chosen token: for every position a JSON object by token id, the chosen one first."""
    if raw is None or raw == b"null":
        return None
    try:
        positions = json.loads(raw)  # Python wrote it: minus infinity stands there as no JSON has it
        return tuple([float(next(iter(position.values()))["logprob"]) for position in positions])
    except (AttributeError, KeyError, RecursionError, StopIteration, TypeError, ValueError):
        raise malformed() from None
