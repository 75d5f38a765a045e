"""What it costs to translate one chunk of a stream, on the fast road and on the parsing one.

Run ``python -m benchmarks.micro.stream``. Prints microseconds per chunk, median of several runs in one process.
"""

from __future__ import annotations

import json
import statistics
import time

from rich.console import Console
from rich.table import Table

from backends.wire.openai_stream import StreamRewriter
from backends.wire.request import InferenceRequest, Kind

CHUNKS = 20_000
RUNS = 7


def main() -> None:
    """Measure and print."""
    table = Table("stream", "µs per chunk (median)", "min", "max")
    for name, texts, completions in (
        ("ASCII text, learned shape", "word{} ", 1),
        ("other alphabets, learned shape", "字{} ", 1),
        ("every chunk parsed and rebuilt (n = 2)", "word{} ", 2),
    ):
        chunks = [_chunk(texts.format(number), number) for number in range(CHUNKS)]
        spent = sorted(_run(chunks, completions) for _ in range(RUNS))
        table.add_row(name, f"{statistics.median(spent):.2f}", f"{spent[0]:.2f}", f"{spent[-1]:.2f}")
    Console().print(table)


def _run(chunks: list[bytes], completions: int) -> float:
    request = InferenceRequest(Kind.CHAT, {}, True, False, "chatcmpl-1", 1, "ep_x", completions)
    rewriter = StreamRewriter(request, limit_bytes=1 << 20)
    start_s = time.perf_counter()
    for chunk in chunks:
        rewriter.feed(chunk)
    return (time.perf_counter() - start_s) / len(chunks) * 1e6


def _chunk(text: str, number: int) -> bytes:
    chunk = {
        "id": "chatcmpl-5b1c0a",
        "object": "chat.completion.chunk",
        "created": 1_700_000_000,
        "model": "some-labs/some-model-8b-instruct",
        "choices": [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None}],
        "usage": {"prompt_tokens": 24, "total_tokens": 24 + number, "completion_tokens": number},
    }
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


if __name__ == "__main__":
    main()
