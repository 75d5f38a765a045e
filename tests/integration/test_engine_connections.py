"""The pool of connections to an engine: what a call leaves behind for the next one, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.openai_http import HttpLimits, OpenAIHttpBackend
from backends.wire.allowance import WAIT, Allowance, no_bound
from backends.wire.failure import BackendFailure, FailureCode
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed, TokenUsage

WHOLE = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}


def request(*, stream: bool = False, body: dict[str, Any] | None = None) -> InferenceRequest:
    return InferenceRequest(Kind.CHAT, body or {}, stream, False, "chatcmpl-1", 1, "ep_x")


class Listener:
    """A sink that waits for the end."""

    def __init__(self, on_events: Callable[[], None] = lambda: None) -> None:
        self.data = b""
        self.done: asyncio.Future[Observed] = asyncio.get_running_loop().create_future()
        self.allow: Allowance = no_bound
        self._on_events = on_events

    def accepted(self) -> None:
        pass

    def events(self, data: bytes) -> None:
        self.data += data
        self._on_events()

    def allowance(self, seen: Observed) -> int:
        return self.allow(seen)

    def finished(self, body: bytes, observed: Observed) -> None:
        self.data += body
        self.done.set_result(observed)

    def failed(self, failure: BackendFailure) -> None:
        self.done.set_exception(failure)


@asynccontextmanager
async def engine(answer: bytes, content_type: str = "application/json", **limits: Any) -> AsyncIterator[Any]:
    """An engine that gives every request the same answer, and a backend that asks it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = [int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
                await reader.readexactly(sum(length))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % content_type.encode())
                writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    backend = OpenAIHttpBackend(address, model="m", limits=HttpLimits(**limits))
    try:
        yield backend
    finally:
        await backend.close()
        server.close()
        await asyncio.sleep(0.02)


async def ask(backend: OpenAIHttpBackend, wanted: InferenceRequest) -> bytes:
    sink = Listener()
    await backend.open(wanted, sink)
    await asyncio.wait_for(sink.done, 2)
    return sink.data


async def test_a_reader_that_paused_at_the_last_byte_leaves_a_connection_that_reads() -> None:
    """A slow client pauses the engine's connection; when the answer ends there, the next one must not find it deaf."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    async with engine(b"data: %b\n\n" % json.dumps(chunk).encode(), "text/event-stream") as backend:
        sink = Listener(lambda: call.pause())
        call = await backend.open(request(stream=True), sink)
        await asyncio.wait_for(sink.done, 2)
        assert b'"hi"' in await ask(backend, request(stream=True))


def stream_of(texts: str) -> bytes:
    deltas: list[dict[str, str]] = [{"role": "assistant"}, *({"content": text} for text in texts), {}]
    events = [{"choices": [{"index": 0, "delta": d, "finish_reason": None if d else "stop"}]} for d in deltas]
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


async def until_waiting(sink: Listener, text: bytes) -> None:
    async with asyncio.timeout(2):
        while text not in sink.data:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)


async def test_what_is_not_allowed_yet_is_kept_back_and_nothing_is_lost() -> None:
    """An engine that has said all in one packet waits for each delta, and its connection serves the next request."""
    async with engine(stream_of("abcd"), "text/event-stream", max_connections=1) as backend:
        sink = Listener()
        sink.allow = lambda seen: 0 if seen.content_deltas == 0 else WAIT
        call = await backend.open(request(stream=True), sink)
        await until_waiting(sink, b"assistant")
        call.pause()
        call.resume()
        assert b'"a"' not in sink.data
        sink.allow = lambda seen: 1 if seen.content_deltas == 1 else WAIT
        call.go_on()
        assert b'"b"' in sink.data
        assert b'"c"' not in sink.data
        assert not sink.done.done()
        sink.allow = no_bound
        call.go_on()
        assert (await asyncio.wait_for(sink.done, 2)).content_deltas == 4
        assert sink.data.count(b'"finish_reason":"stop"') == 1
        assert b'"d"' in await ask(backend, request(stream=True))


async def test_a_stream_that_is_cut_ends_once_and_its_engine_is_let_go() -> None:
    """``length`` and nothing more, whatever the engine had said already; the place in the pool is free again."""
    async with engine(stream_of("abcd"), "text/event-stream", max_connections=1) as backend:
        sink = Listener()
        sink.allow = lambda seen: 2 if seen.content_deltas == 0 else WAIT
        call = await backend.open(request(stream=True), sink)
        await until_waiting(sink, b'"b"')
        call.cut(TokenUsage(1, 2))
        call.cut(TokenUsage(1, 2))
        call.go_on()
        assert sink.done.result().content_deltas == 2
        assert sink.data.count(b'"finish_reason":"length"') == 1
        assert b'"c"' not in sink.data
        assert b'"d"' in await ask(backend, request(stream=True))


async def test_a_request_that_cannot_be_written_takes_no_connection() -> None:
    """A body too deep for JSON fails alone: with room for one connection, the next request still has it."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]
    async with engine(json.dumps(WHOLE).encode(), max_connections=1) as backend:
        for _ in range(2):
            with pytest.raises(TypeError):
                await backend.open(request(body={"deep": deep}), Listener())
        assert b'"hi"' in await ask(backend, request())


async def test_a_full_pool_does_not_make_a_replica_look_dead() -> None:
    """Health is asked on a connection beyond the bound: many running requests are no sign of illness."""
    async with engine(json.dumps(WHOLE).encode(), max_connections=1) as backend:
        await backend.open(request(), Listener())
        with pytest.raises(BackendFailure) as caught:
            await backend.open(request(), Listener())
        assert caught.value.code is FailureCode.OVERLOADED
        assert await backend.probe(2)


async def test_an_answer_that_cannot_be_rebuilt_is_a_failure_and_no_silence(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever an engine thinks of, its caller hears the end at once and not when the deadline passes."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": [0]}}
    odd = {**WHOLE, "choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": [call]}}]}
    raw = json.dumps(odd).encode().replace(b"[0]", b"[" * 300 + b"]" * 300)
    async with engine(raw) as backend:
        with pytest.raises(BackendFailure) as caught:
            await ask(backend, request())
        assert caught.value.code is FailureCode.PROTOCOL


async def test_a_call_that_ends_after_its_backend_was_closed_leaves_no_connection() -> None:
    """An endpoint that changes drops its old connections, also those that were in use at that moment."""
    async with engine(json.dumps(WHOLE).encode()) as backend:
        sink = Listener()
        call = await backend.open(request(), sink)
        await backend.close()
        await asyncio.wait_for(sink.done, 2)
        transport = call._connection.transport
        assert transport is None or transport.is_closing()
