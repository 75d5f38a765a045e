"""TensorRT-LLM's LLM API model: one dimension, text that repeats itself from the start, a finish reason, no counts.

As there, `finish_reason` and `stop_reason` say "None" until they are known, the cumulated log probability is not
computed, and a cancelled request ends with an error. With `cumulative: false` a response has only what is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.triton_server.generation import Ask
from backends.triton_server.model import Inputs, StreamingModel
from backends.triton_server.steering import Fault, Steering
from backends.triton_server.stream import Change

_DEFAULT_MAX_TOKENS = 32


class TritonPythonModel(StreamingModel):
    """Named as Triton wants it."""

    def read(self, inputs: Inputs) -> Ask:
        """See the base class."""
        if inputs.number("sampling_param_best_of") not in (None, 1):
            raise ValueError("One answer at a time is served here.")
        return Ask(
            prompt=inputs.text("text_input") or "",
            max_tokens=max(1, inputs.number("sampling_param_max_tokens") or _DEFAULT_MAX_TOKENS),
            stream=inputs.flag("streaming"),
            seed=inputs.number("sampling_param_seed"),
            repeatable=inputs.number("sampling_param_top_k") == 1 or inputs.number("sampling_param_temperature") == 0,
            stop=inputs.texts("sampling_param_stop"),
            cuts_stop=True,
        )

    def form(self, inputs: Inputs, ask: Ask, steering: Steering, prompt: str, names: frozenset[str]) -> LlmApiForm:
        """See the base class."""
        return LlmApiForm(
            steering,
            finish=inputs.flag("return_finish_reason"),
            stop=inputs.flag("return_stop_reason"),
            logprob=inputs.flag("return_cumulative_logprob"),
        )


class LlmApiForm:
    """A response for each step."""

    final_apart = False

    def __init__(self, steering: Steering, *, finish: bool, stop: bool, logprob: bool) -> None:
        self._steering = steering
        self._finish = finish
        self._stop = stop
        self._logprob = logprob

    def responses(self, changes: Sequence[Change]) -> list[list[Any]]:
        """See `Form`."""
        tensors = []
        if self._steering.fail is not Fault.NO_TEXT:
            texts = [change.text if self._steering.cumulative else change.new for change in changes]
            tensors.append(_texts("text_output", texts))
        if self._finish:
            tensors.append(_texts("finish_reason", [str(change.finish).encode() for change in changes]))
        if self._stop:
            tensors.append(_texts("stop_reason", [str(change.stop).encode() for change in changes]))
        if self._logprob:
            tensors.append(pb_utils.Tensor("cumulative_logprob", np.full(len(changes), np.nan, np.float32)))
        return [tensors]

    def cancelled(self) -> str | None:
        """See `Form`."""
        return "Request cancelled by client"


def _texts(name: str, items: Sequence[bytes]) -> Any:
    # BYTES [choices]
    return pb_utils.Tensor(name, np.array(items, np.object_))
