"""Idempotency keys: one charge for a POST that a client sends again.

Floor: core (pure). A key belongs to an organization and a route. It is claimed with the hold and, in the same step as
the charge, either given back (the work failed or was abandoned, so a repeat may work) or kept with the outcome, which a
repeat gets instead of a second answer. Kept for 24 hours, a bounded number for each organization.
"""

from __future__ import annotations

import hashlib
import zlib
from base64 import b64decode, b64encode
from dataclasses import dataclass

import orjson

from gateway.core import errors
from gateway.core.errors import Refused

MAX_KEY_LETTERS = 255
MAX_OUTCOME_BYTES = 1024 * 1024
"""A larger answer is not kept; a repeat of its key is refused instead of being charged again."""

MAX_KEPT_LETTERS = 128 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a repeat is answered with: the body of a whole answer, or the events of a stream without their end."""

    stream: bool
    body: bytes


class Recording:
    """Collects a stream's events while they pass; lets go of them when they grow too large."""

    __slots__ = ("_pieces", "_size_bytes")

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size_bytes = 0

    def add(self, events: bytes) -> None:
        """Take note of events that were passed on."""
        self._size_bytes += len(events)
        if self._size_bytes <= MAX_OUTCOME_BYTES:
            self._pieces.append(events)
        else:
            self._pieces.clear()

    def events(self) -> bytes:
        """All of them; nothing if they are too many to be kept."""
        return b"".join(self._pieces)

    def pack(self) -> str:
        """The outcome as text; empty if it is too large to be kept."""
        return "" if self._size_bytes > MAX_OUTCOME_BYTES else pack(Outcome(True, b"".join(self._pieces)))


def claim_name(route: str, header: bytes) -> str:
    """The name under which a client's key is claimed.

    Raises:
        Refused: 400, the header is no usable key.
    """
    if not 0 < len(header) <= MAX_KEY_LETTERS or not all(0x20 < letter < 0x7F for letter in header):
        raise Refused(errors.invalid("Idempotency-Key", f"must be 1 to {MAX_KEY_LETTERS} printable ASCII letters"))
    return hashlib.blake2b(route.encode() + b"\0" + header, digest_size=18).hexdigest()


def fingerprint(body: bytes) -> str:
    """What tells the same request from another one under the same key."""
    return hashlib.blake2b(body, digest_size=16).hexdigest()


def pack(outcome: Outcome) -> str:
    """An outcome as text; empty if it is too large to be kept."""
    if len(outcome.body) > MAX_OUTCOME_BYTES:
        return ""
    packed = b64encode(zlib.compress(outcome.body, 1)).decode()
    kept = orjson.dumps({"stream": outcome.stream, "body": packed}).decode()
    return kept if len(kept) <= MAX_KEPT_LETTERS else ""


def unpack(kept: str) -> Outcome | None:
    """The outcome again; ``None`` if it was too large to be kept."""
    if not kept:
        return None
    row = orjson.loads(kept)
    return Outcome(row["stream"], zlib.decompress(b64decode(row["body"])))
