"""What every answer owes its clients, checked in one place."""

from __future__ import annotations

import json
import re

from tests.system.harness import SECRET_WORDS, Gateway
from tests.system.wire import Answer

REQUEST_ID = re.compile(r"req_[0-9a-hjkmnp-tv-z]{26}")
ENGINE_FIELDS = re.compile(
    r'"(?:system_fingerprint|prompt_token_ids|token_ids|stop_reason|kv_transfer_params|prompt_logprobs|max_model_len|'
    r'root|parent)"\s*:|\r\nx-sim|Traceback|File \\?"',
    re.IGNORECASE,
)


def reveals_nothing(answer: Answer) -> None:
    """No real model id, replica, engine field, address or trace stands anywhere in the answer's bytes."""
    shown = answer.raw.decode("utf-8", "replace")
    # The text of the model is its own; what matters is everything around it.
    for word in SECRET_WORDS:
        assert word not in shown, f"the answer shows {word!r}: {shown[:2000]}"
    assert not ENGINE_FIELDS.search(shown), f"{ENGINE_FIELDS.search(shown)}: {shown[:2000]}"
    assert "server" not in answer.headers


def has_request_id(answer: Answer) -> str:
    """The answer carries a request id of our form."""
    assert REQUEST_ID.fullmatch(answer.headers["x-request-id"])
    return answer.request_id


def is_error(
    gateway: Gateway, answer: Answer, status: int, kind: str, code: str, param: str | None = None
) -> dict[str, str]:
    """One error body for both client families, the same id in header, body and log line."""
    assert answer.status == status, answer.raw
    assert answer.headers["content-type"] == "application/json"
    request_id = has_request_id(answer)
    body = json.loads(answer.body)
    error = body["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert isinstance(body["detail"], str)
    assert body["detail"]
    assert body["detail"] == error["message"]
    assert (error["type"], error["code"], error["param"]) == (kind, code, param)
    assert body.get("request_id", request_id) == request_id
    reveals_nothing(answer)
    gateway.expect_in_log(request_id, status=status, error=code)
    return dict(answer.headers)
