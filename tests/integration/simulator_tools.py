"""A raw HTTP client that shows exactly what came over the socket, for tests of the simulator."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from backends.simulator.process import SimulatorProcess

MODEL = "sim-8b"


@dataclass
class RawAnswer:
    """What a socket gave: `ended` is whole, eof, reset or silence."""

    raw: bytes
    ended: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    chunks: list[bytes] = field(default_factory=list)
    rest: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[str]:
        """The data of each event."""
        lines = self.body.decode().replace("\r\n", "\n").split("\n\n")
        return [line.removeprefix("data: ").strip() for line in lines if line.startswith("data: ")]

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The events that are JSON objects."""
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        """The text of choice 0 of a stream."""
        parts = []
        for event in self.objects:
            for choice in event.get("choices", []):
                if choice["index"] == 0:
                    parts.append(choice.get("text", (choice.get("delta") or {}).get("content") or ""))
        return "".join(parts)


def chat(content: str = "Say something.", **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **fields}


def request_bytes(body: Any, path: str = "/v1/chat/completions", method: str = "POST", headers: str = "") -> bytes:
    """A request as it goes over the wire."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(data)}\r\n{headers}\r\n"
    return head.encode() + data


@contextmanager
def connected(simulator: SimulatorProcess, timeout_s: float = 10.0) -> Iterator[socket.socket]:
    """A connection to the simulator."""
    sock = socket.create_connection(("127.0.0.1", simulator.port), timeout=timeout_s)
    try:
        yield sock
    finally:
        sock.close()


def read_answer(sock: socket.socket, before: bytes = b"") -> RawAnswer:
    """Read one response from a socket, until it is whole or the connection has an end."""
    raw, ended = before, "whole"
    while True:
        answer = parse(raw, ended)
        if answer is not None:
            return answer
        try:
            data = sock.recv(65536)
        except TimeoutError:
            ended = "silence"
        except ConnectionResetError:
            ended = "reset"
        else:
            if data:
                raw += data
                continue
            ended = "eof"
        return parse(raw, ended) or RawAnswer(raw, ended)


def parse(raw: bytes, ended: str) -> RawAnswer | None:
    """A response out of raw bytes; None if more is needed and may come."""
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return None if ended == "whole" else RawAnswer(raw, ended)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    answer = RawAnswer(raw, ended, int(first.split()[1]), headers)
    if "content-length" in headers:
        length = int(headers["content-length"])
        answer.body, answer.rest = rest[:length], rest[length:]
        return answer if len(rest) >= length or ended != "whole" else None
    if headers.get("transfer-encoding") != "chunked":
        answer.body = rest
        return answer if ended != "whole" else None
    while True:
        size, separator, after = rest.partition(b"\r\n")
        if not separator or len(after) < int(size, 16) + 2:
            break
        if int(size, 16) == 0:
            answer.body, answer.rest, answer.ended = b"".join(answer.chunks), after[2:], "whole"
            return answer
        answer.chunks.append(after[: int(size, 16)])
        rest = after[int(size, 16) + 2 :]
    answer.body = b"".join(answer.chunks)
    return answer if ended != "whole" else None


def call(
    simulator: SimulatorProcess,
    body: Any,
    path: str = "/v1/chat/completions",
    method: str = "POST",
    headers: str = "",
    timeout_s: float = 10.0,
) -> RawAnswer:
    """One request on a connection of its own."""
    with connected(simulator, timeout_s) as sock:
        sock.sendall(request_bytes(body, path, method, headers))
        return read_answer(sock)


def get(simulator: SimulatorProcess, path: str) -> Any:
    """The JSON of a GET."""
    return call(simulator, None, path, "GET").json


def record_of(simulator: SimulatorProcess, request_id: str, wanted: str | None = None) -> dict[str, Any]:
    """What the simulator remembers of a request; waits until it is in the wanted state."""
    give_up = time.monotonic() + 10
    while True:
        records = get(simulator, f"/sim/requests?request_id={request_id}")["requests"]
        if records and wanted in (None, records[0]["state"]):
            return dict(records[0])
        assert time.monotonic() < give_up, f"{request_id} is not {wanted}: {records}"
        time.sleep(0.01)
