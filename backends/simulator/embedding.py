"""Embeddings: every token has a fixed direction, a text is the normalized sum of its tokens' directions.

So equal texts are equal, texts that share words are near each other, and nothing else is promised. Pure.
"""

import base64
import math
import random
import struct
from functools import lru_cache
from typing import Any

import orjson

from backends.simulator.schema import EmbeddingRequest
from backends.simulator.tokens import tokenize

_TOKENS_READ = 512
"""Tokens of a text that decide its vector; the rest only counts."""


def embedding_body(request: EmbeddingRequest, model: str, answer_id: str, created_s: int, dimensions: int) -> bytes:
    """The body of an embeddings answer."""
    data: list[dict[str, Any]] = []
    for index, text in enumerate(request.inputs):
        vector = embed(text, request.dimensions or dimensions)
        packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if request.base64 else vector
        data.append({"index": index, "object": "embedding", "embedding": packed})
    return orjson.dumps(
        {
            "id": answer_id,
            "object": "list",
            "created": created_s,
            "model": model,
            "data": data,
            "usage": {
                "prompt_tokens": request.prompt_tokens,
                "total_tokens": request.prompt_tokens,
                "completion_tokens": 0,
                "prompt_tokens_details": None,
            },
        }
    )


@lru_cache(maxsize=1024)
def embed(text: str, dimensions: int) -> list[float]:
    """The unit vector of a text."""
    total = [0.0] * dimensions
    for token in tokenize(text)[:_TOKENS_READ] or [""]:
        total = [a + b for a, b in zip(total, _direction(token.strip().lower(), dimensions), strict=True)]
    length = math.sqrt(sum(part * part for part in total)) or 1.0
    return [part / length for part in total]


@lru_cache(maxsize=4096)
def _direction(token: str, dimensions: int) -> tuple[float, ...]:
    rng = random.Random(f"direction {token}")  # noqa: S311 - a fixed direction, not a secret
    return tuple(rng.gauss(0, 1) for _ in range(dimensions))
