"""What Triton's errors and its metrics page mean."""

from __future__ import annotations

import pytest

from backends.wire.failure import FailureCode, Phase
from backends.wire.load_page import Load, read_load
from backends.wire.triton.errors import in_band_failure, transport_failure


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Prompt length (9000) exceeds maximum input length (8192).", FailureCode.CONTEXT_LENGTH),
        ("This model's maximum context length is 4096 tokens. However, you requested 5000", FailureCode.CONTEXT_LENGTH),
        ("The decoder prompt (length 9) is longer than the maximum model length of 8.", FailureCode.CONTEXT_LENGTH),
        ("Traceback (most recent call last):\n AssertionError: input length 9 exceeds 8", FailureCode.CONTEXT_LENGTH),
        ("[request id: <id_unknown>] Exceeds maximum queue size", FailureCode.OVERLOADED),
        ("Request for unknown model: 'x' is not at ready state", FailureCode.UNREACHABLE),
        ("Request for unknown model: 'x' has no available versions", FailureCode.UNREACHABLE),
        ("Request for unknown model: 'x' is not found", FailureCode.MISCONFIGURED),
        ("unexpected inference input 'seed' for model 'ensemble'", FailureCode.MISCONFIGURED),
        ("expected 3 inputs but got 2 inputs for model 'x'.", FailureCode.MISCONFIGURED),
        ("Stub process 'ensemble_0_0' is not healthy.", FailureCode.BROKEN),
        ("Traceback (most recent call last): invalid value", FailureCode.BROKEN),
        ("Request timeout expired", FailureCode.TIMEOUT),
        ("Invalid grammar request: no such rule", FailureCode.INPUT_REFUSED),
        ("temperature must be non-negative, got -1", FailureCode.INPUT_REFUSED),
        ("something nobody has seen before", FailureCode.BROKEN),
    ],
)
def test_a_text_tells_the_kind(text: str, code: FailureCode) -> None:
    """An in-band error is known by its words: the caller's fault first, as he alone can mend it."""
    failure = in_band_failure(text, Phase.HEAD)
    assert (failure.code, failure.phase) == (code, Phase.HEAD)


@pytest.mark.parametrize(
    ("status", "details", "phase", "expected"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses", Phase.HEAD, (FailureCode.UNREACHABLE, Phase.CONNECT)),
        ("UNAVAILABLE", "Socket closed", Phase.HEAD, (FailureCode.UNREACHABLE, Phase.HEAD)),
        ("UNAVAILABLE", "Socket closed", Phase.BODY, (FailureCode.BROKEN, Phase.BODY)),
        ("UNAVAILABLE", "Exceeds maximum queue size", Phase.HEAD, (FailureCode.OVERLOADED, Phase.HEAD)),
        ("RESOURCE_EXHAUSTED", "", Phase.HEAD, (FailureCode.OVERLOADED, Phase.HEAD)),
        (
            "RESOURCE_EXHAUSTED",
            "CLIENT: Received message larger than max (9 vs. 4)",
            Phase.BODY,
            (FailureCode.TOO_LARGE, Phase.BODY),
        ),
        ("DEADLINE_EXCEEDED", "", Phase.BODY, (FailureCode.TIMEOUT, Phase.BODY)),
        ("INVALID_ARGUMENT", "odd", Phase.HEAD, (FailureCode.INPUT_REFUSED, Phase.HEAD)),
        ("INVALID_ARGUMENT", "prompt length 9 exceeds 8", Phase.HEAD, (FailureCode.CONTEXT_LENGTH, Phase.HEAD)),
        ("NOT_FOUND", "", Phase.HEAD, (FailureCode.MISCONFIGURED, Phase.HEAD)),
        ("UNIMPLEMENTED", "", Phase.HEAD, (FailureCode.MISCONFIGURED, Phase.HEAD)),
        ("INTERNAL", "", Phase.BODY, (FailureCode.BROKEN, Phase.BODY)),
        ("CANCELLED", "", Phase.BODY, (FailureCode.BROKEN, Phase.BODY)),
    ],
)
def test_a_status_tells_the_kind(status: str, details: str, phase: Phase, expected: tuple[FailureCode, Phase]) -> None:
    """A call that ends badly is known by its status, and by where it stood."""
    failure = transport_failure(status, details, phase)
    assert (failure.code, failure.phase) == expected
    assert details not in str(failure) or not details


PAGE = """\
# HELP nv_inference_pending_request_count Instantaneous number of pending requests awaiting execution per-model.
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="tensorrt_llm_bls",version="1"} 4
nv_inference_pending_request_count{model="other",version="1"} 100
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 5
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="free",model="tensorrt_llm",version="1"} 6239
"""


def test_the_load_of_tensorrt_llm_is_read() -> None:
    """What waits in Triton for this model and in the engine adds up; what other models wait for does not."""
    assert read_load(PAGE, "tensorrt_llm_bls") == Load(waiting=7, active=5, cache_use=0.25)


def test_the_load_of_vllm_is_read() -> None:
    """vLLM has names of its own, and labels with quotes and braces in them."""
    page = (
        'vllm:num_requests_waiting{model_name="a\\"}b"} 2.0\nvllm:num_requests_running{model_name="x"} 1.0\n'
        'vllm:kv_cache_usage_perc{model_name="x"} 0.5\nvllm:num_requests_waiting{model_name="y"} NaN\n'
    )
    assert read_load(page, "x") == Load(waiting=2, active=1, cache_use=0.5)


@pytest.mark.parametrize("page", ["", "<html>", "up 1", 'nv_inference_count{model="x"} 7', "# only\n# comments"])
def test_a_page_that_says_nothing_is_nothing(page: str) -> None:
    """No number that we know is no statement, and never a zero."""
    assert read_load(page, "x") is None
