"""One running request on Triton: responses in, public events out.

Floor: edge. Joins a stream of responses to the pure readers and writers of ``backends.wire``. There is no task: the
connection's read pushes responses in here, and what became of all that came at once is pushed on in the same step.
While the client does not read or credit is asked for the stream is held, and flow control then holds the server back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from backends.protocol import Sink
from backends.triton_connection import InferStream
from backends.triton_responses import ResponseParser
from backends.wire.answer.writer import AnswerWriter
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest
from backends.wire.sampling import Piece
from backends.wire.triton.dialect import Reader
from backends.wire.triton.errors import transport_failure
from backends.wire.triton.grpc_messages import MessageReceiver
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
        send: sends the request; responses come to the receiver that it is given.
        reader: reads them.
        writer: makes public events of what was read.
        sink: gets those.
        idle_s: silence after which the model counts as dead.
        deadline_s: of the whole answer.
        max_answer_bytes: bound of the text of an answer that is not streamed.
        heard: told of good responses, so that it is known that the model lives.
        broke: told of every failure.
        gone: told once that nothing of the call is left, a moment after its answer.
    """

    __slots__ = (
        "_answer_bytes", "_broke", "_deadline_s", "_events", "_gone", "_has_answered", "_has_news", "_has_read_all",
        "_heard", "_idle_s", "_is_held", "_is_paused", "_is_stream", "_loop", "_max_answer_bytes", "_over", "_parse",
        "_parser", "_progress_s", "_read", "_reader", "_sink", "_stream", "_timer", "_writer", "last_byte_s",
    )  # fmt: skip

    def __init__(
        self,
        send: Callable[[MessageReceiver], InferStream],
        *,
        request: InferenceRequest,
        reader: Reader,
        writer: AnswerWriter,
        sink: Sink,
        idle_s: float,
        deadline_s: float,
        max_answer_bytes: int,
        heard: Callable[[], None],
        broke: Callable[[BackendFailure], None],
        gone: Callable[[TritonCall], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._is_stream = request.stream
        self._reader = reader
        self._read = reader.read
        self._parser = ResponseParser()
        self._parse = self._parser.parse
        self._writer = writer
        self._sink = sink
        self._idle_s = idle_s
        self._max_answer_bytes = max_answer_bytes
        self._heard = heard
        self._broke = broke
        self._gone: Callable[[TritonCall], None] | None = gone
        self._answer_bytes = 0
        self._events: list[bytes] = []  # that came in this read
        self._has_answered = self._has_news = False
        self._has_read_all = False
        self._is_paused = False
        self._is_held = False
        self._over = False
        self.last_byte_s = self._progress_s = self._loop.time()
        self._deadline_s = self._progress_s + deadline_s
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(idle_s, self._look_at_the_clock)
        self._stream = send(self)

    # -- backends.protocol.Call ----------------------------------------------------------------------------------------

    def observed(self) -> Observed:
        """What was pushed so far."""
        return self._writer.observed()

    def pause(self) -> None:
        """Read no more."""
        self._is_paused = True
        self._hold_or_release()

    def resume(self) -> None:
        """Read on."""
        self._is_paused = False
        self._hold_or_release()

    def go_on(self) -> None:
        """Ask for an allowance again, and hand out what was kept back."""
        if self._over or not self._writer.is_waiting:
            return
        try:
            if events := self._writer.go_on():
                self._events.append(events)
        except BackendFailure as failure:
            self._fail(failure)
            return
        self._push()
        self._stop_if_done()
        self._finish_if_read()
        self._hold_or_release()

    def cut(self, usage: TokenUsage) -> None:
        """Stop the engine, and end the stream as if it had reached its bound."""
        if self._over:
            return
        self._end()
        self._leave()
        events = self._writer.cut(usage)
        if events:
            self._sink.events(events)
        self._sink.finished(b"", self._writer.observed())

    def cancel(self) -> None:
        """Cancel the call, which the model sees."""
        if not self._over:
            self._end()
            self._leave()

    # -- backends.wire.triton.grpc_messages.MessageReceiver ------------------------------------------------------------

    def message(self, data: bytes) -> None:
        """A response."""
        if self._over or self._has_read_all:
            return  # the stream is let end by itself
        self._has_news = True
        try:
            outputs = self._parse(data, Phase.BODY if self._has_answered else Phase.HEAD)
            self._take(self._read(outputs))
            if self._parser.is_final and not self._over:
                self._end_of_answer()
        except Exception as error:
            self._fail_by(error)

    def settled(self) -> None:
        """Push what became of all that came at once."""
        if self._over or not self._has_news:
            return  # a head alone is no sign of life: it is the server's, not the model's
        self._has_news = False
        self.last_byte_s = self._progress_s = self._loop.time()
        self._heard()
        try:
            self._push()
        except Exception as error:
            self._fail_by(error)

    def ended(self, status: str, details: str) -> None:
        """The call is over."""
        if not self._over and not self._has_read_all:
            try:
                if status != "OK":
                    raise transport_failure(status, details, self._phase)
                self._end_of_answer()
            except Exception as error:
                self._fail_by(error)
        if self._over:
            self._leave()

    # -- reading -------------------------------------------------------------------------------------------------------

    def _take(self, pieces: Iterable[Piece]) -> None:
        if not self._has_answered:
            self._has_answered = True
            self._sink.accepted()
        if not self._is_stream:
            pieces = list(pieces)
            self._answer_bytes += sum(len(piece.text) for piece in pieces)
            if self._answer_bytes > self._max_answer_bytes:
                raise BackendFailure(FailureCode.TOO_LARGE, Phase.BODY)
        self._write(pieces)
        writer = self._writer
        if writer.is_waiting:
            self._hold_or_release()
        elif writer.is_done:
            self._stop_if_done()

    def _write(self, pieces: Iterable[Piece]) -> None:
        feed, events = self._writer.feed, self._events
        for piece in pieces:
            if event := feed(piece):
                events.append(event)

    def _end_of_answer(self) -> None:
        """The engine has said all; its end may still have to wait for an allowance."""
        self._has_read_all = True
        self._write(self._reader.finish())
        self._hold_or_release()
        self._finish_if_read()

    def _push(self) -> None:
        events = self._events
        if events:
            self._events = []
            self._sink.events(events[0] if len(events) == 1 else b"".join(events))

    def _hold_or_release(self) -> None:
        """Hold the stream while the client does not read or an allowance is asked for."""
        must_wait = (self._is_paused or self._writer.is_waiting) and not self._over
        if must_wait == self._is_held:
            return
        self._is_held = must_wait
        self._progress_s = self._loop.time()  # it may not speak, or could not
        if must_wait:
            self._stream.hold()
        else:
            self._stream.release()
            self._push()

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
            self._wait_for_its_end(STOP_GRACE_S)

    def _finish_if_read(self) -> None:
        if self._has_read_all and not self._writer.is_waiting and not self._over:
            self._finish()

    def _finish(self) -> None:
        self._push()
        if self._is_over():
            return  # the client left while it was written to
        self._end()
        self._wait_for_its_end(DRAIN_S)
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
        self._push()
        if self._is_over():
            return
        self._end()
        self._leave()
        self._broke(failure)
        self._sink.failed(failure)

    def _fail_by(self, error: Exception) -> None:
        """A failure of the backend, or a bug of ours: neither may reach the connection, which other streams share."""
        if isinstance(error, BackendFailure):
            self._fail(error)
            return
        log.error("an answer of Triton's could not be read", exc_info=error)
        self._events = []
        self._fail(BackendFailure(FailureCode.PROTOCOL, Phase.BODY))

    def _end(self) -> None:
        """Nothing is pushed any more; what still comes is read to its end, and forgotten."""
        self._over = True
        self._events = []
        self._drop_timer()
        if self._is_held:
            self._is_held = False
            self._loop.call_soon(self._stream.release)

    def _wait_for_its_end(self, seconds: float) -> None:
        """Let the call end by itself, for so long."""
        self._drop_timer()
        if self._gone is not None:
            self._timer = self._loop.call_later(seconds, self._leave)

    def _leave(self) -> None:
        """Cancel what is left of the call, if anything is; once."""
        self._drop_timer()
        gone, self._gone = self._gone, None
        if gone is not None:
            self._stream.cancel()
            gone(self)

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_at_the_clock(self) -> None:
        """A model that says nothing for too long is dead, whatever its server says of it."""
        now_s = self._loop.time()
        if self._is_held:
            self._progress_s = now_s  # it may not speak now
        left_s = min(self._progress_s + self._idle_s, self._deadline_s) - now_s
        self._timer = None
        if left_s > 0.001:
            self._timer = self._loop.call_later(left_s, self._look_at_the_clock)
        elif not self._over:
            if self._writer.is_done:
                self._finish()  # all was said, only the stream did not end
                self._leave()
            else:
                self._fail(BackendFailure(FailureCode.TIMEOUT, self._phase))
