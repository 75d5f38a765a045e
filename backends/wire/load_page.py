"""Read from an engine's Prometheus page how busy it is.

Floor: wire (pure). Knows the names of TensorRT-LLM on Triton, of Triton itself, of vLLM and of SGLang; all others are
skipped.
Source: Prometheus text format 0.0.4; the engines' documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

_TRTLLM_REQUESTS = "nv_trt_llm_request_metrics"
_TRTLLM_CACHE = "nv_trt_llm_kv_cache_block_metrics"
_TRITON_PENDING = "nv_inference_pending_request_count"
_WAITING = frozenset({"vllm:num_requests_waiting", "sglang:num_queue_reqs", "trtllm_num_requests_waiting"})
_ACTIVE = frozenset({"vllm:num_requests_running", "sglang:num_running_reqs", "trtllm_num_requests_running"})
_CACHE_USE = frozenset(
    {"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage", "trtllm_kv_cache_utilization"}
)


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a server is.

    Attributes:
        waiting: requests that it has taken and not begun.
        active: requests that it works on, if it says so.
        cache_use: part of the KV cache in use, 0 to 1, if it says so.
    """

    waiting: int
    active: int | None = None
    cache_use: float | None = None


def read_load(page: str, model: str) -> Load | None:
    """The load that a page tells of; ``None`` if it tells nothing we know.

    Args:
        model: whose queue in Triton counts; the engine behind it has another name there and is counted as a whole.
    """
    waiting: float | None = None
    active: float | None = None
    cache_use: float | None = None
    for name, labels, value in _samples(page):
        request_type = labels.get("request_type") if name == _TRTLLM_REQUESTS else None
        is_pending = name == _TRITON_PENDING and labels.get("model") == model
        if name in _WAITING or request_type == "waiting" or is_pending:
            waiting = (waiting or 0) + value
        elif name in _ACTIVE or request_type == "active":
            active = (active or 0) + value
        elif name in _CACHE_USE or (name == _TRTLLM_CACHE and labels.get("kv_cache_block_type") == "fraction"):
            cache_use = max(cache_use or 0, value)
    if waiting is None and active is None:
        return None
    return Load(int(waiting or 0), None if active is None else int(active), cache_use)


def _samples(page: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    for line in page.splitlines():
        if line.startswith("#"):
            continue
        found = _SAMPLE.match(line)
        if found is None:
            continue
        try:
            value = float(found[3])
        except ValueError:
            continue
        if math.isfinite(value) and value >= 0:
            yield found[1], dict(_LABEL.findall(found[2] or "")), value
