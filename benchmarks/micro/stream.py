"""What it costs to translate an engine's answer: paced chunks, many at once, a stream from end to end, a whole answer.

Run ``python -m benchmarks.micro.stream``. Prints microseconds of this process's CPU time per item, median of several
runs; an item is a chunk, a read of 64 chunks, a stream or an answer. ``--json`` prints one object instead.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from backends.wire.chunk_shape import Habits
from backends.wire.openai_answer import rebuild_answer
from backends.wire.openai_request import encode_body
from backends.wire.openai_stream import StreamRewriter
from backends.wire.request import InferenceRequest, Kind

CHUNKS = 20_000
AT_ONCE = 64
ANSWERS = 3_000
RUNS = 7
MODEL = "some-labs/some-model-8b-instruct"
WORDS = (" the", " sea", " is", " wide", " and", " a", " ship", " sails", ",", " on", " it", " to", " an", " island.")


def main() -> None:
    """Measure and print."""
    figures: dict[str, list[float]] = {}
    for name, run in _cases().items():
        figures[name] = sorted(run() for _ in range(RUNS))
    if "--json" in sys.argv[1:]:
        print(json.dumps({name: statistics.median(spent) for name, spent in figures.items()}))
        return
    table = Table("item", "µs of CPU (median)", "min", "max")
    for name, spent in figures.items():
        table.add_row(name, f"{statistics.median(spent):.2f}", f"{spent[0]:.2f}", f"{spent[-1]:.2f}")
    Console().print(table)


def _cases() -> dict[str, Callable[[], float]]:
    plain = [_chunk(WORDS[n % len(WORDS)]) for n in range(CHUNKS)]
    counted = [_chunk(WORDS[n % len(WORDS)], n) for n in range(CHUNKS)]
    wide = [_chunk("字", n) for n in range(CHUNKS)]
    lines = [_chunk("\n" if n % 8 == 7 else WORDS[n % len(WORDS)]) for n in range(CHUNKS)]
    return {
        "a chunk, paced": partial(_paced, plain),
        "a chunk, paced, with usage": partial(_paced, counted),
        "a chunk, paced, other alphabets, with usage": partial(_paced, wide),
        "a chunk, paced, parsed and rebuilt (n = 2)": partial(_paced, plain, completions=2),
        f"a read of {AT_ONCE} chunks": partial(_at_once, plain),
        f"a read of {AT_ONCE} chunks, every eighth a line end": partial(_at_once, lines),
        f"a read of {AT_ONCE} chunks with usage": partial(_at_once, counted),
        "a stream of one token, new": _stream,
        "a small whole answer": _whole,
        "a request's body": _request_body,
    }


def _request(*, stream: bool = True, completions: int = 1) -> InferenceRequest:
    body = {"messages": [{"role": "user", "content": "Hello! " * 8}], "max_tokens": 64}
    return InferenceRequest(Kind.CHAT, body, stream, False, "chatcmpl-1", 1, "ep_x", completions)


def _paced(chunks: list[bytes], completions: int = 1) -> float:
    feed = StreamRewriter(_request(completions=completions), limit_bytes=1 << 20).feed
    feed(chunks[0])
    start_s = time.process_time()
    for chunk in chunks:
        feed(chunk)
    return (time.process_time() - start_s) / len(chunks) * 1e6


def _at_once(chunks: list[bytes]) -> float:
    feed = StreamRewriter(_request(), limit_bytes=1 << 20).feed
    feed(chunks[0])
    reads = [b"".join(chunks[n : n + AT_ONCE]) for n in range(0, len(chunks), AT_ONCE)]
    start_s = time.process_time()
    for read in reads:
        feed(read)
    return (time.process_time() - start_s) / len(reads) * 1e6


def _stream() -> float:
    """Role, one token, end, usage and ``[DONE]``, each in a read of its own, of an engine that was met before."""
    habits, request = Habits(), _request()
    streams = [
        [
            _chunk("", n, role=True),
            _chunk(" sea", n),
            _chunk("", n, reason="length"),
            _event([], n),
            b"data: [DONE]\n\n",
        ]
        for n in range(ANSWERS)
    ]
    start_s = time.process_time()
    for reads in streams:
        rewriter = StreamRewriter(request, limit_bytes=1 << 20, habits=habits)
        for read in reads:
            rewriter.feed(read)
        rewriter.finish()
        rewriter.observed()
    return (time.process_time() - start_s) / len(streams) * 1e6


def _whole() -> float:
    answer = {
        "id": "chatcmpl-5b1c0a",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(WORDS), "tool_calls": [], "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 24, "total_tokens": 38, "completion_tokens": 14, "prompt_tokens_details": None},
    }
    raw, request = json.dumps(answer, separators=(",", ":")).encode(), _request(stream=False)
    start_s = time.process_time()
    for _ in range(ANSWERS):
        rebuild_answer(raw, request)
    return (time.process_time() - start_s) / ANSWERS * 1e6


def _request_body() -> float:
    request = _request()
    start_s = time.process_time()
    for _ in range(ANSWERS):
        encode_body(request, model=MODEL)
    return (time.process_time() - start_s) / ANSWERS * 1e6


def _chunk(text: str, number: int | None = None, *, role: bool = False, reason: str | None = None) -> bytes:
    delta = {"role": "assistant", "content": text} if role else {"content": text}
    return _event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}], number)


def _event(choices: list[dict[str, object]], number: int | None) -> bytes:
    chunk: dict[str, object] = {
        "id": "chatcmpl-5b1c0a",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": MODEL,
        "choices": choices,
    }
    if number is not None:
        chunk["usage"] = {"prompt_tokens": 24, "total_tokens": 24 + number, "completion_tokens": number}
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


if __name__ == "__main__":
    main()
