"""Relay: one answer on its way from a backend to the client.

Floor: dataplane. The backend pushes sanitized events into the relay, which writes them to the client's transport in
the same call: no queue, no task switch, no parse. A client that reads too slowly pauses the backend's connection. The
task that runs the exchange sleeps on one future for the whole answer.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from backends.protocol import Backend, Call
from backends.wire.allowance import UNBOUNDED
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest
from backends.wire.usage import Observed
from gateway.core import errors
from gateway.core.errors import ApiError
from gateway.core.exchange import Ending, Exchange
from gateway.core.idempotency import Recording
from gateway.core.ports import Recorder
from gateway.dataplane.extend import CreditSource, Extension
from gateway.dataplane.reply import Reply
from gateway.dataplane.settle import delivered_usage

NOTHING = Observed(None, 0)
HEARTBEAT = b": keep-alive\n\n"


@dataclass(slots=True)
class Answer:
    """A complete answer; ``body`` is empty for a stream, whose events were written already.

    ``is_cut``: we ended it at what is paid for.
    """

    body: bytes
    observed: Observed
    is_cut: bool = False


class Interrupted(Exception):
    """The gateway itself ends an answer that is under way: a revoked key, a shutdown."""

    def __init__(self, error: ApiError, ending: Ending) -> None:
        super().__init__(error.code)
        self.error = error
        self.ending = ending


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a relay waits for whom, in seconds."""

    deadline_s: float
    idle_s: float
    commit_stream_s: float
    heartbeat_s: float
    write_s: float


class Relay:
    """The sink of one exchange. It outlives a failed attempt: the next replica pushes into the same relay.

    Args:
        exchange: gets the times of first byte and end.
        reply: the client.
        head: header lines for the stream's head.
        patience: bounds on waiting.
        recorder: hears of content that was passed on.
        recording: gets a copy of a stream's events, if they may have to be sent again.
    """

    __slots__ = (
        "_call", "_done", "_extension", "_head", "_interrupted", "_is_cut", "_last_content_s", "_last_write_s", "_loop",
        "_patience", "_recording", "_relayed", "_reply", "_resumed_s", "_started_s", "exchange",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        reply: Reply,
        *,
        head: bytes,
        patience: Patience,
        recorder: Recorder,
        recording: Recording | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.exchange = exchange
        self._reply = reply
        self._head = head
        self._patience = patience
        self._relayed = recorder.relayed
        self._recording = recording
        self._call: Call | None = None
        self._done: asyncio.Future[Answer] | None = None
        self._interrupted: Interrupted | None = None
        self._extension: Extension | None = None
        self._is_cut = False
        self._started_s = self._last_write_s = time.monotonic()
        self._last_content_s = self._resumed_s = 0.0
        reply.on_pause = self._pause
        reply.on_resume = self._resume

    def bound(self, source: CreditSource, *, tokens_held: int, rate_nanos: int) -> None:
        """Let no more be delivered than is held; see `gateway.dataplane.extend.Extension`."""
        self._extension = Extension(
            self.exchange, source, tokens_held=tokens_held, rate_nanos=rate_nanos, answered=self._may_go_on
        )

    async def ask(self, backend: Backend, request: InferenceRequest) -> Answer:
        """Let one backend answer.

        Raises:
            BackendFailure: it could not.
            Interrupted: the gateway ended it.
        """
        if self._interrupted is not None:
            raise self._interrupted
        self._done = self._loop.create_future()
        self._call = None
        if self.exchange.upstream_sent_s is None:
            self.exchange.upstream_sent_s = time.monotonic()
        try:
            self._call = await backend.open(request, self)
            if self._reply.is_paused:
                self._call.pause()
            answer = await self._done
            # It knows this relay: in such a circle a whole answer would lie until the collector comes round.
            self._call = None
            return answer
        except BaseException:
            if self._call is not None:
                self._call.cancel()
            raise
        finally:
            self._done = None
            if self._extension is not None:
                self._extension.stop()
            self.exchange.upstream_done_s = time.monotonic()

    def observed(self) -> Observed:
        """What was passed on so far."""
        return self._call.observed() if self._call is not None else NOTHING

    def let_go(self) -> None:
        """It is over and everything is known of it: leave the circles it stands in.

        A stream that its client left has lived through collections; left in a circle, it would lie until the collector
        looks at what is old, which is hardly ever.
        """
        self._call = None
        self._extension = None
        self._interrupted = None
        self._reply.on_pause = self._reply.on_resume = None

    def interrupt(self, error: ApiError, ending: Ending) -> None:
        """End the answer from our side."""
        self._interrupted = Interrupted(error, ending)
        self._fail(self._interrupted)

    # -- backends.protocol.Sink ------------------------------------------------------------------------------

    def accepted(self) -> None:
        """The backend answers: a stream begins, so that no client tries again."""
        ask = self.exchange.ask
        if ask is not None and ask.stream:
            self._begin()

    def events(self, data: bytes) -> None:
        """Pass events on."""
        now_s = time.monotonic()
        self._reply.write(data)
        if self._recording is not None:
            self._recording.add(data)
        self._last_write_s = now_s
        if self.exchange.first_byte_s is None:
            self.exchange.first_byte_s = now_s
        else:
            self._relayed(now_s - self._last_content_s)
        self._last_content_s = now_s

    def allowance(self, seen: Observed) -> int:
        """How far the answer may go for what is held."""
        return UNBOUNDED if self._extension is None else self._extension.allowance(seen)

    def finished(self, body: bytes, observed: Observed) -> None:
        """The answer is complete."""
        if self._done is not None and not self._done.done():
            self._done.set_result(Answer(body, observed, self._is_cut))

    def failed(self, failure: BackendFailure) -> None:
        """The backend broke off."""
        self._fail(failure)

    # -- time ------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """Look at the clock; called a few times a second for every open exchange."""
        patience, reply, call = self._patience, self._reply, self._call
        if now_s - self._started_s > patience.deadline_s:
            self.interrupt(errors.deadline_exceeded(), Ending.FAILED)
        elif reply.is_paused:
            if now_s - reply.paused_since_s > patience.write_s:
                reply.abort()  # a client that reads nothing for so long is gone
        elif reply.has_begun:
            if call is not None and now_s - max(call.last_byte_s, self._resumed_s) > patience.idle_s:
                self._time_out()
            elif now_s - self._last_write_s > patience.heartbeat_s:
                self._beat(now_s)
        elif self._is_stream() and now_s - self._started_s > patience.commit_stream_s:
            self._begin()
            self._beat(now_s)

    # -- inside ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if not self._reply.has_begun:
            self._reply.begin_stream(extra=self._head)
            self._last_write_s = time.monotonic()

    def _beat(self, now_s: float) -> None:
        self._reply.write(HEARTBEAT)
        self._last_write_s = now_s

    def _time_out(self) -> None:
        # Silence, and nothing passed on yet: another replica may do better.
        phase = Phase.HEAD if self.exchange.first_byte_s is None else Phase.BODY
        self._fail(BackendFailure(FailureCode.TIMEOUT, phase))

    def _fail(self, error: Exception) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(error)

    def _may_go_on(self, is_granted: bool) -> None:
        call = self._call
        if call is None:
            return
        if is_granted:
            call.go_on()
        else:
            self._is_cut = True
            call.cut(delivered_usage(self.exchange, call.observed()))

    def _is_stream(self) -> bool:
        ask = self.exchange.ask
        return ask is not None and ask.stream

    def _pause(self) -> None:
        if self._call is not None:
            self._call.pause()

    def _resume(self) -> None:
        self._resumed_s = time.monotonic()
        if self._call is not None:
            self._call.resume()
