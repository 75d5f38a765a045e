"""The requests of a load as bytes, made before it begins: while it runs, each costs one concatenation."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from benchmarks.load.plan import Load, Target

_VARIANTS = 128
_MOST_PREPARED_BYTES = 16 * 1024 * 1024
_NUMBER = "0" * 16
_TEXT = (
    "the of and to in is that for it as was with be by on not he this are or his from at which but have an had they "
    "you were their one all we can her has there been if more when will would who so no she other its may these what "
    "them than some him time into only do such my new about out also two any up first could our then most see me should"
)
"""Short words that are one token each in the vocabularies of common models."""
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request without its number, which comes between the two parts.

    Attributes:
        tokens: its ``max_tokens``.
    """

    before: bytes
    after: bytes
    tokens: int


class Requests:
    """Draws from requests of a load's lengths, each with a number of its own at the beginning of the prompt."""

    def __init__(self, target: Target, load: Load, *, seed: int) -> None:
        chance = random.Random(seed)
        self._count = seed << 40
        prepared: list[Prepared] = []
        size = 0
        customers = target.customers or [(target.api_key, target.model)]
        while len(prepared) < max(_VARIANTS, len(customers)) and size < _MOST_PREPARED_BYTES:
            api_key, model = customers[len(prepared) % len(customers)]
            one = _prepare(replace(target, api_key=api_key, model=model), load, chance)
            prepared.append(one)
            size += len(one.before) + len(one.after)
        self._endless = _shuffled(prepared, chance)

    def next(self) -> tuple[bytes, int]:
        """A request, and its ``max_tokens``."""
        one = next(self._endless)
        self._count += 1
        return b"%b%016x%b" % (one.before, self._count, one.after), one.tokens


def _shuffled(prepared: list[Prepared], chance: random.Random) -> Iterator[Prepared]:
    while True:
        chance.shuffle(prepared)
        yield from prepared


def _prepare(target: Target, load: Load, chance: random.Random) -> Prepared:
    words = load.prompt_tokens.sample(chance)
    tokens = load.max_tokens.sample(chance)
    text = " ".join([_NUMBER, *chance.choices(_WORDS, k=words - 1)])
    content = {"model": target.model, "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
    if load.stream:
        content["stream"] = True
    body = json.dumps({**content, **load.body}).encode()
    further = "".join(f"{name}: {value}\r\n" for name, value in target.headers.items())
    host = urlsplit(target.base_url).netloc.rpartition("@")[2]
    head = (
        f"POST {target.root}/v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
        f"Authorization: Bearer {target.api_key}\r\nContent-Type: application/json\r\n"
        f"Accept: {'text/event-stream' if load.stream else 'application/json'}\r\n"
        f"{further}Content-Length: {len(body)}\r\n\r\n"
    )
    before, _, after = (head.encode() + body).partition(_NUMBER.encode())
    return Prepared(before, after, tokens)
