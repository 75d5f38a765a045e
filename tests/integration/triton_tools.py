"""A Triton backend under test, and a sink that remembers what it was given."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from backends.protocol import Call
from backends.triton_backend import TritonBackend
from backends.triton_limits import TritonLimits
from backends.wire.allowance import UNBOUNDED
from backends.wire.failure import BackendFailure
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed

PATIENCE_S = 30.0
_numbers = itertools.count(1)


class Told:
    """A sink: all that was pushed."""

    def __init__(self, allowances: list[int] | None = None) -> None:
        self.is_accepted = False
        self.data = b""
        self.body = b""
        self.observed: Observed | None = None
        self.failure: BackendFailure | None = None
        self.over = asyncio.Event()
        self.news = asyncio.Event()
        self.allowances = allowances
        self.ends = 0

    def accepted(self) -> None:
        assert not self.is_accepted
        self.is_accepted = True

    def events(self, data: bytes) -> None:
        assert self.is_accepted
        assert not self.over.is_set()
        self.data += data
        self.news.set()

    def allowance(self, seen: Observed) -> int:
        del seen
        if self.allowances is None:
            return UNBOUNDED
        return self.allowances.pop(0) if self.allowances else UNBOUNDED

    def finished(self, body: bytes, observed: Observed) -> None:
        self.ends += 1
        self.body, self.observed = body, observed
        self.over.set()

    def failed(self, failure: BackendFailure) -> None:
        self.ends += 1
        self.failure = failure
        self.over.set()

    async def end(self) -> Told:
        """Until it is over, which happens once."""
        async with asyncio.timeout(PATIENCE_S):
            await self.over.wait()
        assert self.ends == 1
        return self

    async def some(self) -> None:
        """Until something more has come."""
        self.news.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self.news.wait()

    @property
    def chunks(self) -> list[dict[str, Any]]:
        """The events of a stream."""
        return [orjson.loads(event.removeprefix(b"data: ")) for event in self.data.split(b"\n\n") if event]

    @property
    def text(self) -> str:
        """The text of choice 0, streamed or whole."""
        if self.body:
            choice = orjson.loads(self.body)["choices"][0]
            return str(choice["text"] if "text" in choice else choice["message"]["content"])
        parts = [choice for chunk in self.chunks for choice in chunk["choices"] if choice["index"] == 0]
        return "".join(part["text"] if "text" in part else part["delta"].get("content") or "" for part in parts)

    @property
    def finish_reason(self) -> str:
        """Of choice 0."""
        if self.body:
            return str(orjson.loads(self.body)["choices"][0]["finish_reason"])
        found = [choice["finish_reason"] for chunk in self.chunks for choice in chunk["choices"]]
        assert [reason for reason in found if reason] == found[-1:], found
        return str(found[-1])


def request(prompt: str, *, stream: bool = True, **fields: Any) -> InferenceRequest:
    """A completion, which needs no chat template."""
    body = {"prompt": prompt, "max_tokens": 64, **fields}
    return InferenceRequest(
        kind=Kind.COMPLETION,
        body=body,
        stream=stream,
        include_usage=False,
        answer_id=f"cmpl-{next(_numbers)}",
        created_s=1_700_000_000,
        public_model="public",
        completions=body.get("n", 1),
    )


@asynccontextmanager
async def backend_at(url: str, **limits: Any) -> AsyncIterator[TritonBackend]:
    """A backend without a model folder. What it was asked has ended before the test does, its streams with it."""
    backend = TritonBackend(url, model="unnamed", context_tokens=4096, limits=TritonLimits(**limits))
    try:
        yield backend
    finally:
        await backend.close()
        await all_ended(backend)


async def all_ended(backend: TritonBackend) -> None:
    """Until nothing is left of a closed backend: a stream ends a moment after its answer, its connection with it."""
    async with asyncio.timeout(PATIENCE_S):
        while backend.running:
            await asyncio.sleep(0.005)


async def ask(backend: TritonBackend, asked: InferenceRequest) -> Told:
    """The whole of an answer."""
    told = Told()
    await backend.open(asked, told)
    return await told.end()


async def begun(backend: TritonBackend, asked: InferenceRequest) -> tuple[Told, Call]:
    """A stream of which something has come."""
    told = Told()
    call = await backend.open(asked, told)
    await told.some()
    return told, call
