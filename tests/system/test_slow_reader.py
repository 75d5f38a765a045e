"""A client that asks for ten megabytes and does not read: who holds them back, who holds them; none of them is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from tests.system.harness import Gateway, Tenant, chat_body
from tests.system.wire import parse, request_bytes

ANSWER_BYTES = 10_000_000
PIECE_CHARS = 1_000
STREAM_MOST_BYTES = 2_000_000
"""Growth of all workers: what one read brings and what a transport takes before it says stop, several times over."""
WHOLE_MOST_BYTES = int(3.5 * ANSWER_BYTES)
"""A whole answer is read in full before its client sees a byte (it is rebuilt, and its usage charged): as it came, as
values, and as it goes."""
WHOLE_HELD_BYTES = int(1.4 * ANSWER_BYTES)
"""Behind that it is held as it goes."""
WHOLE_ANSWERS = 8
GIVEN_BACK_BYTES = 4_000_000
SOCKET_BYTES = 64 * 1024
STILL_S = 1.0
PATIENCE_S = 30.0


@dataclass(slots=True)
class Engine:
    """An engine that says a text, piece by piece or at once, and knows how much of its answer was taken off it.

    Attributes:
        url: where it listens.
        answer: the bytes of its one answer.
        written: how many of them the kernel has.
    """

    url: str
    answer: bytes
    written: int = 0

    @property
    def is_stalled(self) -> bool:
        """Whether something is left to send."""
        return self.written < len(self.answer)


def pieces() -> list[str]:
    """Text that differs everywhere, so that nothing can be lost, doubled or swapped unseen."""
    chance = random.Random(20_261_123)
    letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=PIECE_CHARS))
    return [f"{number:08d}{letters[8:]}" for number in range(ANSWER_BYTES // PIECE_CHARS)]


def streamed(texts: list[str]) -> bytes:
    """An engine's answer as a stream of chunks."""
    deltas = [*({"content": text} for text in texts), {}]
    events = [
        {"choices": [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}]} for delta in deltas
    ]
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": len(texts), "total_tokens": 0}}
    data = [b"data: %b\n\n" % json.dumps(event).encode() for event in (*events, usage)] + [b"data: [DONE]\n\n"]
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in data) + b"0\r\n\r\n"


def whole(texts: list[str]) -> bytes:
    """The same as one JSON document."""
    message = {"role": "assistant", "content": "".join(texts)}
    content = {
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": len(texts), "total_tokens": 0},
    }
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def serving(answer: bytes) -> AsyncIterator[Engine]:
    """The engine, on a socket that holds little by itself."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    listener.bind(("127.0.0.1", 0))
    engine = Engine(f"http://127.0.0.1:{listener.getsockname()[1]}", answer)
    open_now: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_now.add(writer)
        writer.transport.set_write_buffer_limits(high=0)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                await reader.readexactly(sum(length))
                if not head.startswith(b"POST"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                    continue
                for at in range(0, len(answer), SOCKET_BYTES):
                    piece = answer[at : at + SOCKET_BYTES]
                    writer.write(piece)
                    await writer.drain()
                    engine.written += len(piece)
        open_now.discard(writer)
        writer.close()

    server = await asyncio.start_server(serve, sock=listener)
    try:
        yield engine
    finally:
        server.close()
        for writer in open_now:
            writer.transport.abort()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def asked(gateway: Gateway, tenant: Tenant, *, stream: bool) -> AsyncIterator[socket.socket]:
    """A client that has asked and reads nothing by itself, on a socket that holds little."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(client, ("127.0.0.1", gateway.settings.port))
        body = chat_body(tenant, stream=stream, max_tokens=ANSWER_BYTES // PIECE_CHARS + 1)
        await loop.sock_sendall(client, request_bytes("POST", "/v1/chat/completions", key=tenant.key, body=body))
        yield client


async def read_all(client: socket.socket) -> bytes:
    """Everything to the end of the answer."""
    loop = asyncio.get_running_loop()
    raw = bytearray()
    head_bytes = length = 0
    while True:
        data = await loop.sock_recv(client, 1 << 20)
        assert data, f"the gateway hung up behind {len(raw)} bytes: {bytes(raw[-200:])!r}"
        raw += data
        if not head_bytes and b"\r\n\r\n" in raw:
            head, _, _ = bytes(raw[:4096]).partition(b"\r\n\r\n")
            head_bytes = len(head) + 4
            length = sum(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        if head_bytes and (len(raw) >= head_bytes + length if length else raw.endswith(b"\r\n0\r\n\r\n")):
            return bytes(raw)


async def tenant_of(gateway: Gateway, engine: Engine) -> Tenant:
    """A customer of this engine, with a gateway that has served before: its memory has what it needs."""
    large = {"context_tokens": 1_000_000, "max_output_tokens": 900_000}
    tenant = await gateway.tenant(urls=[engine.url], credit_nanos=10**13, **large)
    other = await gateway.tenant()
    for _ in range(20):
        assert (await gateway.chat(other, stream=True, max_tokens=5)).status == 200
    return tenant


async def until_nothing_moves(gateway: Gateway, engine: Engine) -> int:
    """Watch for a second in which the engine gets rid of nothing more; the most memory that workers had until then."""
    most, last, since_s = 0, -1, 0.0
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        while not engine.written or loop.time() - since_s < STILL_S:
            if engine.written != last:
                last, since_s = engine.written, loop.time()
            most = max(most, gateway.memory_bytes())
            await asyncio.sleep(0.02)
    return most


async def test_a_stream_that_nobody_reads_stays_with_its_engine(gateway: Gateway) -> None:
    """The workers hold none of it, the engine can send no more, and when the client reads every byte comes."""
    texts = pieces()
    async with serving(streamed(texts)) as engine:
        tenant = await tenant_of(gateway, engine)
        before = gateway.memory_bytes()
        async with asyncio.timeout(PATIENCE_S), asked(gateway, tenant, stream=True) as client:
            grown = await until_nothing_moves(gateway, engine) - before
            assert engine.is_stalled, "the engine could send everything while nobody read"
            assert grown < STREAM_MOST_BYTES, f"{grown} bytes of a stream that nobody reads lie in the workers"
            answer = parse(await read_all(client), None)
        assert answer is not None
        assert answer.text == "".join(texts)
        assert answer.events[-1] == "[DONE]"
        assert not engine.is_stalled
        assert gateway.memory_bytes() - before < GIVEN_BACK_BYTES


async def test_a_whole_answer_that_nobody_reads_is_held_once(gateway: Gateway) -> None:
    """It is bounded, every byte comes, and another customer's answer finds its room empty again."""
    texts = pieces()
    async with serving(whole(texts)) as engine:
        tenant = await tenant_of(gateway, engine)
        before = gateway.memory_bytes()
        async with asyncio.timeout(PATIENCE_S), asked(gateway, tenant, stream=False) as client:
            grown = await until_nothing_moves(gateway, engine) - before
            held = gateway.memory_bytes() - before
            assert grown < WHOLE_MOST_BYTES, f"{grown} bytes for an answer of {len(engine.answer)}"
            assert held < WHOLE_HELD_BYTES, f"{held} bytes stay for an answer of {len(engine.answer)}"
            answer = parse(await read_all(client), None)
        assert answer is not None
        assert answer.text == "".join(texts)
        left = []
        for _ in range(WHOLE_ANSWERS):
            async with asyncio.timeout(PATIENCE_S), asked(gateway, tenant, stream=False) as client:
                await read_all(client)
            left.append(gateway.memory_bytes() - before)
        assert min(left[-3:]) < WHOLE_MOST_BYTES, f"bytes that stay behind each answer: {left}"
