"""A backend that speaks the OpenAI HTTP API: vLLM, SGLang, trtllm-serve, llama.cpp's server, our simulator.

Floor: edge. Joins a pooled connection to the pure translators of ``backends.wire`` and pushes what they return to
the sink, in the same callback in which the bytes arrived.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from backends.connection import EngineConnection
from backends.pool import Address, ConnectionPool
from backends.protocol import Sink
from backends.wire.chunk_shape import Habits
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.openai_answer import rebuild_answer
from backends.wire.openai_request import encode_body, refusal
from backends.wire.openai_stream import StreamRewriter
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage

MAX_REFUSAL_BYTES = 64 * 1024
NOTHING_OBSERVED = Observed(None, 0)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one backend's traffic."""

    connect_timeout_s: float = 5.0
    max_connections: int = 4096
    max_idle: int = 256
    idle_s: float = 30.0
    max_answer_bytes: int = 32 * 1024 * 1024
    max_event_bytes: int = 1024 * 1024


class OpenAIHttpBackend:
    """One replica behind an OpenAI-compatible HTTP address.

    Args:
        url: root of the engine, with or without ``/v1``.
        model: the real model id sent upstream.
        api_key: bearer token of the engine, if it wants one.
        health_path: what `probe` asks for.
        limits: bounds.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self, url: str, *, model: str, api_key: str | None = None, health_path: str = "/health", limits: HttpLimits
    ) -> None:
        self._address = Address.parse(url)
        self._model = model
        self._limits = limits
        self._pool = ConnectionPool(
            self._address,
            connect_timeout_s=limits.connect_timeout_s,
            max_connections=limits.max_connections,
            max_idle=limits.max_idle,
            idle_s=limits.idle_s,
        )
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        common = f"Host: {self._address.authority}\r\nUser-Agent: pareta-gateway\r\n{authorization}"
        # What precedes a request's length, by kind and whether it streams.
        self._posts = {
            (kind, stream): (
                f"POST {self._address.prefix}/v1/{kind.value} HTTP/1.1\r\n{common}Content-Type: application/json\r\n"
                f"Accept: {'text/event-stream' if stream else 'application/json'}\r\nContent-Length: "
            ).encode()
            for kind in Kind
            for stream in (False, True)
        }
        self.habits = {kind: Habits() for kind in Kind}
        self._probe_request = f"GET {self._address.prefix}{health_path} HTTP/1.1\r\n{common}\r\n".encode()

    async def open(self, request: InferenceRequest, sink: Sink) -> HttpCall:
        """Send a request; see `backends.protocol.Backend.open`."""
        encoded = self._encode(request)  # first: what can't be written must not take a connection
        connection = self._pool.take_idle() or await self._pool.connect()
        call = HttpCall(self, connection, request, encoded, sink)
        call.send()
        return call

    async def probe(self, timeout_s: float) -> bool:
        """Whether the health path answers 200 in time."""
        try:
            async with asyncio.timeout(timeout_s):
                # A pool that is full of running requests says nothing against the replica.
                connection = await self._pool.connect(beyond_bound=True)
                probe = _Probe()
                connection.send(self._probe_request, probe)
                try:
                    return await probe.healthy
                finally:
                    connection.abort()
                    self._pool.give_back(connection)
        except (TimeoutError, BackendFailure):
            return False

    async def close(self) -> None:
        """Keep no connection any more; running calls go on."""
        self._pool.close()

    def _encode(self, request: InferenceRequest) -> bytes:
        """The whole HTTP request."""
        body = encode_body(request, model=self._model)
        return b"%b%d\r\n\r\n%b" % (self._posts[request.kind, request.stream], len(body), body)

    # -- used by HttpCall ----------------------------------------------------------------------------------------------

    async def reconnect(self) -> EngineConnection:
        """A fresh connection for a request whose kept one had been closed by the engine meanwhile."""
        return await self._pool.connect()

    def release(self, connection: EngineConnection) -> None:
        """A call is over with its connection."""
        self._pool.give_back(connection)

    @property
    def limits(self) -> HttpLimits:
        """The bounds."""
        return self._limits


class HttpCall:
    """One running request: receives from its connection, pushes to its sink."""

    __slots__ = (
        "_answer", "_answer_bytes", "_backend", "_connection", "_encoded", "_has_ended", "_holding", "_is_paused",
        "_over", "_request", "_retry", "_retry_after", "_rewriter", "_sink", "_status",
    )  # fmt: skip

    def __init__(
        self,
        backend: OpenAIHttpBackend,
        connection: EngineConnection,
        request: InferenceRequest,
        encoded: bytes,
        sink: Sink,
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._holding = True
        self._request = request
        self._encoded = encoded
        self._sink = sink
        self._status = 0
        self._answer: list[bytes] = []
        self._answer_bytes = 0
        self._retry_after: str | None = None
        self._rewriter: StreamRewriter | None = None
        self._over = False
        self._is_paused = False
        self._has_ended = False
        self._retry: asyncio.Task[None] | None = None

    def send(self) -> None:
        """Write the request."""
        self._connection.send(self._encoded, self)

    # -- backends.protocol.Call ----------------------------------------------------------------------------------------

    @property
    def last_byte_s(self) -> float:
        """When the last byte came from the engine, by `time.monotonic`."""
        return self._connection.last_byte_s

    def observed(self) -> Observed:
        """What was pushed so far."""
        return self._rewriter.observed() if self._rewriter else NOTHING_OBSERVED

    def pause(self) -> None:
        """Stop reading from the engine."""
        self._is_paused = True
        self._read_or_not()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._read_or_not()

    def go_on(self) -> None:
        """Ask for an allowance again, and go on with what was kept back."""
        if self._over or self._rewriter is None or not self._rewriter.is_waiting:
            return
        self._rewriter.is_waiting = False
        self.body(b"")
        if self._has_ended:
            self.ended()
        else:
            self._read_or_not()

    def cut(self, usage: TokenUsage) -> None:
        """Stop the engine, and end the stream as if it had reached its bound."""
        if self._over or self._rewriter is None:
            return
        self._close()
        self._sink.events(self._rewriter.cut(usage))
        self._sink.finished(b"", self._rewriter.observed())

    def cancel(self) -> None:
        """Close the connection, which every engine takes as an abort."""
        if self._retry is not None:
            self._retry.cancel()
        if not self._over:
            self._close()

    # -- AnswerReceiver ------------------------------------------------------------------------------------------------

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        """Begin a stream, a whole answer or a refusal."""
        self._status = status
        self._encoded = b""  # it will not be sent again
        if status != 200:
            self._retry_after = headers.get(b"retry-after", b"").decode("latin-1") or None
            return
        wanted = b"text/event-stream" if self._request.stream else b"application/json"
        if not headers.get(b"content-type", b"").lower().startswith(wanted):
            self._fail(BackendFailure(FailureCode.PROTOCOL, Phase.HEAD))
            return
        if self._request.stream:
            self._rewriter = StreamRewriter(
                self._request,
                limit_bytes=self._backend.limits.max_event_bytes,
                allow=self._sink.allowance,
                habits=self._backend.habits[self._request.kind],
            )
        self._sink.accepted()

    def body(self, data: bytes) -> None:
        """Translate and push, or collect."""
        if self._over:
            return
        rewriter = self._rewriter
        if rewriter is not None:
            try:
                events = rewriter.feed(data)
            except BackendFailure as failure:
                self._fail(failure)
                return
            if events:
                self._sink.events(events)
            if rewriter.is_waiting:
                self._read_or_not()
            return
        self._answer_bytes += len(data)
        if self._status != 200:
            if self._answer_bytes <= MAX_REFUSAL_BYTES:
                self._answer.append(data)
            else:
                self._fail(self._refusal())
            return
        if self._answer_bytes > self._backend.limits.max_answer_bytes:
            self._fail(BackendFailure(FailureCode.TOO_LARGE, Phase.BODY))
            return
        self._answer.append(data)

    def ended(self) -> None:
        """The engine said all: finish the stream, rebuild the answer, or read the refusal."""
        if self._over:
            return
        if self._rewriter is not None and self._rewriter.is_waiting:
            self._has_ended = True  # told when the rest of it may be handed out
            return
        self._over = True
        self._release()
        try:
            if self._status != 200:
                raise self._refusal()
            if self._rewriter is not None:
                last = self._rewriter.finish()
                if last:
                    self._sink.events(last)
                body, observed = b"", self._rewriter.observed()
            else:
                answer = self._answer
                body, observed = rebuild_answer(answer[0] if len(answer) == 1 else b"".join(answer), self._request)
        except BackendFailure as failure:
            self._sink.failed(failure)
            return
        except Exception:
            # A bug of ours; whoever waits must not find out by the deadline.
            self._sink.failed(BackendFailure(FailureCode.PROTOCOL, Phase.BODY))
            raise
        self._sink.finished(body, observed)

    def lost(self, *, malformed: bool) -> None:
        """The connection broke; a kept one that died before its first byte is replaced once."""
        if self._over:
            return
        if self._connection.reused and self._status == 0 and not malformed:
            self._release()
            self._retry = asyncio.get_running_loop().create_task(self._send_again())
            return
        phase = Phase.BODY if self._status else Phase.HEAD
        # An engine that breaks off inside its answer was there; "not ready yet" would be the wrong word for it.
        gone = FailureCode.BROKEN if self._status else FailureCode.UNREACHABLE
        code = FailureCode.PROTOCOL if malformed else gone
        if self._rewriter is not None and self._rewriter.done:
            self.ended()  # [DONE] was here; only the transfer's last chunk is missing
            return
        self._fail(BackendFailure(code, phase))

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _send_again(self) -> None:
        try:
            self._connection = await self._backend.reconnect()
        except BackendFailure as failure:
            self._over = True
            self._sink.failed(failure)
            return
        self._holding = True
        self.send()

    def _read_or_not(self) -> None:
        """Read from the engine unless the client can't take more or the next delta is not allowed yet."""
        transport = self._connection.transport
        if self._over or self._has_ended or transport is None:
            return
        if self._is_paused or (self._rewriter is not None and self._rewriter.is_waiting):
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _refusal(self) -> BackendFailure:
        return refusal(self._status, b"".join(self._answer), self._retry_after)

    def _fail(self, failure: BackendFailure) -> None:
        self._close()
        self._sink.failed(failure)

    def _close(self) -> None:
        self._over = True
        self._connection.abort()
        self._release()

    def _release(self) -> None:
        if self._holding:
            self._holding = False
            self._backend.release(self._connection)


class _Probe:
    """Receiver of a health answer: only its status counts."""

    def __init__(self) -> None:
        self.healthy: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        del headers
        self._tell(status == 200)

    def body(self, data: bytes) -> None:
        pass

    def ended(self) -> None:
        self._tell(False)

    def lost(self, *, malformed: bool) -> None:
        del malformed
        self._tell(False)

    def _tell(self, healthy: bool) -> None:
        if not self.healthy.done():
            self.healthy.set_result(healthy)
