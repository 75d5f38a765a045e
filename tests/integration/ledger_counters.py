"""What the tests of the credit counter share."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import urlsplit

from ledger.core.pricing import Quote
from ledger.counter import Admission, CreditCounter, OpenLimit, RateLimit, Settlement

ORG = "org_aaaaaaaaaaaa"
_numbers = itertools.count(1)


def admission(
    hold_id: str = "",
    *,
    org: str = ORG,
    fixed: int = 100,
    rate: int = 0,
    tokens: int = 0,
    expires_in_s: float = 30.0,
    rates: tuple[RateLimit, ...] = (),
    opens: tuple[OpenLimit, ...] = (),
    fingerprint: str = "f",
    info: bytes = b'{"key":"k"}',
) -> Admission:
    """An admission with an id of its own unless one is given."""
    hold_id = hold_id or f"req_{next(_numbers):026d}"
    return Admission(hold_id, org, fingerprint, Quote(fixed, rate), tokens, expires_in_s, rates, opens, info)


def end(
    hold_id: str,
    amount: int = 0,
    *,
    org: str = ORG,
    refunds: tuple[tuple[str, int], ...] = (),
    opens: tuple[str, ...] = (),
) -> Settlement:
    """The end of a hold."""
    return Settlement(hold_id, org, amount, refunds, opens, b'{"outcome":"finished"}')


@asynccontextmanager
async def opened(
    url: str, *, grant: int = 0, shards: int = 1, epoch: int = 1, timeout_s: float = 2.0, begin: bool = True
) -> AsyncIterator[CreditCounter]:
    """A counter on a Redis that it opens if it is new; with ``grant`` the organization has credit."""
    counter = await CreditCounter.connect(url, shards=shards, epoch=epoch, timeout_s=timeout_s)
    try:
        if begin:
            await counter.begin_epoch()
        if grant:
            await counter.grant(ORG, 1, grant)
        yield counter
    finally:
        await counter.close()


class AnswerEater:
    """A proxy before Redis that, while ``eating``, passes on what is asked and swallows what is answered."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.eating = False
        self.eaten = 0

    @property
    def url(self) -> str:
        """The same Redis through the proxy."""
        assert self._server is not None
        return f"redis://:{self._target.password}@127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)
        for writer in self._writers:  # of a relay that was cancelled before it began, too
            writer.transport.abort()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        relay = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(relay)
        relay.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, back, answers=False))
                both.create_task(self._pump(there, writer, answers=True))
        except* OSError:
            pass
        finally:
            back.transport.abort()
            writer.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        while data := await source.read(65_536):
            if answers and self.eating:
                self.eaten += 1
            else:
                sink.write(data)
                await sink.drain()
        sink.close()
