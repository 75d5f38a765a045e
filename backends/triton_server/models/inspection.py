"""`inspect`: tells a test what the other models did. Answers one JSON text for the requests of a tag, or for all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.triton_server.books import STATE_FOLDER, read_all


class TritonPythonModel:
    """Named as Triton wants it."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """Called by Triton."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        tag = pb_utils.get_input_tensor_by_name(request, "tag")
        wanted = "" if tag is None else bytes(tag.as_numpy()[0]).decode()
        report = json.dumps(read_all(Path(os.environ[STATE_FOLDER]), wanted))
        return pb_utils.InferenceResponse([pb_utils.Tensor("report", np.array([report], np.object_))])
