"""The client's side of an exchange, as the pipeline and the relay see it.

Floor: dataplane. `gateway.dataplane.server.Connection` is the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gateway.dataplane import heads


class Reply(Protocol):
    """How an exchange answers. Writes never wait: a client that reads too slowly calls ``on_pause``."""

    on_pause: Callable[[], None] | None
    on_resume: Callable[[], None] | None
    is_paused: bool
    paused_since_s: float

    @property
    def is_gone(self) -> bool:
        """Whether the client has left."""

    @property
    def has_begun(self) -> bool:
        """Whether a response head was written."""

    def send(self, status: int, body: bytes, *, extra: bytes = b"", content_type: bytes = heads.JSON) -> None:
        """Answer with a whole body; ``extra`` is encoded header lines."""

    def begin_stream(self, *, extra: bytes = b"") -> None:
        """Write the head of an event stream."""

    def write(self, data: bytes) -> None:
        """Write whole events."""

    def end_stream(self, data: bytes) -> None:
        """Write the last events and end the body properly."""

    def break_stream(self, data: bytes) -> None:
        """Write the last event and close without ending the body."""

    def abort(self) -> None:
        """Drop the connection."""
