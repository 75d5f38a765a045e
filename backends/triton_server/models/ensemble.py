"""TensorRT-LLM's `ensemble`: tensors with a batch dimension, and no word of why an answer ended.

Serves the older names too (`random_seed`, `min_length`). As there, stop words stay in the text, a response carries the
tokens that are new in it, and a cancelled request ends without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.simulator.tokens import count_tokens
from backends.triton_server.generation import LOGPROB, Ask, read_schema
from backends.triton_server.model import Inputs, StreamingModel
from backends.triton_server.steering import Fault, Steering
from backends.triton_server.stream import Change


class TritonPythonModel(StreamingModel):
    """Named as Triton wants it."""

    gauges = "trtllm"

    def read(self, inputs: Inputs) -> Ask:
        """See the base class."""
        kind = inputs.text("guided_decoding_guide_type")
        if kind not in (None, "json", "json_schema"):
            raise ValueError(f"The guide type {kind} is not served here.")
        beams = inputs.number("beam_width")
        if beams not in (None, 1):
            raise ValueError("Beams are not streamed.")
        seed = inputs.number("seed")
        return Ask(
            prompt=inputs.text("text_input") or "",
            max_tokens=max(1, inputs.number("max_tokens")),
            stream=inputs.flag("stream"),
            seed=inputs.number("random_seed") if seed is None else seed,
            repeatable=inputs.number("top_k") == 1 or inputs.number("temperature") == 0,
            min_tokens=inputs.number("min_tokens") or inputs.number("min_length") or 0,
            completions=inputs.number("num_return_sequences") or 1,
            stop=inputs.texts("stop_words"),
            schema=None if kind is None else read_schema(inputs.text("guided_decoding_guide") or ""),
            logprobs=inputs.flag("return_log_probs"),
        )

    def form(self, inputs: Inputs, ask: Ask, steering: Steering, prompt: str, names: frozenset[str]) -> EnsembleForm:
        """See the base class."""
        excluded = inputs.flag("exclude_input_in_output", default="num_output_tokens" not in names)
        return EnsembleForm(
            names,
            steering,
            echo=b"" if excluded or not ask.stream else prompt.encode(),
            prompt_tokens=count_tokens(prompt) if inputs.flag("return_num_input_tokens") else None,
            counts=inputs.flag("return_num_output_tokens"),
            logprobs=ask.logprobs,
        )


class EnsembleForm:
    """A response for each sequence and step."""

    final_apart = False

    def __init__(
        self,
        names: frozenset[str],
        steering: Steering,
        *,
        echo: bytes,
        prompt_tokens: int | None,
        counts: bool,
        logprobs: bool,
    ) -> None:
        self._names = names
        self._steering = steering
        self._echo = echo
        self._logprobs = logprobs
        self._counts = counts
        self._constant = []
        if prompt_tokens is not None and "num_input_tokens" in names:
            # num_input_tokens: INT32 [1, 1]
            self._constant.append(pb_utils.Tensor("num_input_tokens", np.array([[prompt_tokens]], np.int32)))
        if "batch_index" in names:
            self._constant.append(pb_utils.Tensor("batch_index", np.zeros((1, 1), np.int32)))

    def responses(self, changes: Sequence[Change]) -> list[list[Any]]:
        """See `Form`."""
        responses = [self._response(change) for change in changes]
        self._echo = b""
        return responses

    def cancelled(self) -> str | None:
        """See `Form`."""
        return None

    def _response(self, change: Change) -> list[Any]:
        tensors = [*self._constant]
        if self._steering.fail is not Fault.NO_TEXT:
            # text_output: BYTES [1, 1]
            tensors.append(pb_utils.Tensor("text_output", np.array([[self._echo + change.new]], np.object_)))
        if "sequence_index" in self._names:
            tensors.append(pb_utils.Tensor("sequence_index", np.array([[change.choice]], np.int32)))
        if self._counts and "num_output_tokens" in self._names:
            said = self._steering.reported_tokens
            count = change.tokens if said is None else said
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array([[count]], np.int32)))
        if self._logprobs and "output_log_probs" in self._names:
            # cum_log_probs: FP32 [1, 1]; output_log_probs: FP32 [1, 1, new tokens]
            tensors.append(pb_utils.Tensor("cum_log_probs", np.array([[LOGPROB * change.total]], np.float32)))
            tensors.append(pb_utils.Tensor("output_log_probs", np.full((1, 1, change.tokens), LOGPROB, np.float32)))
        return tensors
