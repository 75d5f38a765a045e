"""A raw HTTP client that shows exactly what came over the socket, and can hang up wherever a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.seed.demo import REAL

PATIENCE_S = 30.0
REAL_IDS = tuple(model.rpartition("/")[2].encode() for models in REAL.values() for model in models)
"""Ids of open models that the tests' catalogue uses: S049, no answer of any test may hold one."""


@dataclass
class Answer:
    """What a socket gave. ``ended`` is whole, eof (FIN before the end), reset or left (we hung up)."""

    raw: bytes
    ended: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_stream: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def request_id(self) -> str:
        return self.headers["x-request-id"]

    @property
    def blocks(self) -> list[str]:
        """The blocks between empty lines: events and comments."""
        return [block for block in self.body.decode().split("\n\n") if block]

    @property
    def events(self) -> list[str]:
        """The data of each event, ``[DONE]`` included."""
        return [block.removeprefix("data: ") for block in self.blocks if block.startswith("data: ")]

    @property
    def comments(self) -> list[str]:
        """The text of each comment."""
        return [block.removeprefix(": ") for block in self.blocks if block.startswith(":")]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events that are JSON."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        """The text of choice 0, of a stream or of a whole answer."""
        if not self.is_stream:
            choice = self.json["choices"][0]
            return choice["message"]["content"] if "message" in choice else choice["text"]
        parts = []
        for chunk in self.chunks:
            for choice in chunk["choices"]:
                if choice["index"] == 0:
                    parts.append(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])
        return "".join(parts)

    @property
    def deltas(self) -> int:
        """Content deltas that came."""
        found = [choice for chunk in self.chunks for choice in chunk["choices"]]
        return sum(bool(c["delta"].get("content") if "delta" in c else c["text"]) for c in found)

    @property
    def code(self) -> str:
        """The code of the error."""
        return str(self.json["error"]["code"])

    @property
    def billed_micros(self) -> int:
        """What the answer says it cost, in its header or in the comment before ``[DONE]``."""
        if "x-pareta-billed" in self.headers:
            return int(self.headers["x-pareta-billed"])
        [receipt] = [text for text in self.comments if text.startswith("X-Pareta-Billed: ")]
        return int(receipt.removeprefix("X-Pareta-Billed: "))


def request_bytes(
    method: str, path: str, *, key: str | None = None, body: Any = None, headers: dict[str, str] | None = None
) -> bytes:
    """A request as it goes over the wire; bytes are sent as they are, anything else as JSON."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    if key is not None:
        lines.append(f"Authorization: Bearer {key}")
    if body is not None or method == "POST":
        if "Content-Type" not in (headers or {}):
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(data)}")
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + data


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection of its own; closed hard at the end, whatever is still on its way."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def ask(
    port: int,
    method: str,
    path: str,
    *,
    key: str | None = None,
    body: Any = None,
    headers: dict[str, str] | None = None,
    leave_when: Callable[[Answer], bool] | None = None,
) -> Answer:
    """One request on a connection of its own.

    Args:
        leave_when: hang up as soon as it says so of what came until now.
    """
    async with asyncio.timeout(PATIENCE_S), connected(port) as (reader, writer):
        sent = request_bytes(method, path, key=key, body=body, headers=headers)
        writer.write(sent)
        answer = await read_answer(reader, leave_when=leave_when)
    for word in REAL_IDS:
        # What a caller has sent may be named back to them.
        assert word not in answer.raw or word in sent, f"{method} {path} tells a real model id: {answer.raw[:2000]!r}"
    return answer


async def read_answer(
    reader: asyncio.StreamReader, *, leave_when: Callable[[Answer], bool] | None = None, before: bytes = b""
) -> Answer:
    """Read one response, until it is whole, broken, or the reader has had enough."""
    raw = before
    while True:
        # Parsing everything again after each read of a long stream would cost more than the stream.
        is_open_stream = b"\r\nTransfer-Encoding: chunked\r\n" in raw[:2048] and not raw.endswith(b"0\r\n\r\n")
        if not is_open_stream and (answer := parse(raw, None)) is not None:
            return answer
        if leave_when is not None and (partial := parse(raw, "left")) is not None and leave_when(partial):
            return partial
        try:
            data = await reader.read(65536)
        except ConnectionResetError:
            return parse(raw, "reset") or Answer(raw, "reset")
        if not data:
            return parse(raw, "eof") or Answer(raw, "eof")
        raw += data


def parse(raw: bytes, ended: str | None) -> Answer | None:
    """A response out of raw bytes; ``None`` when it is not whole and ``ended`` does not say why."""
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return None if ended is None else Answer(raw, ended)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    answer = Answer(raw, ended or "whole", int(first.split()[1]), headers)
    answer.is_stream = headers.get("content-type", "").startswith("text/event-stream")
    if "content-length" in headers:
        length = int(headers["content-length"])
        answer.body = rest[:length]
        is_whole = len(rest) >= length
    elif answer.status == 204:
        is_whole = True  # it has no content, and so no length
    elif headers.get("transfer-encoding") == "chunked":
        answer.body, is_whole = _dechunk(rest)
    else:
        answer.body, is_whole = rest, False
    if is_whole:
        answer.ended = "whole"
        return answer
    return None if ended is None else answer


def _dechunk(data: bytes) -> tuple[bytes, bool]:
    chunks: list[bytes] = []
    while True:
        size_text, separator, after = data.partition(b"\r\n")
        if not separator:
            return b"".join(chunks), False
        size = int(size_text, 16)
        if len(after) < size + 2:
            return b"".join([*chunks, after[:size]]), False
        if size == 0:
            return b"".join(chunks), True
        chunks.append(after[:size])
        data = after[size + 2 :]
