"""vLLM's Triton backend: one dimension, sampling parameters as JSON, text that is new, counts where asked for.

As there, streaming with the input in the output is refused, `finish_reason` says "None" until it is known, several
choices are the elements of each tensor, and a cancelled request ends with an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.simulator.tokens import count_tokens
from backends.triton_server.generation import LOGPROB, Ask, read_schema
from backends.triton_server.model import Inputs, StreamingModel
from backends.triton_server.steering import Fault, Steering
from backends.triton_server.stream import Change

_DEFAULT_MAX_TOKENS = 16
_FLAGS = ("return_finish_reason", "return_logprobs", "return_num_input_tokens", "return_num_output_tokens")


class TritonPythonModel(StreamingModel):
    """Named as Triton wants it."""

    gauges = "vllm"

    def read(self, inputs: Inputs) -> Ask:
        """See the base class."""
        said = json.loads(inputs.text("sampling_parameters") or "{}")
        stream = inputs.flag("stream")
        if stream and not inputs.flag("exclude_input_in_output", default=True):
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        stop = said.get("stop") or ()
        return Ask(
            prompt=inputs.text("text_input") or "",
            max_tokens=max(1, int(said.get("max_tokens") or _DEFAULT_MAX_TOKENS)),
            stream=stream,
            seed=said.get("seed"),
            repeatable=said.get("temperature") == 0,
            min_tokens=int(said.get("min_tokens") or 0),
            completions=int(said.get("n") or 1),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            cuts_stop=True,
            schema=_schema(said),
            echo=not stream and not inputs.flag("exclude_input_in_output"),
            logprobs=said.get("logprobs") is not None,
        )

    def form(self, inputs: Inputs, ask: Ask, steering: Steering, prompt: str, names: frozenset[str]) -> VllmForm:
        """See the base class."""
        return VllmForm(
            steering,
            frozenset(flag for flag in _FLAGS if inputs.flag(flag)),
            echo=prompt.encode() if ask.echo else b"",
            prompt_tokens=count_tokens(prompt),
            logprobs=ask.logprobs,
        )


def _schema(said: dict[str, Any]) -> dict[str, Any] | None:
    guide = said.get("guided_decoding") or said.get("structured_outputs")
    if isinstance(guide, str):
        guide = json.loads(guide)
    if not guide:
        return None
    schema = guide.get("json")
    if schema is None:
        if guide.get("json_object"):
            return {}
        raise ValueError("The guide is not served here.")
    return read_schema(schema if isinstance(schema, str) else json.dumps(schema))


class VllmForm:
    """A response for each step."""

    final_apart = False

    def __init__(
        self, steering: Steering, flags: frozenset[str], *, echo: bytes, prompt_tokens: int, logprobs: bool
    ) -> None:
        self._steering = steering
        self._flags = flags
        self._echo = echo
        self._prompt_tokens = prompt_tokens
        self._logprobs = logprobs

    def responses(self, changes: Sequence[Change]) -> list[list[Any]]:
        """See `Form`."""
        tensors = []
        if self._steering.fail is not Fault.NO_TEXT:
            # text_output: BYTES [choices]
            tensors.append(_texts("text_output", [self._echo + change.new for change in changes]))
        self._echo = b""
        if "return_finish_reason" in self._flags:
            tensors.append(_texts("finish_reason", [str(change.finish).encode() for change in changes]))
        if "return_logprobs" in self._flags:
            tensors.append(_texts("logprobs", [self._logprobs_of(change) for change in changes]))
        if "return_num_input_tokens" in self._flags:
            tensors.append(pb_utils.Tensor("num_input_tokens", np.array(self._prompt_tokens, np.uint32)))
        if "return_num_output_tokens" in self._flags:
            said = self._steering.reported_tokens
            counts = [change.tokens if said is None else said for change in changes]
            tensors.append(pb_utils.Tensor("num_output_tokens", np.array(counts, np.uint32)))
        return [tensors]

    def cancelled(self) -> str | None:
        """See `Form`."""
        return "Request was cancelled"

    def _logprobs_of(self, change: Change) -> bytes:
        if not self._logprobs:
            return b"null"
        shown = [change.new.decode("utf-8", "replace"), *[""] * (change.tokens - 1)][: change.tokens]
        items = [{str(rank): {"logprob": LOGPROB, "rank": 1, "decoded_token": t}} for rank, t in enumerate(shown, 1)]
        return json.dumps(items).encode()


def _texts(name: str, items: Sequence[bytes]) -> Any:
    return pb_utils.Tensor(name, np.array(items, np.object_))
