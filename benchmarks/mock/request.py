"""Read a request as far as the mock engine needs it: where it ends, and four facts of its body.

Pure. JSON is searched, not parsed: quotes within a prompt are escaped, so the names of members stand out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_HEAD_BYTES = 64 * 1024
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*(\d+)')
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_USAGE = re.compile(rb'"include_usage"\s*:\s*true')
_DEFAULT_TOKENS = 16
_BYTES_PER_TOKEN = 5


class NotHttp(ValueError):
    """What was sent is no request."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, and where the next one begins."""

    line: bytes
    body: bytes
    size: int
    closes: bool


def read(data: bytes | bytearray) -> Request | None:
    """The request that `data` begins with; ``None`` while it is not whole.

    Raises:
        NotHttp: it is none.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > MOST_HEAD_BYTES:
            raise NotHttp
        return None
    head = bytes(data[: end + 2])
    line, _, _ = head.partition(b"\r\n")
    if b" HTTP/1." not in line:
        raise NotHttp
    closes = line.endswith(b"/1.0") or b"\r\nconnection: close" in head.lower()
    begin = end + 4
    if found := _LENGTH.search(head):
        size = begin + int(found[1])
        return Request(line, bytes(data[begin:size]), size, closes) if len(data) >= size else None
    if _CHUNKED.search(head):
        return _read_chunks(line, data, begin, closes)
    return Request(line, b"", begin, closes)


def _read_chunks(line: bytes, data: bytes | bytearray, position: int, closes: bool) -> Request | None:
    parts: list[bytes] = []
    while (end := data.find(b"\r\n", position)) >= 0:
        try:
            size = int(bytes(data[position:end]).partition(b";")[0], 16)
        except ValueError:
            raise NotHttp from None
        position = end + 2 + size + 2
        if len(data) < position:
            return None
        if not size:
            return Request(line, b"".join(parts), position, closes)
        parts.append(bytes(data[end + 2 : end + 2 + size]))
    return None


def tokens_of(body: bytes) -> int:
    """How many tokens are asked for."""
    found = _TOKENS.search(body)
    return max(1, int(found[1])) if found else _DEFAULT_TOKENS


def is_stream(body: bytes) -> bool:
    """Whether a stream is asked for."""
    return _STREAM.search(body) is not None


def wants_usage(body: bytes) -> bool:
    """Whether the stream is to end with its usage."""
    return _USAGE.search(body) is not None


def prompt_tokens_of(body: bytes) -> int:
    """About how many tokens the prompt has."""
    return len(body) // _BYTES_PER_TOKEN + 1
