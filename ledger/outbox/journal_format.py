"""The bytes of a journal segment: framing, and reading back what a crash or a bad disk left.

Floor: ``ledger`` (no I/O here). A segment is a sequence of frames::

    sync marker (4) · length of the body (4, little endian) · CRC-32 of length and body (4) · body

    body = b"R" + record number (8) + payload          a record
         | b"D" + first and last number (8 + 8 each)   all records from first to last are confirmed
         | b"C" + record numbers (8 each)              these are confirmed (written by earlier versions)

The marker lets a reader find the next good frame behind a damaged one, so that a flipped bit costs one record and not
the rest of the file. Record numbers rise by one, so a hole inside a segment is noticed too.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from zlib import crc32

MAX_PAYLOAD_BYTES = 1024 * 1024
"""Above the largest settlement, every letter of its outcome and info escaped."""
MAX_RUNS_PER_FRAME = 2048

_SYNC = b"\xf5PJ\x01"
_HEAD = struct.Struct("<4sII")
_NUMBER = struct.Struct("<Q")
_RECORD_HEAD = struct.Struct("<cQ")
_RECORD = struct.Struct("<4sIIcQ")
_MAX_BODY_BYTES = max(1 + 8 + MAX_PAYLOAD_BYTES, 1 + 16 * MAX_RUNS_PER_FRAME)
FRAME_BYTES = _HEAD.size + 1 + _NUMBER.size
"""What a record takes beyond its payload."""


@dataclass(slots=True)
class SegmentContent:
    """What could be read of a segment.

    ``confirmed``: runs of confirmed numbers, first and last of each, in the order written.
    ``damaged``: places inside where bytes made no sense although good frames follow, or where numbers are missing.
    ``torn_bytes``: bytes behind the last good frame; a write that a crash cut short leaves these, and nobody was
    told that it was durable.
    """

    records: dict[int, bytes] = field(default_factory=dict)
    confirmed: list[tuple[int, int]] = field(default_factory=list)
    damaged: int = 0
    torn_bytes: int = 0


def frame_record(number: int, payload: bytes) -> bytes:
    """One record as bytes. Raises ValueError above ``MAX_PAYLOAD_BYTES``."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"A journal record has at most {MAX_PAYLOAD_BYTES} bytes, not {len(payload)}.")
    # Written out, and the payload copied once: this runs once per request.
    size = 9 + len(payload)
    checksum = crc32(payload, crc32(_RECORD_HEAD.pack(b"R", number), size))
    return _RECORD.pack(_SYNC, size, checksum, b"R", number) + payload


def frame_marks(runs: Iterable[tuple[int, int]]) -> bytes:
    """Confirmations of runs of records, first and last of each, as bytes: as many frames as it takes."""
    rest = [number for run in runs for number in run]
    frames = []
    for start in range(0, len(rest), 2 * MAX_RUNS_PER_FRAME):
        part = rest[start : start + 2 * MAX_RUNS_PER_FRAME]
        frames.append(_frame(b"D" + struct.pack(f"<{len(part)}Q", *part)))
    return b"".join(frames)


def read_segment(data: bytes) -> SegmentContent:
    """Read all that is good in a segment. Never raises, whatever the bytes."""
    content = SegmentContent()
    at = 0
    bad_from: int | None = None
    expected: int | None = None
    while at < len(data):
        body = _body_at(data, at)
        if body is None:
            bad_from = at if bad_from is None else bad_from
            at = data.find(_SYNC, at + 1)
            if at < 0:
                break
            continue
        at += _HEAD.size + len(body)
        missing = False
        if body[:1] == b"R":
            (number,) = _NUMBER.unpack_from(body, 1)
            missing = expected is not None and number != expected
            expected = number + 1
            content.records[number] = body[9:]
        else:
            content.confirmed += _runs_of(body)
        if bad_from is not None or missing:
            content.damaged += 1
            bad_from = None
    if bad_from is not None:
        content.torn_bytes = len(data) - bad_from
    return content


def _runs_of(body: bytes) -> list[tuple[int, int]]:
    numbers = struct.unpack(f"<{len(body) // 8}Q", body[1:])
    if body[:1] == b"C":
        return [(number, number) for number in numbers]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _frame(body: bytes) -> bytes:
    return _HEAD.pack(_SYNC, len(body), _checksum(body)) + body


def _body_at(data: bytes, at: int) -> bytes | None:
    if len(data) - at < _HEAD.size:
        return None
    sync, length, checksum = _HEAD.unpack_from(data, at)
    if sync != _SYNC or length > _MAX_BODY_BYTES:
        return None
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    if len(body) != length or _checksum(body) != checksum:
        return None
    is_record = body[:1] == b"R" and length >= 9
    is_marks = (body[:1] == b"D" and length % 16 == 1) or (body[:1] == b"C" and length % 8 == 1)
    return body if is_record or is_marks else None


def _checksum(body: bytes) -> int:
    # The length is inside, so that a frame of zeros is not a good frame.
    return crc32(body, len(body))
