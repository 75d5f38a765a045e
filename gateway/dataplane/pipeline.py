"""The life of a request: authenticate, admit, route, relay, settle.

Floor: dataplane. This file holds the control flow and reads like the diagram in the README; every stage is a module
of its own. Whatever happens after the hold was taken, `Settler.post` is called exactly once for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from typing import Any

from backends.wire.failure import BackendFailure, FailureCode, Phase, Unsupported
from backends.wire.openai_stream import encode_event
from backends.wire.request import InferenceRequest, Kind
from gateway.core import errors, openapi, routes
from gateway.core.errors import ApiError, Refused
from gateway.core.estimate import Plan, plan, upstream_max_tokens
from gateway.core.exchange import Ending, Exchange
from gateway.core.idempotency import Outcome, Recording, pack
from gateway.core.openai import read_ask
from gateway.core.ports import Platform, Recorder, Samples, StateView, Uses
from gateway.core.prompt_of_record import put_before
from gateway.core.state import Endpoint, Limits, Scope
from gateway.dataplane import platform as platform_stage
from gateway.dataplane.admit import RefusedWithLimits, admit, limit_headers
from gateway.dataplane.authenticate import authenticate, may_be_ours
from gateway.dataplane.finish import finish_stream, finish_whole
from gateway.dataplane.models import list_models, retrieve_model
from gateway.dataplane.relay import Answer, Interrupted, Patience, Relay
from gateway.dataplane.replay import replay
from gateway.dataplane.reply import Reply
from gateway.dataplane.resolve import resolve
from gateway.dataplane.route import Router
from gateway.dataplane.server import Request
from gateway.dataplane.settle import Settler
from gateway.dataplane.watch import Watch
from gateway.settings import Settings
from ledger.core.ids import REQUEST_PREFIX
from ledger.counter import CreditCounter, Held
from ledger.cover import Cover
from ledger.outbox import OutboxUnavailable

log = logging.getLogger("pareta.pipeline")

MAX_ATTEMPTS = 3
CLIENT_CLOSED = 499
"""Of the log and the ledger only: nobody is left to read an answer."""
INFERENCE_ROUTES = {f"/v1/{kind.value}": kind for kind in Kind}
MODEL_PREFIX = "/v1/models/"
MODEL_ROUTE = "/v1/models/{id}"
PLATFORM_ROUTES = frozenset(route.template for route in routes.PLATFORM)
OPENAPI_ROUTE = "/openapi.json"
PLAIN_ROUTES = frozenset({*INFERENCE_ROUTES, "/v1/models", "/healthz", "/readyz", OPENAPI_ROUTE})


@dataclass(frozen=True, slots=True)
class Stages:
    """What the pipeline works with; joined in `gateway.app`."""

    settings: Settings
    state: StateView
    counter: CreditCounter
    cover: Cover
    """Where a request or a stream that came short gets more credit."""
    router: Router
    settler: Settler
    watch: Watch
    recorder: Recorder
    platform: Platform
    """What everything but inference is passed on to."""
    uses: Uses
    samples: Samples


class Pipeline:
    """Serves requests, one call each.

    Args:
        stages: the parts.
    """

    def __init__(self, stages: Stages) -> None:
        self._stages = stages
        self._default_limits = Limits(
            requests_per_minute=stages.settings.key_requests_per_minute or None,
            tokens_per_minute=stages.settings.key_tokens_per_minute or None,
            concurrent=stages.settings.key_concurrent or None,
        )
        self._patience: dict[float, Patience] = {}
        """By the endpoint's deadline."""
        self.is_ready = False

    async def serve(self, request: Request, reply: Reply) -> None:
        """Answer one request; the server's handler."""
        exchange = Exchange(
            request_id=request.request_id,
            route=_route_of(request.path),
            started_s=request.started_s,
            started_ms=request.started_ms,
            client_request_id=_printable(request.headers.get(b"x-request-id")),
        )
        try:
            kind = INFERENCE_ROUTES.get(request.path)
            if kind is not None and request.refused is None and request.method == "POST":
                exchange.kind = kind
                await self._infer(exchange, request, reply)
            else:
                await self._dispatch(exchange, request, reply)
        except Refused as refused:
            _refuse(exchange, reply, refused)
        except asyncio.CancelledError:
            exchange.status = exchange.status or CLIENT_CLOSED
            exchange.error_code = exchange.error_code or "client_closed"
            raise
        except Exception:
            log.exception("request %s failed", exchange.request_id)
            _refuse(exchange, reply, Refused(errors.internal()))
        finally:
            self._stages.recorder.closed(exchange, time.monotonic())

    # -- which route -----------------------------------------------------------------------------------------

    async def _dispatch(self, exchange: Exchange, request: Request, reply: Reply) -> None:
        if request.refused is not None:
            if request.refused.status == 413 and not may_be_ours(
                self._stages.state, request.headers.get(b"authorization")
            ):
                raise Refused(errors.invalid_api_key())
            raise Refused(request.refused)
        if request.path in INFERENCE_ROUTES:
            raise Refused(errors.method_not_allowed("POST"))
        if request.path == "/v1/models":
            _require_method(request, "GET")
            await self._authenticate(exchange, request)
            _answer(exchange, reply, 200, list_models(self._stages.state, exchange))
        elif exchange.route == MODEL_ROUTE:
            _require_method(request, "GET")
            await self._authenticate(exchange, request)
            model_id = request.path[len(MODEL_PREFIX) :]
            _answer(exchange, reply, 200, retrieve_model(self._stages.state, exchange, model_id))
        elif request.path == OPENAPI_ROUTE:
            _require_method(request, "GET")
            _answer(exchange, reply, 200, openapi.document(self._stages.settings.effective_public_url))
        elif request.path == "/healthz":
            _require_method(request, "GET")
            _answer(exchange, reply, 200, b'{"status":"alive"}')
        elif request.path == "/readyz":
            _require_method(request, "GET")
            _answer(exchange, reply, *(_READY if self.is_ready else _NOT_READY))
        elif exchange.route in PLATFORM_ROUTES:
            await self._authenticate(exchange, request)
            platform_stage.check(exchange, request)
            await platform_stage.relay(self._stages.platform, exchange, request, reply)
        else:
            raise Refused(errors.route_not_found())

    async def _authenticate(self, exchange: Exchange, request: Request) -> None:
        header = request.headers.get(b"authorization")
        exchange.key = await authenticate(self._stages.state, header, time.time())

    # -- inference -------------------------------------------------------------------------------------------

    async def _infer(self, exchange: Exchange, request: Request, reply: Reply) -> None:
        stages = self._stages
        await self._authenticate(exchange, request)
        assert exchange.key is not None
        assert exchange.kind is not None
        if exchange.key.scope is not Scope.FULL:
            raise Refused(errors.forbidden())
        ask = exchange.ask = read_ask(exchange.kind, request.body)
        idempotency_key = request.headers.get(b"idempotency-key")
        if idempotency_key is not None and await replay(stages.counter, exchange, reply, idempotency_key, request.body):
            return
        endpoint = exchange.endpoint = resolve(stages.state, stages.uses, exchange.key.org_id, ask.model, exchange.kind)
        if endpoint.prompt_of_record is not None and exchange.kind is Kind.CHAT:
            exchange.prompt_of_record = put_before(ask, endpoint.prompt_of_record)
        exchange.card = endpoint.card_at(exchange.started_ms)
        if exchange.card is None:
            raise Refused(errors.no_price())
        exchange.discount = endpoint.discount_at(exchange.started_ms)
        planned = plan(ask, endpoint, exchange.card, discount_bps=exchange.discount_bps)
        if not stages.router.has_live(endpoint):
            raise Refused(errors.endpoint_not_ready(retry_after_s=_retry_s(stages.settings)))
        held = await admit(
            stages.counter,
            stages.cover,
            exchange,
            planned,
            request.body,
            defaults=self._default_limits,
            expires_in_s=stages.settings.hold_expiry_s,
        )
        exchange.held_nanos, exchange.held_epoch = held.amount_nanos, held.epoch
        if endpoint.sleeps:
            stages.uses.used(endpoint.id)  # not before: who cannot pay keeps nothing awake
        await self._work(exchange, reply, planned, held)

    async def _work(self, exchange: Exchange, reply: Reply, planned: Plan, held: Held) -> None:
        """From the hold to its settlement. Every way out of here posts exactly once."""
        stages, endpoint = self._stages, exchange.endpoint
        assert endpoint is not None
        head = limit_headers(held.limits)
        is_sample = endpoint.task_id is not None and exchange.kind is Kind.CHAT and stages.samples.is_wanted
        recording = Recording() if (exchange.claim is not None or is_sample) and _is_stream(exchange) else None
        relay = Relay(
            exchange,
            reply,
            head=head,
            patience=self._patience_for(endpoint),
            recorder=stages.recorder,
            recording=recording,
        )
        ending = Ending.FAILED
        answer: Answer | None = None
        error: ApiError | None = None
        try:
            self._bound(relay, planned, held)
            stages.watch.add(relay)
            answer = await self._ask_replicas(exchange, relay, _inference_request(exchange, planned, held))
            ending, exchange.status = Ending.LENGTH if answer.is_cut else Ending.FINISHED, 200
            if reply.is_gone:
                ending, exchange.status = Ending.ABANDONED, CLIENT_CLOSED
        except asyncio.CancelledError:
            ending, exchange.status = Ending.ABANDONED, CLIENT_CLOSED
            raise
        except BackendFailure as failure:
            error = _error_of(failure)
        except Interrupted as interrupted:
            ending, error = interrupted.ending, interrupted.error
        finally:
            if error is not None:
                exchange.status, exchange.error_code = 200 if reply.has_begun else error.status, error.code
            stages.watch.relays.discard(relay)
            observed = answer.observed if answer is not None else relay.observed()
            outcome = None
            if answer is not None and ending in _ANSWERED and exchange.claim is not None:
                outcome = pack(Outcome(False, answer.body)) if recording is None else recording.pack()
            durable = stages.settler.post(exchange, ending, observed, outcome=outcome)
            relay.let_go()
        if answer is not None and ending in _ANSWERED:
            # The client sees the end only when its charge can no longer be lost.
            try:
                await durable
            except OutboxUnavailable:
                raise Refused(errors.charge_uncertain()) from None
            self._finish(exchange, reply, answer, head)
            if is_sample:
                self._sample(exchange, answer.body if recording is None else recording.events())
        elif error is not None:
            # Nor does it hear of a failure before it is sure that it costs nothing: a worker that died in between would
            # leave a hold that is reaped at what was delivered. Is that not sure in time, it has to hear all the same.
            with contextlib.suppress(OutboxUnavailable):
                await durable
            self._fail(exchange, reply, error)

    def _bound(self, relay: Relay, planned: Plan, held: Held) -> None:
        """Let a stream whose tokens cost something deliver no more than is held."""
        ask, rate_nanos = relay.exchange.ask, planned.quote.completion_rate_per_million_nanos
        assert ask is not None
        if ask.stream and rate_nanos:
            tokens_held = held.tokens_granted * ask.completions
            relay.bound(self._stages.cover, tokens_held=tokens_held, rate_nanos=-(-rate_nanos // ask.completions))

    async def _ask_replicas(self, exchange: Exchange, relay: Relay, request: InferenceRequest) -> Answer:
        """Ask one replica after another until one answers; a failure that another may not have lets it go on."""
        assert exchange.endpoint is not None
        tried: list[str] = []
        failure: BackendFailure | None = None
        while len(tried) < MAX_ATTEMPTS:
            replica = self._stages.router.pick(exchange.endpoint, tried)
            if replica is None:
                break
            tried.append(replica.id)
            exchange.backend_id, exchange.attempts = replica.id, len(tried)
            try:
                with replica as backend:
                    return await relay.ask(backend, request)
            except BackendFailure as error:
                failure = error
                if error.is_callers_fault or exchange.first_byte_s is not None:
                    break  # every replica would say the same, or the client has part of an answer already
        raise failure or BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT)

    def _finish(self, exchange: Exchange, reply: Reply, answer: Answer, head: bytes) -> None:
        assert exchange.ask is not None
        assert exchange.billed_nanos is not None
        if exchange.ask.stream:
            finish_stream(reply, billed_nanos=exchange.billed_nanos)
        else:
            finish_whole(reply, answer.body, billed_nanos=exchange.billed_nanos, extra=head)

    def _sample(self, exchange: Exchange, body: bytes) -> None:
        ask, endpoint = exchange.ask, exchange.endpoint
        assert ask is not None
        assert endpoint is not None
        self._stages.samples.take(endpoint.id, ask.known["messages"], body, stream=ask.stream)

    def _fail(self, exchange: Exchange, reply: Reply, error: ApiError) -> None:
        if not reply.has_begun:
            _refuse(exchange, reply, Refused(error))
            return
        exchange.status = 200
        exchange.error_code = error.code
        reply.break_stream(_error_chunk(exchange, error))

    def _patience_for(self, endpoint: Endpoint) -> Patience:
        patience = self._patience.get(endpoint.deadline_s)
        if patience is None:
            settings = self._stages.settings
            patience = self._patience[endpoint.deadline_s] = Patience(
                deadline_s=endpoint.deadline_s,
                idle_s=settings.idle_timeout_s,
                commit_stream_s=settings.commit_stream_s,
                heartbeat_s=settings.stream_heartbeat_s,
                write_s=settings.write_timeout_s,
            )
        return patience


_ANSWERED = frozenset({Ending.FINISHED, Ending.LENGTH})
_READY = (200, b'{"status":"ready"}')
_NOT_READY = (503, b'{"status":"not ready"}')


def _route_of(path: str) -> str:
    """The route for log and metrics: a label must not take any text that a stranger sends."""
    if path in PLAIN_ROUTES:
        return path
    if path.startswith(MODEL_PREFIX) and "/" not in path[len(MODEL_PREFIX) :]:
        return MODEL_ROUTE
    return platform_stage.template_of(path) or "unknown"


def _require_method(request: Request, method: str) -> None:
    if request.method != method and not (method == "GET" and request.method == "HEAD"):
        raise Refused(errors.method_not_allowed(method))


def _inference_request(exchange: Exchange, planned: Plan, held: Held) -> InferenceRequest:
    ask, kind = exchange.ask, exchange.kind
    assert ask is not None
    assert kind is not None
    body = {**ask.extra, **ask.known} if ask.extra and _takes_extras(exchange) else ask.known.copy()
    body.pop("max_completion_tokens", None)
    max_tokens = upstream_max_tokens(ask, planned, held.tokens_granted)
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    else:
        body.pop("max_tokens", None)
    return InferenceRequest(
        kind,
        body,
        ask.stream,
        ask.include_usage,
        _answer_id(exchange),
        exchange.started_ms // 1000,
        ask.model,
        ask.completions,
    )


def _answer_id(exchange: Exchange) -> str:
    """The same on every chunk of an answer, also on the one that tells of its failure."""
    prefix = "chatcmpl-" if exchange.kind is Kind.CHAT else "cmpl-"
    return prefix + exchange.request_id[len(REQUEST_PREFIX) :]


def _is_stream(exchange: Exchange) -> bool:
    return exchange.ask is not None and exchange.ask.stream


def _takes_extras(exchange: Exchange) -> bool:
    # A request may be answered by any replica, so all of them have to tolerate what is sent.
    return exchange.endpoint is not None and all(b.tolerates_unknown_fields for b in exchange.endpoint.backends)


def _error_of(failure: BackendFailure) -> ApiError:
    if isinstance(failure, Unsupported):
        return errors.unsupported(failure.param, failure.reason)
    if failure.phase is Phase.CONNECT and failure.code is FailureCode.TIMEOUT:
        return errors.endpoint_not_ready(retry_after_s=2)
    match failure.code:
        case FailureCode.CONTEXT_LENGTH:
            return errors.context_length_exceeded()
        case FailureCode.INPUT_REFUSED:
            return errors.input_refused()
        case FailureCode.OVERLOADED:
            return errors.backend_overloaded(failure.retry_after_s)
        case FailureCode.TIMEOUT:
            return errors.deadline_exceeded()
        case FailureCode.UNREACHABLE | FailureCode.MISCONFIGURED:
            return errors.endpoint_not_ready(retry_after_s=2)
        case FailureCode.BROKEN | FailureCode.PROTOCOL | FailureCode.TOO_LARGE:
            return errors.backend_failed()


def _retry_s(settings: Settings) -> int:
    # When a replica comes back, the next health probe sees it.
    return errors.clamp_retry_after(settings.health_interval_s)


def _answer(exchange: Exchange, reply: Reply, status: int, body: bytes) -> None:
    exchange.status = status
    reply.send(status, body)


def _refuse(exchange: Exchange, reply: Reply, refused: Refused) -> None:
    error = refused.error
    exchange.status = error.status
    exchange.error_code = error.code
    if reply.has_begun:
        reply.abort()
        return
    lines = limit_headers(refused.limits) if isinstance(refused, RefusedWithLimits) else b""
    if error.retry_after_s is not None:
        lines += b"Retry-After: %d\r\n" % error.retry_after_s
    if error.should_retry is not None:
        lines += b"x-should-retry: true\r\n" if error.should_retry else b"x-should-retry: false\r\n"
    if error.allow is not None:
        lines += f"Allow: {error.allow}\r\n".encode()
    if error.status == 401:
        lines += b"WWW-Authenticate: Bearer\r\n"
    reply.send(error.status, errors.encode(error, exchange.request_id), extra=lines)


def _error_chunk(exchange: Exchange, error: ApiError) -> bytes:
    """A chunk of ordinary shape that also carries the error: openai raises, and no loop meets an empty choice."""
    assert exchange.ask is not None
    is_chat = exchange.kind is Kind.CHAT
    empty: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
    chunk = {
        "id": _answer_id(exchange),
        "object": "chat.completion.chunk" if is_chat else "text_completion",
        "created": exchange.started_ms // 1000,
        "model": exchange.ask.model,
        "choices": [{"index": 0, **empty, "finish_reason": None}],
        "error": {"message": error.message, "type": error.type, "code": error.code, "param": error.param},
        "request_id": exchange.request_id,
    }
    return encode_event(chunk)


def _printable(header: bytes | None) -> str | None:
    """A client's own request id for our log, if it is harmless."""
    if header is None or len(header) > 128 or not header.isascii():
        return None
    text = header.decode("ascii")
    return text if text.isprintable() else None
