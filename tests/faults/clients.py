"""Real HTTP clients: a raw socket that may be as rude as it likes, and the official openai client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import openai
from openai import AsyncOpenAI, OpenAI

from tests.faults.attempt import Attempt, End, Rudeness
from tests.system.wire import Answer, parse, request_bytes

PATIENCE_S = 15.0
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
_DELTA = b'data: {"id"'


async def send_raw(port: int, attempt: Attempt, *, dawdle_s: float = 0.0) -> None:
    """Send one request on a connection of its own and note what comes.

    Args:
        dawdle_s: pause before each read: a slow reader.
    """
    attempt.sent_s = time.time()
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 16)
            headers = {"x-request-id": attempt.name}
            if attempt.idempotency_key is not None:
                headers["Idempotency-Key"] = attempt.idempotency_key
            data = json.dumps(attempt.body).encode()
            writer.write(request_bytes("POST", PATHS[attempt.route], key=attempt.key, body=data, headers=headers))
            attempt.end = End.BROKEN
            raw, ended = await _read(reader, attempt, dawdle_s)
            _note(attempt, raw, ended)
    except OSError:
        pass
    except TimeoutError:
        attempt.end = End.LEFT if attempt.end is not End.REFUSED else End.REFUSED
    finally:
        attempt.ended_s = time.time()
        if writer is not None:
            writer.transport.abort()


async def _read(reader: asyncio.StreamReader, attempt: Attempt, dawdle_s: float) -> tuple[bytes, str]:
    raw = b""
    middle = 1 + len(attempt.name.encode()) % 7
    if attempt.rudeness is Rudeness.BEFORE_ANSWER:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.003 * middle):
                raw = await reader.read(1)
        return raw, "left"
    while True:
        if dawdle_s:
            await asyncio.sleep(dawdle_s)
        try:
            data = await reader.read(65536 if attempt.rudeness is Rudeness.POLITE else 1500)
        except OSError:
            return raw, "reset"
        if not data:
            return raw, "eof"
        raw += data
        if (
            attempt.stream
            and (deltas := raw.count(_DELTA))
            and (not attempt.progress or attempt.progress[-1][1] != deltas)
        ):
            attempt.progress.append((time.time(), deltas))
        if attempt.rudeness is Rudeness.FIRST_BYTE and b"\r\n\r\n" in raw:
            return raw, "left"
        if attempt.rudeness is Rudeness.MIDDLE and raw.count(_DELTA) > middle:
            return raw, "left"
        is_last = raw.endswith(b"0\r\n\r\n") or b"\r\nTransfer-Encoding: chunked\r\n" not in raw[:2048]
        if attempt.rudeness is Rudeness.LAST_BYTE and b"X-Pareta-Billed: " in raw:
            return raw[:-1], "left"
        if is_last and (answer := parse(raw, None)) is not None:
            return raw, answer.ended


def _note(attempt: Attempt, raw: bytes, ended: str) -> None:
    answer = parse(raw, ended)
    if answer is None or not answer.status:
        attempt.end = End.LEFT if ended == "left" else End.BROKEN
        return
    attempt.status = answer.status
    attempt.request_id = answer.headers.get("x-request-id", "")
    attempt.is_replay = "idempotent-replayed" in answer.headers
    attempt.end = {"whole": End.WHOLE, "left": End.LEFT}.get(answer.ended, End.BROKEN)
    if answer.is_stream:
        _note_stream(attempt, answer)
    elif answer.ended == "whole":
        body = json.loads(answer.body)
        if answer.status == 200:
            attempt.has_done = True
            attempt.billed_micros = answer.billed_micros
            _note_usage(attempt, body.get("usage"))
        else:
            attempt.code = str(body["error"]["code"])


def _note_stream(attempt: Attempt, answer: Answer) -> None:
    blocks = answer.body.split(b"\n\n")
    for block in blocks[:-1]:  # what follows the last one is cut off
        text = block.decode()
        if text == "data: [DONE]":
            attempt.has_done = True
        elif text.startswith(": X-Pareta-Billed: "):
            attempt.billed_micros = int(text.rpartition(" ")[2])
        elif text.startswith("data: "):
            chunk = json.loads(text.removeprefix("data: "))
            if "error" in chunk:
                attempt.code, attempt.end = str(chunk["error"]["code"]), End.BROKEN
                continue
            _note_usage(attempt, chunk.get("usage"))
            for choice in chunk["choices"]:
                attempt.deltas += bool(choice["delta"].get("content") if "delta" in choice else choice["text"])


def _note_usage(attempt: Attempt, usage: Any) -> None:
    if usage:
        attempt.usage = (usage["prompt_tokens"], usage.get("completion_tokens", 0))


def openai_of(port: int, key: str) -> AsyncOpenAI:
    """The official client, which tries nothing again by itself: each try is to be counted."""
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=PATIENCE_S)


async def send_openai(client: AsyncOpenAI, attempt: Attempt) -> None:
    """The same request through the official client."""
    attempt.via, attempt.sent_s = "openai", time.time()
    body = dict(attempt.body)
    extra = {name: body.pop(name) for name in ("tag", "sim") if name in body}
    options: dict[str, Any] = {"extra_body": extra, "extra_headers": {"x-request-id": attempt.name}}
    try:
        attempt.end = End.BROKEN
        if attempt.stream:
            stream = await client.chat.completions.create(**body, **options)
            _note_head(attempt, stream.response)
            async for chunk in stream:
                _note_chunk(attempt, chunk)
            attempt.has_done, attempt.end = True, End.WHOLE
        else:
            answer = await client.chat.completions.with_raw_response.create(**body, **options)
            _note_whole(attempt, answer)
    except Exception as error:  # a stream that breaks off raises what the transport raises
        _note_error(attempt, error)
    finally:
        attempt.ended_s = time.time()


def send_openai_sync(port: int, attempt: Attempt) -> None:
    """The same from a thread, with the client that blocks."""
    attempt.via, attempt.sent_s = "openai sync", time.time()
    body = dict(attempt.body)
    extra = {name: body.pop(name) for name in ("tag", "sim") if name in body}
    options: dict[str, Any] = {"extra_body": extra, "extra_headers": {"x-request-id": attempt.name}}
    url = f"http://127.0.0.1:{port}/v1"
    with OpenAI(base_url=url, api_key=attempt.key, max_retries=0, timeout=PATIENCE_S) as client:
        try:
            attempt.end = End.BROKEN
            if attempt.stream:
                with client.chat.completions.create(**body, **options) as stream:
                    _note_head(attempt, stream.response)
                    for chunk in stream:
                        _note_chunk(attempt, chunk)
                attempt.has_done, attempt.end = True, End.WHOLE
            else:
                _note_whole(attempt, client.chat.completions.with_raw_response.create(**body, **options))
        except Exception as error:  # a stream that breaks off raises what the transport raises
            _note_error(attempt, error)
        finally:
            attempt.ended_s = time.time()


def _note_head(attempt: Attempt, response: Any) -> None:
    attempt.status = response.status_code
    attempt.request_id = response.headers.get("x-request-id", "")


def _note_chunk(attempt: Attempt, chunk: Any) -> None:
    if chunk.usage is not None:
        attempt.usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
    if any(choice.delta.content for choice in chunk.choices):
        attempt.deltas += 1
        attempt.progress.append((time.time(), attempt.deltas))


def _note_whole(attempt: Attempt, answer: Any) -> None:
    attempt.status, attempt.end, attempt.has_done = answer.status_code, End.WHOLE, True
    attempt.request_id = answer.headers.get("x-request-id", "")
    attempt.billed_micros = int(answer.headers["x-pareta-billed"])
    usage = answer.parse().usage
    attempt.usage = (usage.prompt_tokens, usage.completion_tokens)


def _note_error(attempt: Attempt, error: Exception) -> None:
    if isinstance(error, openai.APIStatusError):
        attempt.status, attempt.end = error.status_code, End.WHOLE
        attempt.request_id = error.response.headers.get("x-request-id", "")
        attempt.code = str(error.code or "unknown")
    elif isinstance(error, openai.APIError) and not isinstance(error, openai.APIConnectionError):
        attempt.code = str(error.code or "stream_error")
