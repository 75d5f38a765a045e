"""What all our decoupled models share: requests in, streams scheduled, books kept.

An interface gives two things: how a request is read, and how responses are written.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.simulator.options import BadOption
from backends.simulator.tokens import count_tokens
from backends.simulator.vocabulary import PLAIN, corpus
from backends.triton_server.books import Books
from backends.triton_server.gauges import Gauges
from backends.triton_server.generation import USUAL_MODEL, Ask, decide
from backends.triton_server.scheduler import Scheduler
from backends.triton_server.steering import Steering, take_marker
from backends.triton_server.stream import Form, TokenStream, send_error

DEFAULT_TTFT_MS, DEFAULT_ITL_MS = 50.0, 10.0
_CLOSE_S = 5.0


class Inputs:
    """The input tensors of one request, by name."""

    def __init__(self, request: Any) -> None:
        self._arrays = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def number(self, name: str) -> Any:
        """The single element of a tensor, or `None` if it was left out.

        Raises:
            ValueError: it has another count of elements.
        """
        array = self._arrays.get(name)
        if array is None:
            return None
        if array.size != 1:
            raise ValueError(f"{name} must have one element, and it has the shape {list(array.shape)}.")
        return array.item()

    def text(self, name: str) -> str | None:
        """The single text of a tensor, or `None`."""
        value = self.number(name)
        return None if value is None else bytes(value).decode()

    def texts(self, name: str) -> tuple[str, ...]:
        """All texts of a tensor, without empty ones."""
        array = self._arrays.get(name)
        return () if array is None else tuple(bytes(item).decode() for item in array.reshape(-1) if item)

    def flag(self, name: str, default: bool = False) -> bool:
        """The single boolean of a tensor."""
        value = self.number(name)
        return default if value is None else bool(value)

    def as_json(self) -> dict[str, Any]:
        """What came, for `inspect`."""
        return {name: {"shape": list(array.shape), "data": _plain(array)} for name, array in self._arrays.items()}


def _plain(array: Any) -> list[Any]:
    if array.dtype == np.object_:
        return [bytes(item).decode("utf-8", "backslashreplace") for item in array.reshape(-1)]
    values: list[Any] = array.reshape(-1).tolist()
    return values


class StreamingModel(ABC):
    """A `TritonPythonModel` that streams. `gauges` is the style of its load metrics, if it shows any."""

    gauges: str | None = None

    @abstractmethod
    def read(self, inputs: Inputs) -> Ask:
        """What a request asks for.

        Raises:
            ValueError: with a sentence, for the client.
        """

    @abstractmethod
    def form(self, inputs: Inputs, ask: Ask, steering: Steering, prompt: str, names: frozenset[str]) -> Form:
        """How its responses are written.

        Args:
            prompt: without the marker.
            names: the outputs it asks for.
        """

    def initialize(self, args: dict[str, str]) -> None:
        """Called by Triton once."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        self._nonce = 0
        self._answers_as = parameters.get("answers_as", USUAL_MODEL)
        self._ttft_ms = float(parameters.get("ttft_ms", DEFAULT_TTFT_MS))
        self._itl_ms = float(parameters.get("itl_ms", DEFAULT_ITL_MS))
        self.books = Books(args["model_name"])
        self.books.serve()
        max_active = int(parameters.get("max_active", 0))
        self._gauges: Gauges | None = None
        if self.gauges is not None:
            self._gauges = Gauges(self.gauges, args["model_name"], max_active=max_active)
        self._scheduler = Scheduler(
            max_active=max_active,
            max_waiting=int(parameters.get("max_waiting", 0)),
            changed=self._load_changed,
        )
        corpus(PLAIN)  # the first request shall not wait for it

    def execute(self, requests: list[Any]) -> None:
        """Called by Triton for new requests; the answers come from the scheduler's thread."""
        for request in requests:
            self._accept(request)

    def finalize(self) -> None:
        """Called by Triton before the process ends."""
        self._scheduler.close(_CLOSE_S)

    def _accept(self, request: Any) -> None:
        sender = request.get_response_sender()
        try:
            inputs = Inputs(request)
            ask = self.read(inputs)
            prompt, steering = take_marker(ask.prompt)
            self._nonce += 1
            choices = decide(ask, prompt, steering, nonce=self._nonce, model=self._answers_as)
            form = self.form(inputs, ask, steering, prompt, frozenset(request.requested_output_names()))
        except (BadOption, ValueError, UnicodeDecodeError) as error:
            send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
            return
        record = {
            "tag": steering.tag,
            "id": request.request_id(),
            "state": "running",
            "tokens": 0,
            "responses": 0,
            "prompt": prompt,
            "prompt_tokens": count_tokens(prompt),
            "inputs": inputs.as_json(),
        }
        stream = TokenStream(
            sender,
            form,
            choices,
            steering,
            self.books,
            record,
            stream=ask.stream,
            ttft_s=(self._ttft_ms if steering.ttft_ms is None else steering.ttft_ms) / 1000,
            itl_s=(self._itl_ms if steering.itl_ms is None else steering.itl_ms) / 1000,
        )
        if self._scheduler.add(stream):
            self.books.count("started")
            self.books.remember(record)
        else:
            send_error(sender, "Exceeds maximum queue size", pb_utils.TritonError.UNAVAILABLE)

    def _load_changed(self, active: int, waiting: int) -> None:
        self.books.set("waiting", waiting)
        if self._gauges is not None:
            self._gauges.set(active, waiting)
