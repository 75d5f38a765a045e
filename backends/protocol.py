"""The port to inference: what the gateway asks of a backend and how a backend answers.

A backend pushes: its edge calls the `Sink` from the event loop as bytes arrive, with no queue and no task switch
per chunk. Everything a sink is given is already public: real model ids, engine extras and raw errors stay
behind this line. Backends know inference, never money.
"""

from __future__ import annotations

from typing import Protocol

from backends.wire.failure import BackendFailure
from backends.wire.request import InferenceRequest
from backends.wire.usage import Observed, TokenUsage


class Sink(Protocol):
    """Where a backend pushes an answer. Calls come in order; after ``finished`` or ``failed`` there are none."""

    def accepted(self) -> None:
        """The backend has begun a good answer (HTTP: a 200 head of the right type)."""

    def events(self, data: bytes) -> None:
        """Whole SSE events, sanitized, ready for the client; never ``[DONE]``."""

    def allowance(self, seen: Observed) -> int:
        """How many deltas of a stream may still come after those ``seen``, see `backends.wire.allowance`.

        After `WAIT` nothing comes until ``Call.go_on`` or ``Call.cut``. Asked seldom, from within ``Call``'s work.
        """

    def finished(self, body: bytes, observed: Observed) -> None:
        """The answer is complete. ``body`` is the JSON of a whole answer, empty for a stream."""

    def failed(self, failure: BackendFailure) -> None:
        """The answer broke off."""


class Call(Protocol):
    """A running request, as its caller sees it."""

    @property
    def last_byte_s(self) -> float:
        """Loop time of the last byte received (or of the sending)."""

    def observed(self) -> Observed:
        """What was pushed so far."""

    def pause(self) -> None:
        """Read no more from the backend until ``resume``; backpressure."""

    def resume(self) -> None:
        """Read on."""

    def go_on(self) -> None:
        """Ask for an allowance again after `WAIT`."""

    def cut(self, usage: TokenUsage) -> None:
        """Stop the work at once and end the stream properly, with ``finish_reason`` ``length`` and this usage."""

    def cancel(self) -> None:
        """Stop the work at once; the sink hears nothing more."""


class Backend(Protocol):
    """One replica that can be asked."""

    async def open(self, request: InferenceRequest, sink: Sink) -> Call:
        """Send a request.

        Raises:
            BackendFailure: no connection could be had (phase ``connect``).
        """

    async def probe(self, timeout_s: float) -> bool:
        """Whether the replica says that it is healthy."""

    async def close(self) -> None:
        """Keep no connection any more; running calls go on."""
