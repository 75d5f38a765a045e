"""The short road through HTTP: a request whose head is, but for its length, the last one of its connection.

Floor: dataplane (pure). A client that keeps its connection sends the same head again and again; only the digits of
``Content-Length`` differ. Equal bytes mean equal things, so nothing of such a head is parsed twice. Whatever differs in
any other byte, or did not arrive in one piece, takes the long road through llhttp.
"""

from __future__ import annotations

import re

MAX_DIGITS = 9
MAX_HEAD_BYTES = 8192
"""A longer head is not remembered; thousands of connections have one each."""

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})\r\n", re.IGNORECASE)


class SameHead:
    """A head that was parsed.

    Args:
        before: its bytes up to the digits of ``Content-Length``.
        after: those behind them, to the blank line.
        path: what was understood: the target without its query.
        headers: and the headers that are read, ``content-length`` among them.
    """

    __slots__ = ("_after", "_before", "_headers", "path")

    def __init__(self, before: bytes, after: bytes, path: str, headers: dict[bytes, bytes]) -> None:
        self._before, self._after = before, after
        self._headers = headers
        self.path = path

    @classmethod
    def learn(cls, data: bytes, path: str, headers: dict[bytes, bytes], body_bytes: int) -> SameHead | None:
        """Remember the head of a request that was read well, if it can come again.

        Args:
            data: the one read that brought the whole request and nothing else.
            path: see `SameHead`.
            headers: see `SameHead`; of a request with a length and without another transfer coding or expectation.
            body_bytes: the length of its body. It says where llhttp saw the end of the head, which has to be ours.
        """
        head_bytes = data.find(b"\r\n\r\n") + 4
        if not 4 <= head_bytes <= MAX_HEAD_BYTES or len(data) != head_bytes + body_bytes:
            return None
        head = data[:head_bytes]
        found = _LENGTH.findall(head)
        if len(found) != 1 or headers.get(b"content-length") != found[0]:
            return None
        match = _LENGTH.search(head)
        assert match is not None
        return cls(head[: match.start(1)], head[match.end(1) :], path, headers)

    def read(self, data: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
        """Headers and body of a request with this head; ``None`` if ``data`` is anything else."""
        before, after = self._before, self._after
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + MAX_DIGITS + 1)
        if end <= start or not data.startswith(after, end):
            return None
        digits = data[start:end]
        body_at = end + len(after)
        if not digits.isdigit() or len(data) - body_at != int(digits):
            return None
        headers = self._headers.copy()
        headers[b"content-length"] = digits
        return headers, data[body_at:]
