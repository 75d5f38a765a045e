"""How busy a model is, on Triton's own metrics page, under the names that its real counterpart uses there.

Setting a gauge is a message to another process, so a thread of its own does it, at most ten times a second.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

_PAUSE_S = 0.1
_ROOM = 256
"""Streams that would fill the KV cache, where the model has no bound."""


class Gauges:
    """The load gauges of one model.

    Args:
        style: `trtllm` or `vllm`.
        max_active: streams that the model runs at once, 0 for no bound.
    """

    def __init__(self, style: str, model: str, *, max_active: int) -> None:
        self._room = max_active or _ROOM
        self._families: list[Any] = []
        # Named as in TensorRT-LLM's backend and in vLLM.
        if style == "trtllm":
            requests = self._family("nv_trt_llm_request_metrics", "TRT LLM request metrics")
            blocks = self._family("nv_trt_llm_kv_cache_block_metrics", "TRT LLM KV cache block metrics")
            named = {"model": model, "version": "1"}
            self._active = requests.Metric(labels={**named, "request_type": "active"})
            self._waiting = requests.Metric(labels={**named, "request_type": "waiting"})
            self._cache = blocks.Metric(labels={**named, "kv_cache_block_type": "fraction"})
        else:
            named = {"model": model}
            self._active = self._family("vllm:num_requests_running", "Running").Metric(labels=named)
            self._waiting = self._family("vllm:num_requests_waiting", "Waiting").Metric(labels=named)
            self._cache = self._family("vllm:kv_cache_usage_perc", "KV cache in use").Metric(labels=named)
        self._load = (0, 0)
        self._wanted = threading.Event()
        threading.Thread(target=self._run, name="gauges", daemon=True).start()

    def set(self, active: int, waiting: int) -> None:
        """Show another load soon."""
        self._load = active, waiting
        self._wanted.set()

    def _family(self, name: str, description: str) -> Any:
        family = pb_utils.MetricFamily(name=name, description=description, kind=pb_utils.MetricFamily.GAUGE)
        self._families.append(family)
        return family

    def _run(self) -> None:
        while self._wanted.wait():
            self._wanted.clear()
            active, waiting = self._load
            self._active.set(active)
            self._waiting.set(waiting)
            self._cache.set(min(1.0, active / self._room))
            time.sleep(_PAUSE_S)
