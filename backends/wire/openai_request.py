"""Write the request that an OpenAI-compatible engine gets, and read its refusals.

Floor: wire (pure).
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest, Kind

_CONTEXT_WORDS = re.compile(
    rb"context.{0,10}(length|window|size)|max_model_len|maximum.{0,20}(token|length)|too long|exceeds?.{0,30}token",
    re.I,
)


def encode_body(request: InferenceRequest, *, model: str) -> bytes:
    """The JSON sent upstream: the caller's fields, the real model, and usage asked for in every chunk.

    No engine reports usage after an abort, so a stream that may be cut short has to carry it all the way.
    """
    body: dict[str, Any] = {**request.body, "model": model}
    if request.kind is not Kind.EMBEDDING:
        body["stream"] = request.stream
        if request.stream:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return orjson.dumps(body)


def refusal(status: int, body: bytes, retry_after: str | None) -> BackendFailure:
    """What an answer other than 200 means.

    Args:
        status: the HTTP status.
        body: the beginning of its body; read only to recognise an over-long context.
        retry_after: the header, if any.
    """
    return BackendFailure(_code(status, body), Phase.HEAD, _seconds(retry_after))


def _code(status: int, body: bytes) -> FailureCode:
    if status in (400, 413, 422):
        return FailureCode.CONTEXT_LENGTH if _CONTEXT_WORDS.search(body) else FailureCode.INPUT_REFUSED
    if status in (429, 503):
        return FailureCode.OVERLOADED
    if status in (408, 504):
        return FailureCode.TIMEOUT
    if status >= 500:
        return FailureCode.BROKEN
    # 401, 403, 404, redirects: the operator's entry for this backend is wrong; the caller can't mend that.
    return FailureCode.MISCONFIGURED


def _seconds(header: str | None) -> float | None:
    try:
        seconds = float(header) if header else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds <= 3600 else None
