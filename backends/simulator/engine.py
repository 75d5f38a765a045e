"""The engine: takes parsed requests, decides what happens to them, and keeps account of slots.

Routes of an OpenAI-compatible engine live here; `/sim/*` and the texts of `/v1/models` and `/metrics` are in
`inspection`.
"""

import asyncio
import random
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import orjson

from backends.simulator.answer import answer
from backends.simulator.connection import Connection, Request
from backends.simulator.embedding import embedding_body
from backends.simulator.faults import FaultBook
from backends.simulator.inspection import inspect, metrics_text, model_json, models_json
from backends.simulator.intake import Intake, Taken
from backends.simulator.options import BEFORE_ANSWER, Fault, SimOptions
from backends.simulator.records import Record, RecordBook, State
from backends.simulator.refusal import ENGINE_FAILED, Refusal, error_object
from backends.simulator.schema import GenerationRequest, Route, first_tool, read_options
from backends.simulator.settings import SimulatorSettings
from backends.simulator.stream import Stream
from backends.simulator.structured import BadSchema
from backends.simulator.wheel import Wheel
from backends.simulator.whole import Whole
from backends.simulator.work import Plan, Work

_ROUTES = {"/v1/chat/completions": Route.CHAT, "/v1/completions": Route.COMPLETION, "/v1/embeddings": Route.EMBEDDING}
_GETS = {"/health": "health", "/ping": "health", "/v1/models": "models", "/metrics": "metrics"}
_HTML = b"<!doctype html><html><body><h1>502 Bad Gateway</h1></body></html>"
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Engine:
    """One simulator."""

    def __init__(
        self, settings: SimulatorSettings, loop: asyncio.AbstractEventLoop, refuse_connections: Callable[[float], None]
    ) -> None:
        self.settings = settings
        self.loop = loop
        self.wheel = Wheel(loop)
        self.records = RecordBook()
        self.faults = FaultBook(settings.seed)
        self.refuse_connections = refuse_connections
        self.connections: set[Connection] = set()
        self.connections_made = 0
        self.running = 0
        self.waiting: deque[Work] = deque()
        self.started_s = time.time()
        self._requests = 0
        self._intake = Intake(settings)
        self._ids = random.Random()  # noqa: S311 - ids, not secrets

    # --- connections ---

    def connected(self, connection: Connection) -> int:
        """A connection was made."""
        self.connections.add(connection)
        self.connections_made += 1
        return self.connections_made

    def lost(self, connection: Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)

    def refuses(self, path: str) -> bool:
        """Whether a plan resets this request before its body is read."""
        route = _ROUTES.get(path)
        return route is not None and self.faults.refuses(route)

    def stop(self) -> None:
        """End all that runs and close all connections."""
        for connection in list(self.connections):
            if connection.answer is not None:
                connection.answer.disconnected()
            connection.close()

    # --- requests ---

    def handle(self, connection: Connection, request: Request) -> None:
        """Answer one request, now or later."""
        route = _ROUTES.get(request.path)
        try:
            if route is not None and request.method == "POST":
                self._serve(connection, request, route)
            else:
                self._simple(connection, request)
        except Refusal as refusal:
            connection.respond(refusal.status, refusal.body(), extra=refusal.headers)
        except Exception:  # llhttp would swallow it: a bug must show itself, and the client must get an answer
            traceback.print_exc()
            connection.abandon_answer()
            connection.respond(500, orjson.dumps(error_object(500, ENGINE_FAILED)))

    def _simple(self, connection: Connection, request: Request) -> None:
        """The routes that answer at once."""
        path = request.path
        if path.startswith("/sim/"):
            status, body = inspect(self, request)
            connection.respond(status, body)
            return
        model = path.removeprefix("/v1/models/") if path.startswith("/v1/models/") else None
        kind = "models" if model is not None else _GETS.get(path)
        if kind is None:
            if path in _ROUTES:
                connection.respond(405, b'{"detail":"Method Not Allowed"}', extra=b"allow: POST\r\n")
            else:
                connection.respond(404, b'{"detail":"Not Found"}')
            return
        if request.method not in ("GET", "HEAD"):
            connection.respond(405, b'{"detail":"Method Not Allowed"}', extra=b"allow: GET\r\n")
            return
        options = self.faults.take(kind)
        if options is not None and options.fail in BEFORE_ANSWER and self._fail_early(connection, options):
            return
        if kind == "health":
            connection.respond(200, b"")
        elif kind == "metrics":
            connection.respond(200, metrics_text(self), _METRICS_TYPE)
        else:
            self._authorize(request)
            connection.respond(200, models_json(self) if model is None else model_json(self, self._known(model)))

    def _serve(self, connection: Connection, request: Request, route: Route) -> None:
        """The routes that cost tokens."""
        record = self._record(connection, request, route)
        try:
            self._authorize(request)
            taken = self._intake.take(route, request.body)
            record.fields, record.body, record.model, record.stream = (
                taken.fields,
                taken.shown,
                taken.model,
                taken.stream,
            )
            options = self._options(request, route, taken)
            record.fault = options.fail
            if options.fail in BEFORE_ANSWER and self._fail_early(connection, options, record):
                return
            if route is Route.EMBEDDING:
                self._embed(connection, taken, record)
            else:
                self._known(taken.body.get("model"))
                self._generate(connection, route, taken, options, record)
        except Refusal as refusal:
            record.status = refusal.status
            self.records.close(record, State.FAILED, time.time())
            connection.respond(refusal.status, refusal.body(), extra=refusal.headers)
        except Exception:
            self.records.close(record, State.FAILED, time.time())
            raise

    def _options(self, request: Request, route: Route, taken: Taken) -> SimOptions:
        """The body's options, over the header's, over those of the plan that takes the request."""
        options = taken.options
        header = request.header(b"x-sim")
        if header is not None:
            try:
                options = options.over(read_options(orjson.loads(header)))
            except orjson.JSONDecodeError:
                raise Refusal(400, "The header x-sim must be JSON.") from None
        planned = self.faults.take(route, model=taken.model, stream=taken.stream)
        return options if planned is None else options.over(planned)

    def _embed(self, connection: Connection, taken: Taken, record: Record) -> None:
        model = self._known(taken.body.get("model", self.settings.models[0]))
        request = self._intake.embedding(taken)
        answered = embedding_body(request, model, record.id, int(record.received_s), self.settings.dimensions)
        record.prompt_tokens = request.prompt_tokens
        record.status = 200
        self.records.close(record, State.FINISHED, time.time())
        connection.respond(200, answered)

    def _generate(
        self, connection: Connection, route: Route, taken: Taken, options: SimOptions, record: Record
    ) -> None:
        request = self._intake.generation(taken, route)
        if options.tool_call and request.tool is None:
            request = replace(request, tool=first_tool(taken.body.get("tools")))
        if self._full():
            status = self.settings.overload_status
            raise Refusal(status, "The server is overloaded: its queue is full.", headers=b"retry-after: 1\r\n")
        plan = self._plan(request, options, record)
        record.planned_tokens = sum(choice.tokens for choice in plan.choices)
        work = (Stream if request.stream else Whole)(connection, plan, record, self.wheel, self._ended)
        work.accept()
        if self.settings.max_concurrency and self.running >= self.settings.max_concurrency:
            record.state = State.WAITING
            self.waiting.append(work)
        else:
            self._start(work)

    def _plan(self, request: GenerationRequest, options: SimOptions, record: Record) -> Plan:
        settings = self.settings
        try:
            choices = answer(request, options, seed=settings.seed, nonce=record.number, tokens=settings.tokens)
        except BadSchema as error:
            raise Refusal(400, str(error)) from None
        ttft_ms = settings.ttft_ms / settings.speed if options.ttft_ms is None else options.ttft_ms
        itl_ms = settings.itl_ms / settings.speed if options.itl_ms is None else options.itl_ms
        return Plan(
            request=request,
            choices=choices,
            options=options,
            answer_id=record.id,
            created_s=int(record.received_s),
            fingerprint=f"fp_{settings.replica}",
            ttft_s=ttft_ms / 1000,
            itl_s=itl_ms / 1000,
        )

    # --- slots ---

    def _full(self) -> bool:
        limit = self.settings.max_concurrency
        return bool(limit) and self.running >= limit and len(self.waiting) >= self.settings.max_queue

    def _start(self, work: Work) -> None:
        self.running += 1
        work.record.state = State.RUNNING
        work.start()

    def _ended(self, work: Work, state: State) -> None:
        record = work.record
        now_s = time.time()
        if record.disconnected:
            record.disconnected_s = now_s
        waited = record.state is State.WAITING
        self.records.close(record, state, now_s)
        if waited:
            self.waiting.remove(work)
            return
        self.running -= 1
        while self.waiting and self.running < self.settings.max_concurrency:
            self._start(self.waiting.popleft())

    # --- parts ---

    def _record(self, connection: Connection, request: Request, route: Route) -> Record:
        self._requests += 1
        given = request.header(b"x-request-id")
        request_id = None if given is None else given.decode("latin-1")
        prefix = "cmpl" if route is Route.COMPLETION else "embd" if route is Route.EMBEDDING else "chatcmpl"
        record = Record(
            number=self._requests,
            id=f"{prefix}-{request_id or format(self._ids.getrandbits(128), '032x')}",
            route=route.value,
            received_s=time.time(),
            connection=connection.number,
            request_id=request_id,
            headers=request.headers,
        )
        self.records.open(record)
        return record

    def _authorize(self, request: Request) -> None:
        key = self.settings.api_key
        if key is not None and request.header(b"authorization") != b"Bearer " + key.encode():
            raise Refusal(401, "Unauthorized")

    def _known(self, model: object) -> str:
        if not isinstance(model, str):
            raise Refusal(400, "`model` must be a string.", param="model")
        if model not in self.settings.models:
            raise Refusal(404, f"The model `{model}` does not exist.", param="model")
        return model

    def _fail_early(self, connection: Connection, options: SimOptions, record: Record | None = None) -> bool:
        """Do the fault that takes the place of an answer; False if it spares this request."""
        fault = options.fail
        if fault is Fault.CLOSE_WHEN_REUSED and connection.served == 0:
            return False
        if fault is Fault.HANG_BEFORE_HEAD:
            connection.answer = _Hanging(self, record)
            return True
        status = 0
        match fault:
            case Fault.REFUSE | Fault.RESET_BEFORE_HEAD:
                connection.reset()
            case Fault.CLOSE_BEFORE_HEAD | Fault.CLOSE_WHEN_REUSED:
                connection.close()
            case Fault.WRONG_CONTENT_TYPE:
                status = 200
                connection.respond(status, _HTML.replace(b"502 Bad Gateway", b"Welcome"), b"text/html; charset=utf-8")
            case Fault.BAD_GATEWAY_HTML:
                status = 502
                connection.respond(status, _HTML, b"text/html")
            case Fault.EMPTY_BODY:
                status = 200
                streamed = record is not None and record.stream
                connection.respond(status, b"", b"text/event-stream" if streamed else b"application/json")
            case _:
                status = int(fault or 500)
                wait_s = 1 if options.retry_after_s is None else options.retry_after_s
                extra = b"retry-after: %d\r\n" % wait_s if status in (429, 503) else b""
                refusal = Refusal(status, _SENTENCES[status])
                connection.respond(status, refusal.body(), extra=extra)
        if record is not None:
            record.status = status
            self.records.close(record, State.FAILED, time.time())
        return True


_SENTENCES = {
    400: "The request was refused as the fault plan wants.",
    429: "Too many requests, as the fault plan wants.",
    500: "The engine failed as the fault plan wants.",
    503: "The engine is overloaded as the fault plan wants.",
}


class _Hanging:
    """An answer that never comes; notes when the client gives up."""

    def __init__(self, engine: Engine, record: Record | None) -> None:
        self._engine = engine
        self._record = record

    def disconnected(self) -> None:
        """The client gave up."""
        record = self._record
        if record is not None:
            record.disconnected = True
            record.disconnected_s = time.time()
            self._engine.records.close(record, State.CANCELLED, time.time())

    def resumed(self) -> None:
        """Nothing was held back."""
