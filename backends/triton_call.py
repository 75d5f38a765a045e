"""One running request on Triton: responses in, public events out.

Floor: edge. Joins a stream of responses to the pure readers and writers of ``backends.wire``. One task reads; what it
reads is pushed in the same step. Reading stops while the client does not read or credit is asked for, and gRPC's flow
control then holds the server back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from backends.protocol import Sink
from backends.triton_grpc import InferStream, StreamedResponse
from backends.wire.answer.writer import AnswerWriter
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest
from backends.wire.sampling import Piece
from backends.wire.triton.dialect import Reader
from backends.wire.usage import Observed, TokenUsage

log = logging.getLogger("pareta.triton")

DRAIN_S = 5.0
"""How long a stream that has said all may take to end. A cancel that is not needed is avoided: Triton 2.51 does not
survive one in some thousands."""
STOP_GRACE_S = 0.1
"""The same after a stop text that ended the answer for us."""


class TritonCall:
    """A running request; see `backends.protocol.Call`.

    Args:
        stream: the responses.
        reader: reads them.
        writer: makes public events of what was read.
        sink: gets those.
        idle_s: silence after which the model counts as dead.
        max_answer_bytes: bound of the text of an answer that is not streamed.
        heard: told of every good response, so that it is known that the model lives.
        broke: told of every failure.
    """

    __slots__ = (
        "_answer_bytes", "_broke", "_gate", "_has_answered", "_heard", "_idle", "_idle_s", "_is_paused", "_is_stream",
        "_loop", "_max_answer_bytes", "_over", "_progress_s", "_reader", "_sink", "_stream", "_task", "_writer",
        "last_byte_s",
    )  # fmt: skip

    def __init__(
        self,
        stream: InferStream,
        *,
        request: InferenceRequest,
        reader: Reader,
        writer: AnswerWriter,
        sink: Sink,
        idle_s: float,
        max_answer_bytes: int,
        heard: Callable[[], None],
        broke: Callable[[BackendFailure], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream = stream
        self._is_stream = request.stream
        self._reader = reader
        self._writer = writer
        self._sink = sink
        self._idle_s = idle_s
        self._max_answer_bytes = max_answer_bytes
        self._heard = heard
        self._broke = broke
        self._answer_bytes = 0
        self._has_answered = False
        self._is_paused = False
        self._over = False
        self._gate: asyncio.Event | None = None
        self.last_byte_s = self._progress_s = self._loop.time()
        self._idle: asyncio.TimerHandle | None = self._loop.call_later(idle_s, self._look_at_the_clock)
        self._task = self._loop.create_task(self._run())

    @property
    def task(self) -> asyncio.Task[None]:
        """What reads; it ends a moment after the answer."""
        return self._task

    # -- backends.protocol.Call ----------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """What was pushed so far."""
        return self._writer.observed()

    def pause(self) -> None:
        """Read no more."""
        self._is_paused = True

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._open_gate()

    def go_on(self) -> None:
        """Ask for an allowance again, and hand out what was kept back."""
        if self._over or not self._writer.is_waiting:
            return
        try:
            self._emit(self._writer.go_on())
        except BackendFailure as failure:
            self._fail(failure)
            return
        self._stop_if_done()
        self._open_gate()

    def cut(self, usage: TokenUsage) -> None:
        """Stop the engine, and end the stream as if it had reached its bound."""
        if self._over:
            return
        self._end()
        self._stream.cancel()
        events = self._writer.cut(usage)
        if events:
            self._sink.events(events)
        self._sink.finished(b"", self._writer.observed())

    def cancel(self) -> None:
        """Cancel the call, which the model sees."""
        if not self._over:
            self._end()
            self._stream.cancel()
            self._task.cancel()

    # -- reading -------------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._read_all()
        except BackendFailure as failure:
            self._fail(failure)
        except asyncio.CancelledError:
            if not self._over:
                # The loop is being taken down; nobody may wait for this answer.
                self._fail(BackendFailure(FailureCode.BROKEN, self._phase))
            raise
        except Exception:
            log.exception("an answer of Triton's could not be read")
            self._fail(BackendFailure(FailureCode.PROTOCOL, Phase.BODY))
        finally:
            self._drop_timer()

    async def _read_all(self) -> None:
        is_final = False
        while not is_final:
            if self._is_paused or self._writer.is_waiting:
                await self._may_go_on()
            response = await self._stream.read(self._phase)
            if self._is_over():
                return await self._drain()
            if response is None:
                break
            self.last_byte_s = self._progress_s = self._loop.time()
            self._heard()
            self._take(response)
            if self._is_over():
                return await self._drain()
            is_final = response.is_final
        self._push(self._reader.finish())
        while self._writer.is_waiting and not self._is_over():
            await self._may_go_on()
        if not self._is_over():
            self._finish()
        return await self._drain()

    async def _may_go_on(self) -> None:
        """Wait while the client does not read or an allowance is asked for."""
        while (self._is_paused or self._writer.is_waiting) and not self._over:
            self._gate = asyncio.Event()
            await self._gate.wait()

    async def _drain(self) -> None:
        """Let the call end by itself."""
        try:
            async with asyncio.timeout(DRAIN_S):
                while await self._stream.read(Phase.BODY) is not None:
                    pass
        except (TimeoutError, BackendFailure):
            self._stream.cancel()

    def _take(self, response: StreamedResponse) -> None:
        pieces = self._reader.read(response.outputs)
        if not self._has_answered:
            self._has_answered = True
            self._sink.accepted()
        if not self._is_stream:
            self._answer_bytes += sum(len(piece.text) for piece in pieces)
            if self._answer_bytes > self._max_answer_bytes:
                raise BackendFailure(FailureCode.TOO_LARGE, Phase.BODY)
        self._push(pieces)
        self._stop_if_done()

    def _push(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            self._emit(self._writer.feed(piece))

    def _emit(self, events: bytes) -> None:
        if events:
            self._sink.events(events)

    def _is_over(self) -> bool:
        """Asked again after each step: what was pushed may have ended it."""
        return self._over

    # -- ending --------------------------------------------------------------------------------------------------------

    @property
    def _phase(self) -> Phase:
        return Phase.BODY if self._has_answered else Phase.HEAD

    def _stop_if_done(self) -> None:
        """A stop text ended every choice, and the engine may not know: it need not go on."""
        writer = self._writer
        if writer.is_done and writer.engine_goes_on and not writer.is_waiting and not self._over:
            self._finish()
            # It was told of the stop texts too, and may be about to end by itself.
            self._loop.call_later(STOP_GRACE_S, self._stream.cancel)

    def _finish(self) -> None:
        self._end()
        try:
            if self._is_stream:
                body, last = b"", self._writer.finish()
                if last:
                    self._sink.events(last)
            else:
                body = self._writer.whole()
        except BackendFailure as failure:
            self._broke(failure)
            self._sink.failed(failure)
            return
        self._sink.finished(body, self._writer.observed())

    def _fail(self, failure: BackendFailure) -> None:
        if self._over:
            return
        self._end()
        self._stream.cancel()
        self._broke(failure)
        self._sink.failed(failure)

    def _end(self) -> None:
        self._over = True
        self._drop_timer()
        self._open_gate()

    def _drop_timer(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _open_gate(self) -> None:
        if self._gate is not None:
            self._gate.set()
            self._gate = None
            self._progress_s = self._loop.time()

    def _look_at_the_clock(self) -> None:
        """A model that says nothing for too long is dead, whatever its server says of it."""
        if self._gate is not None:
            self._progress_s = self._loop.time()  # it may not speak now
        left_s = self._progress_s + self._idle_s - self._loop.time()
        if left_s > 0.001:
            self._idle = self._loop.call_later(left_s, self._look_at_the_clock)
        elif not self._over:
            self._idle = None
            if self._writer.is_done:
                self._stream.cancel()
                self._finish()  # all was said, only the stream did not end
            else:
                self._fail(BackendFailure(FailureCode.TIMEOUT, self._phase))
