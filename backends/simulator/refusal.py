"""Errors as vLLM words them.

Pure.
"""

from typing import Any

import orjson

ENGINE_FAILED = "EngineCore encountered an issue. See stack trace (above) for the root cause."

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Refusal(Exception):
    """A request that gets an error instead of an answer.

    Attributes:
        status: HTTP status.
        headers: further header lines, each ending in CRLF.
    """

    def __init__(self, status: int, message: str, *, param: str | None = None, headers: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.headers = headers

    def body(self) -> bytes:
        """The JSON body."""
        return orjson.dumps(error_object(self.status, str(self), self.param))


def error_object(status: int, message: str, param: str | None = None) -> dict[str, Any]:
    """The object that vLLM sends as a body, and as an event when a stream fails."""
    kind = _TYPES.get(status, "InternalServerError")
    return {"error": {"message": message, "type": kind, "param": param, "code": status}}
