"""The life of one request inside a model: tokens when they are due, faults on demand, an end when nobody wants it.

Whether a request was cancelled is asked of the server between tokens, and while nothing is due; asking costs a message
between two processes, so it is not done for every token.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import triton_python_backend_utils as pb_utils  # type: ignore[import-not-found]  # it exists inside Triton only

from backends.triton_server.books import Books
from backends.triton_server.generation import Choice
from backends.triton_server.steering import BEFORE, Fault, Steering

CANCEL_CHECK_S = 0.2


@dataclass(slots=True)
class Change:
    """What is new of one choice. `finish` is set with its last token; `text` and `total` are of all tokens so far."""

    choice: int
    new: bytes
    tokens: int
    text: bytes
    total: int
    finish: str | None
    stop: str | None


class Form(Protocol):
    """How an interface writes responses."""

    def responses(self, changes: Sequence[Change]) -> list[list[Any]]:
        """The output tensors of each response; there may be none."""

    def cancelled(self) -> str | None:
        """The text of the error that a cancelled request ends with, if the interface sends one."""

    @property
    def final_apart(self) -> bool:
        """Whether the end comes after the last response, in an empty one."""


class TokenStream:
    """One request. Woken by the scheduler's thread only."""

    def __init__(
        self,
        sender: Any,
        form: Form,
        choices: list[Choice],
        steering: Steering,
        books: Books,
        record: dict[str, Any],
        *,
        stream: bool,
        ttft_s: float,
        itl_s: float,
    ) -> None:
        self._sender = sender
        self._form = form
        self._choices = choices
        self._steering = steering
        self._books = books
        self._record = record
        self._stream = stream
        self._ttft_s = ttft_s
        self._itl_s = itl_s
        self._position = 0
        self._length = max(len(choice.pieces) for choice in choices)
        self._texts = [b""] * len(choices)
        self._hangs = False
        self._due_s = self._check_s = 0.0
        apart = steering.final_apart
        self._final_apart = form.final_apart if apart is None else apart

    def begin(self, now_s: float) -> float:
        """It runs from now on."""
        self._books.count("active")
        whole_s = 0.0 if self._stream else self._itl_s * max(0, self._length - 1)
        self._due_s = now_s + self._ttft_s + whole_s
        self._check_s = now_s + CANCEL_CHECK_S
        return min(self._due_s, self._check_s)

    def wake(self, now_s: float) -> float | None:
        """Send what is due. A model that fails for a reason of its own says so to whoever asked."""
        try:
            return self._wake(now_s)
        except Exception as error:
            self._fail(f"The model of the test has a bug: {error!r}")
            return None

    def _wake(self, now_s: float) -> float | None:
        if now_s >= self._check_s:
            self._check_s = now_s + CANCEL_CHECK_S
            if self._sender.is_cancelled():
                self._end_cancelled()
                return None
        if self._hangs:
            return self._check_s
        if now_s < self._due_s:
            return min(self._due_s, self._check_s)
        fault = self._fault_now()
        if fault is not None:
            return self._strike(fault)
        if not self._stream:
            return self._advance(self._length, whole=True)
        self._due_s += self._itl_s
        return self._advance(self._steering.burst)

    def _advance(self, tokens: int, *, whole: bool = False) -> float | None:
        steering = self._steering
        upto = min(self._length, self._position + tokens)
        if steering.fail is not None and not whole and steering.fail not in (*BEFORE, Fault.NO_TEXT):
            upto = min(upto, steering.after_tokens)
        changes = [change for index in range(len(self._choices)) if (change := self._change(index, upto)) is not None]
        self._position = upto
        self._record["tokens"] += sum(change.tokens for change in changes)
        responses = self._form.responses(changes)
        last = upto >= self._length
        for number, tensors in enumerate(responses, 1):
            self._record["responses"] += 1
            if last and number == len(responses) and not self._final_apart:
                self._finish(pb_utils.InferenceResponse(tensors))
                return None
            self._sender.send(pb_utils.InferenceResponse(tensors))
        if last:
            self._finish(None)
            return None
        return min(self._due_s, self._check_s)

    def _change(self, index: int, upto: int) -> Change | None:
        choice = self._choices[index]
        length = len(choice.pieces)
        if self._position >= length and not (self._position == 0 == length):
            return None  # it has ended already
        pieces = choice.pieces[self._position : upto]
        new = b"".join(pieces)
        self._texts[index] += new
        ended = upto >= length
        return Change(
            choice=index,
            new=new,
            tokens=len(pieces),
            text=self._texts[index],
            total=min(upto, length),
            finish=choice.finish if ended else None,
            stop=choice.stop if ended else None,
        )

    # -- faults ----------------------------------------------------------------------------------------------

    def _fault_now(self) -> Fault | None:
        fault = self._steering.fail
        if fault is None or fault is Fault.NO_TEXT:
            return None
        # What strikes in the middle of a stream strikes a whole answer instead of being sent.
        strikes = fault in BEFORE or not self._stream or self._position >= self._steering.after_tokens
        return fault if strikes else None

    def _strike(self, fault: Fault) -> float | None:
        if fault in (Fault.DIE_BEFORE, Fault.DIE_MID_STREAM):
            os.kill(os.getpid(), signal.SIGKILL)
        if fault in (Fault.HANG, Fault.HANG_MID_STREAM):
            self._hangs = True
            return self._check_s
        if fault in (Fault.ERROR_BEFORE, Fault.ERROR_MID_STREAM):
            self._fail(self._steering.message)
        else:
            self._finish(None)
        return None

    # -- ends ------------------------------------------------------------------------------------------------

    def _finish(self, response: Any) -> None:
        # Before the last response is sent: whoever has it may ask for the counts at once.
        self._close("finished")
        flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is None:
            self._sender.send(flags=flags)
        else:
            self._sender.send(response, flags=flags)

    def _end_cancelled(self) -> None:
        self._close("cancelled")
        text = self._form.cancelled()
        if text is None:
            self._sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        else:
            send_error(self._sender, text, pb_utils.TritonError.CANCELLED)

    def _fail(self, text: str) -> None:
        self._close("failed")
        send_error(self._sender, text)

    def _close(self, state: str) -> None:
        if self._record["state"] != "running":
            return
        self._record["state"] = state
        self._books.count("active", -1)
        self._books.count(state)


def send_error(sender: Any, text: str, code: int | None = None) -> None:
    """End a request with an in-band error."""
    error = pb_utils.TritonError(text) if code is None else pb_utils.TritonError(text, code)
    response = pb_utils.InferenceResponse(output_tensors=[], error=error)
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
