"""Finish: the end of an answer, with its receipt, the same for a first run and for a replay.

Floor: dataplane. The receipt is ``X-Pareta-Billed`` in whole micro-USD, floored: a header of a whole answer, a comment
before ``[DONE]`` of a stream.
"""

from __future__ import annotations

from gateway.dataplane.reply import Reply
from ledger.core.money import micros_floor


def finish_stream(reply: Reply, *, billed_nanos: int, events: bytes = b"") -> None:
    """End a stream; ``events`` come before the receipt."""
    reply.end_stream(events + b": X-Pareta-Billed: %d\n\ndata: [DONE]\n\n" % micros_floor(billed_nanos))


def finish_whole(reply: Reply, body: bytes, *, billed_nanos: int, extra: bytes) -> None:
    """Send a whole answer; ``extra`` is encoded header lines."""
    reply.send(200, body, extra=extra + b"X-Pareta-Billed: %d\r\n" % micros_floor(billed_nanos))
