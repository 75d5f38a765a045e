"""The error taxonomy: every refusal a client can meet, as one table of constructors.

Floor: core (pure). One body serves both client families: the ``pareta`` SDK reads ``detail``, the ``openai`` client
reads ``error``. Messages are public: never a real model id, an engine's text, a path, an address or an amount of
money. A status that clients retry (408, 409, 429, 5xx) is only used where nothing lasting has happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import orjson


class Origin(StrEnum):
    """Whose fault it is; a label of the log and the metrics."""

    CLIENT = "client"
    GATEWAY = "gateway"
    BACKEND = "backend"
    LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class ApiError:
    """One refusal.

    Attributes:
        status: HTTP status.
        type, code: stable words of the OpenAI error object.
        message: a sentence that says what to do.
        param: the field at fault, dotted, if any.
        retry_after_s: whole seconds for ``Retry-After``, 1 to 30, if waiting helps.
        should_retry: ``False`` tells the openai client that a retry is pointless; ``None`` leaves it to its table.
        allow: the methods of a 405.
    """

    status: int
    type: str
    code: str
    message: str
    param: str | None = None
    origin: Origin = Origin.CLIENT
    retry_after_s: int | None = None
    should_retry: bool | None = None
    allow: str | None = None


class Refused(Exception):
    """Carries an `ApiError` up to the one place that answers it."""

    def __init__(self, error: ApiError) -> None:
        super().__init__(error.code)
        self.error = error


def encode(error: ApiError, request_id: str) -> bytes:
    """The JSON body; the request id stands in it too, for people who paste only the body."""
    inner = {"message": error.message, "type": error.type, "code": error.code, "param": error.param}
    return orjson.dumps({"detail": error.message, "error": inner, "request_id": request_id})


def clamp_retry_after(seconds: float | None, *, default_s: int = 1) -> int:
    """Whole seconds between 1 and 30, as the clients understand them."""
    return default_s if seconds is None else max(1, min(30, int(seconds + 0.999)))


# -- the request itself ----------------------------------------------------------


def invalid(field: str, reason: str) -> ApiError:
    """A field has the wrong type or is out of range. ``reason`` continues the sentence "<field> …"."""
    slug = field.split(".", 1)[0].split("[", 1)[0]
    return ApiError(400, "invalid_request_error", f"{slug}_invalid", f"{field} {reason}.", field)


def unprocessable(field: str, reason: str) -> ApiError:
    """Like `invalid`, where the contract says 422. ``reason`` continues the sentence "<field> …"."""
    slug = field.split(".", 1)[0].split("[", 1)[0]
    return ApiError(422, "invalid_request_error", f"{slug}_invalid", f"{field} {reason}.", field)


def unsupported(field: str, reason: str) -> ApiError:
    """A field asks for what this model's backend cannot give. ``reason`` continues the sentence "<field> …"."""
    # A code is a label of the metrics: it must not take any text that a stranger sends.
    name = field.split(".", 1)[0].split("[", 1)[0]
    slug = name if name in MAY_BE_UNSUPPORTED else "parameter"
    return ApiError(400, "invalid_request_error", f"{slug}_unsupported", f"{field} {reason}.", field)


MAY_BE_UNSUPPORTED = frozenset(
    {
        "best_of", "chat_template_kwargs", "echo", "frequency_penalty", "logit_bias", "logprobs", "messages", "min_p",
        "min_tokens", "modalities", "model", "n", "parallel_tool_calls", "presence_penalty", "prompt",
        "reasoning_effort", "repetition_penalty", "response_format", "seed", "stop", "suffix", "temperature",
        "tool_choice", "tools", "top_k", "top_logprobs", "top_p",
    }
)  # fmt: skip
"""Fields whose name stands in the code of that refusal; all others are a ``parameter``."""


def malformed_json() -> ApiError:
    """The body is no JSON object."""
    return ApiError(400, "invalid_request_error", "body_invalid", "The request body must be one JSON object in UTF-8.")


def too_deep() -> ApiError:
    """The body is nested deeper than it can be written again for an engine."""
    return ApiError(400, "invalid_request_error", "body_invalid", "The request body is nested too deeply.")


def malformed_http() -> ApiError:
    """The bytes are no HTTP request."""
    return ApiError(400, "invalid_request_error", "http_invalid", "The request is not valid HTTP/1.1.")


def unreadable_audio(field: str) -> ApiError:
    """Audio with a price per second whose seconds can't be counted."""
    return ApiError(
        400,
        "invalid_request_error",
        "unreadable_audio",
        f"{field} has no length that can be told: it must be a complete WAV or MP3 file, as its format says.",
        param=field,
    )


def context_length_exceeded() -> ApiError:
    """Prompt and answer do not fit the model."""
    return ApiError(
        400,
        "invalid_request_error",
        "context_length_exceeded",
        "The messages and max_tokens do not fit the context of this model. Shorten one of them.",
        "messages",
    )


def input_refused() -> ApiError:
    """The engine refused the input, for a reason that we must not quote."""
    return ApiError(
        400, "invalid_request_error", "input_refused", "The model cannot process this request. Check its parameters."
    )


def body_too_large(limit_bytes: int) -> ApiError:
    """The body passes the limit."""
    return ApiError(
        413, "invalid_request_error", "body_too_large", f"The request body is larger than {limit_bytes} bytes."
    )


def head_too_large() -> ApiError:
    """Request line or headers pass the limit."""
    return ApiError(431, "invalid_request_error", "headers_too_large", "The request line or its headers are too large.")


def request_timeout() -> ApiError:
    """The client did not send the request in time."""
    return ApiError(
        408, "invalid_request_error", "request_timeout", "The request did not arrive in time. Send it again."
    )


def expectation_failed() -> ApiError:
    """An expectation other than 100-continue."""
    return ApiError(417, "invalid_request_error", "expectation_failed", "Only the expectation 100-continue is known.")


# -- who asks ----------------------------------------------------------


def invalid_api_key() -> ApiError:
    """Missing, malformed, unknown, expired or revoked: one text, so that nothing can be probed."""
    return ApiError(
        401,
        "authentication_error",
        "invalid_api_key",
        "The API key is missing, unknown, expired or revoked. Send it as 'Authorization: Bearer pareta_sk_…'.",
    )


def forbidden() -> ApiError:
    """The key's scope does not cover this."""
    return ApiError(
        403, "permission_error", "forbidden", "This API key may only read. Use a key with the scope 'full'."
    )


# -- what is asked for ----------------------------------------------------------


def route_not_found() -> ApiError:
    """No such path."""
    return ApiError(404, "not_found_error", "route_not_found", "There is no such route. See the API reference.")


def method_not_allowed(allow: str) -> ApiError:
    """The path exists, the method does not."""
    return ApiError(
        405, "invalid_request_error", "method_not_allowed", f"This route answers only {allow}.", allow=allow
    )


def task_not_found(task: str) -> ApiError:
    """The catalogue has no such task. The name is the caller's own text, shortened."""
    shown = task if len(task) <= 100 else task[:100] + "…"
    return ApiError(
        404,
        "not_found_error",
        "task_not_found",
        f"There is no task {shown!r}. GET /v1/tasks lists them.",
        "task",
    )


def _shown(text: str) -> str:
    """A caller's own text, shortened."""
    return repr(text if len(text) <= 100 else text[:100] + "…")


def endpoint_not_found(endpoint: str) -> ApiError:
    """No such endpoint in this organization; another one's is the same to it."""
    return ApiError(
        404,
        "not_found_error",
        "endpoint_not_found",
        f"There is no endpoint {_shown(endpoint)} in this organization.",
        "endpoint",
    )


def eval_set_not_found(eval_set: str) -> ApiError:
    """No such set in this organization."""
    return ApiError(
        404,
        "not_found_error",
        "eval_set_not_found",
        f"There is no eval set {_shown(eval_set)}. List yours with GET /v1/eval-sets.",
        "eval_set_id",
    )


def eval_run_not_found(run: str) -> ApiError:
    """No such run in this organization."""
    return ApiError(404, "not_found_error", "eval_run_not_found", f"There is no eval run {_shown(run)}.", "run_id")


def unknown_candidate(name: str) -> ApiError:
    """A candidate is neither on the task's board nor in the vendors' roster."""
    return ApiError(
        400,
        "invalid_request_error",
        "unknown_candidate",
        f"{_shown(name)} is neither a model on the board of the set's task nor a frontier model that can be asked."
        " See the task's leaderboard and GET /v1/eval/frontier-models.",
        "candidate_model_ids",
    )


def documents_missing(rows: str) -> ApiError:
    """Rows of a document task have no document yet."""
    return ApiError(
        400,
        "invalid_request_error",
        "documents_missing",
        f"Rows without their document: {rows}. Attach one to each with POST /v1/eval-sets/{{id}}/attach-blob.",
        "eval_set_id",
    )


def eval_quota(most: int) -> ApiError:
    """The organization has as many eval sets as it may have."""
    return ApiError(
        403, "permission_error", "eval_set_quota", f"There are {most} eval sets already. Delete one that is not needed."
    )


def text_task() -> ApiError:
    """Documents belong to tasks that take some."""
    return ApiError(
        400,
        "invalid_request_error",
        "no_documents",
        "The task of this eval set takes no documents; put its text into the rows.",
        "eval_set_id",
    )


def upload_invalid() -> ApiError:
    """A finished upload is none that was begun here, or its bytes have not come."""
    return ApiError(
        400,
        "invalid_request_error",
        "upload_invalid",
        "storage_uri names no finished upload for this row and field. Ask for a new upload_url, PUT the whole file to"
        " it, then complete it.",
        "storage_uri",
    )


def unknown_model(model: str) -> ApiError:
    """What was named is no open model of that task."""
    return ApiError(
        400,
        "invalid_request_error",
        "unknown_model",
        f"The task has no deployable model {_shown(model)}. Its leaderboard lists them; frontier models are none.",
        "model",
    )


def no_capacity() -> ApiError:
    """The operator registered nothing that serves this model."""
    return ApiError(
        503,
        "service_unavailable_error",
        "no_capacity",
        "This model cannot be deployed at the moment. Choose another one of the board, or try later.",
        "model",
        Origin.GATEWAY,
        should_retry=False,
    )


def name_taken(name: str) -> ApiError:
    """The organization has an endpoint of that name."""
    return ApiError(
        409,
        "conflict_error",
        "name_taken",
        f"There is an endpoint called {_shown(name)} already. Choose another name.",
        "name",
        should_retry=False,
    )


def endpoint_quota(most: int) -> ApiError:
    """The organization may not have more."""
    return ApiError(
        403,
        "permission_error",
        "endpoint_quota",
        f"An organization has at most {most} endpoints. Delete one first.",
    )


def model_not_found(model: str) -> ApiError:
    """No endpoint of this organization has that name. The name is the caller's own text, shortened."""
    shown = model if len(model) <= 100 else model[:100] + "…"
    return ApiError(
        404,
        "not_found_error",
        "model_not_found",
        f"There is no endpoint named {shown!r} in this organization.",
        "model",
    )


def alias_is_ambiguous() -> ApiError:
    """Several endpoints serve that alias."""
    return ApiError(
        404,
        "not_found_error",
        "model_not_found",
        "Several endpoints of this organization serve that model. Send the endpoint's id as 'model'.",
        "model",
    )


def seed_endpoint() -> ApiError:
    """A record that was never deployed."""
    return ApiError(
        409,
        "conflict_error",
        "seed_endpoint",
        "This endpoint was never deployed. Deploy one and call that.",
        "model",
        should_retry=False,
    )


def endpoint_not_ready(*, retry_after_s: int | None) -> ApiError:
    """Stopped, starting or without a healthy backend."""
    if retry_after_s is None:
        return ApiError(
            503,
            "service_unavailable_error",
            "endpoint_not_ready",
            "This endpoint is stopped. Start it, then call it again.",
            "model",
            Origin.BACKEND,
            should_retry=False,
        )
    return ApiError(
        503,
        "service_unavailable_error",
        "endpoint_not_ready",
        "This endpoint is not ready yet. Try again in a moment.",
        "model",
        Origin.BACKEND,
        retry_after_s,
    )


def idempotency_mismatch() -> ApiError:
    """The key was used for another request."""
    return ApiError(
        422,
        "invalid_request_error",
        "idempotency_key_reused",
        "This Idempotency-Key was used for another request. Use a new key for a new request.",
        "Idempotency-Key",
    )


def idempotency_busy() -> ApiError:
    """The first request of that key is still running."""
    return ApiError(
        409,
        "conflict_error",
        "busy",
        "A request with this Idempotency-Key is still running. Try again in a moment.",
        "Idempotency-Key",
        retry_after_s=1,
    )


def idempotency_not_kept() -> ApiError:
    """The first request was answered and charged, but its answer was too large to be kept."""
    return ApiError(
        409,
        "conflict_error",
        "outcome_not_kept",
        "This Idempotency-Key was answered before, and the answer was too large to be kept. Use a new key.",
        "Idempotency-Key",
        should_retry=False,
    )


def no_price() -> ApiError:
    """The operator set no price: work without a price is never let in."""
    return ApiError(
        503,
        "service_unavailable_error",
        "endpoint_not_ready",
        "This endpoint has no price yet, so it cannot be called.",
        "model",
        Origin.GATEWAY,
        30,
    )


# -- money and limits ----------------------------------------------------------


def insufficient_credits() -> ApiError:
    """The organization's credit does not cover the call."""
    return ApiError(
        402,
        "billing_error",
        "insufficient_credits",
        "The organization's credit does not cover this request. Top it up, then try again.",
        origin=Origin.LEDGER,
    )


def rate_limited(what: str, retry_after_s: float) -> ApiError:
    """A limit of the key or the organization. ``what`` names it, for example "requests per minute"."""
    return ApiError(
        429,
        "rate_limit_error",
        "rate_limited",
        f"The limit of {what} is reached. Wait, then try again.",
        retry_after_s=clamp_retry_after(retry_after_s),
    )


def ledger_unavailable(retry_after_s: float = 2) -> ApiError:
    """Credit can't be asked for now: fail closed, but never as a 402."""
    return ApiError(
        503,
        "service_unavailable_error",
        "ledger_unavailable",
        "Credit cannot be checked at the moment. Nothing was charged. Try again in a moment.",
        origin=Origin.LEDGER,
        retry_after_s=clamp_retry_after(retry_after_s),
    )


def charge_uncertain() -> ApiError:
    """The answer is made, and neither the disk nor Redis takes its charge: it is not given, and not asked for again."""
    return ApiError(
        500,
        "server_error",
        "charge_uncertain",
        "The answer could not be booked and is withheld. It may still be charged, once. Quote the request id.",
        origin=Origin.LEDGER,
        should_retry=False,
    )


def state_unavailable() -> ApiError:
    """Keys can't be looked up now."""
    return ApiError(
        503,
        "service_unavailable_error",
        "temporarily_unavailable",
        "The service cannot check API keys at the moment. Try again in a moment.",
        origin=Origin.GATEWAY,
        retry_after_s=2,
    )


def overloaded() -> ApiError:
    """This gateway process is at one of its own bounds, or shutting down."""
    return ApiError(
        503,
        "service_unavailable_error",
        "overloaded",
        "The service is at its capacity. Try again in a moment.",
        origin=Origin.GATEWAY,
        retry_after_s=1,
    )


def platform_unavailable() -> ApiError:
    """The control process is away; inference goes on without it."""
    return ApiError(
        503,
        "service_unavailable_error",
        "platform_unavailable",
        "The platform's routes cannot be served at the moment. Models that are live go on. Try again in a moment.",
        origin=Origin.GATEWAY,
        retry_after_s=2,
    )


# -- behind us ----------------------------------------------------------


def backend_overloaded(retry_after_s: float | None) -> ApiError:
    """Every replica is full."""
    return ApiError(
        503,
        "service_unavailable_error",
        "endpoint_overloaded",
        "This endpoint is at its capacity. Try again in a moment.",
        "model",
        Origin.BACKEND,
        clamp_retry_after(retry_after_s),
    )


def backend_failed() -> ApiError:
    """The engine broke."""
    return ApiError(
        502,
        "server_error",
        "backend_error",
        "The model failed to answer. Nothing was charged. Try again.",
        origin=Origin.BACKEND,
    )


def deadline_exceeded() -> ApiError:
    """The answer took longer than the endpoint allows."""
    return ApiError(
        504,
        "server_error",
        "deadline_exceeded",
        "The model did not answer in time. Nothing was charged. Ask for fewer tokens or try again.",
        origin=Origin.BACKEND,
    )


def internal() -> ApiError:
    """A bug of ours. The log has the rest under the request id."""
    return ApiError(
        500,
        "server_error",
        "internal",
        "The service failed. Nothing was charged. Quote the request id if you report it.",
        origin=Origin.GATEWAY,
    )
