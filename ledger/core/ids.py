"""Ids: made from a time and random bits that the caller supplies, and read back.

Floor: ``ledger.core`` (pure): no clock and no randomness here. A request id is ``req_`` and a ULID (48 bits of Unix
milliseconds, 80 random bits) in lower-case Crockford base32, so ids sort by time, the hold of a request has the
same id, and the month of a ledger row follows from its own id, never from when it arrived.
"""

from __future__ import annotations

import re
from zlib import crc32

REQUEST_PREFIX = "req_"
REQUEST_RANDOM_BYTES = 10
SHORT_RANDOM_BYTES = 8

_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_REQUEST_ID = re.compile(rf"{REQUEST_PREFIX}[0-7][{_CROCKFORD}]{{25}}")
_TO_BASE_32 = str.maketrans(_CROCKFORD, "0123456789abcdefghijklmnopqrstuv")
"""To the digits that `int` reads."""
_PAIRS = tuple(high + low for high in _CROCKFORD for low in _CROCKFORD)
_TIME_LETTERS = 10
_MAX_TIME_MS = 2**48 - 1

_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
_SHORT_LETTERS = 12


def request_id(time_ms: int, random_bytes: bytes) -> str:
    """Mint a request id.

    Args:
        time_ms: Unix time in ms, 48 bits.
        random_bytes: 10 bytes from a good source.
    """
    if not 0 <= time_ms <= _MAX_TIME_MS or len(random_bytes) != REQUEST_RANDOM_BYTES:
        raise ValueError("A request id takes 48 bits of time and 10 random bytes.")
    pairs = _PAIRS
    high, low = int.from_bytes(random_bytes[:5]), int.from_bytes(random_bytes[5:])
    # Written out: this runs once per request, and a loop takes twice as long.
    return (
        f"{REQUEST_PREFIX}{pairs[time_ms >> 40]}{pairs[time_ms >> 30 & 1023]}{pairs[time_ms >> 20 & 1023]}"
        f"{pairs[time_ms >> 10 & 1023]}{pairs[time_ms & 1023]}"
        f"{pairs[high >> 30]}{pairs[high >> 20 & 1023]}{pairs[high >> 10 & 1023]}{pairs[high & 1023]}"
        f"{pairs[low >> 30]}{pairs[low >> 20 & 1023]}{pairs[low >> 10 & 1023]}{pairs[low & 1023]}"
    )


def is_request_id(text: str) -> bool:
    """Whether ``text`` has exactly the shape of a request id."""
    return _REQUEST_ID.fullmatch(text) is not None


def id_time_ms(request_id: str) -> int:
    """The Unix time in ms inside a request id.

    Raises:
        ValueError: it is not a request id.
    """
    if not is_request_id(request_id):
        raise ValueError(f"{request_id[:40]!r} is not a request id.")
    time_digits = request_id[len(REQUEST_PREFIX) : len(REQUEST_PREFIX) + _TIME_LETTERS]
    return int(time_digits.translate(_TO_BASE_32), 32)


def shard_of(org_id: str, shards: int) -> int:
    """The credit shard that an organization's account lives in, from 0."""
    return crc32(org_id.encode()) % shards


def short_id(prefix: str, random_bytes: bytes) -> str:
    """Mint an id of a lasting object: ``org_``, ``ep_`` or ``pc_`` and 12 letters of base32 (60 random bits).

    Args:
        prefix: with its underscore.
        random_bytes: 8 bytes from a good source.
    """
    if len(random_bytes) != SHORT_RANDOM_BYTES:
        raise ValueError("A short id takes 8 random bytes.")
    number = int.from_bytes(random_bytes)
    return prefix + "".join([_BASE32[number >> shift & 31] for shift in range(0, 5 * _SHORT_LETTERS, 5)])
