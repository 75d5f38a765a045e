"""TCP proxies that fail on demand, on a thread of their own, so that a busy test never slows the network down."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import uvloop


class Network:
    """A thread with a loop in which proxies live. Every call may come from any thread."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxies", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Any]) -> Any:
        """Run something in the loop and wait for it."""

        async def run() -> Any:
            answer = work()
            return await answer if asyncio.iscoroutine(answer) else answer

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def proxy(self, url: str) -> Proxy:
        """A new proxy before the server of a URL."""
        made = Proxy(self, url)
        self.call(made.open)
        return made

    def close(self) -> None:
        """Stop the thread; open connections break."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5)


class Proxy:
    """One proxy: :attr:`url` is the server's URL through it. See the methods for what it can do to the traffic."""

    def __init__(self, network: Network, url: str) -> None:
        self._network = network
        self._url = urlsplit(url)
        self.target = (self._url.hostname or "127.0.0.1", self._url.port or 0)
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self.is_refusing = False
        self.is_frozen = False
        self.is_eating = False
        self._late: list[_Link] = []
        self.accepted = 0
        self.delivered_late = 0
        self.refused = 0
        self.eaten = 0
        self.held_back = 0

    async def open(self) -> None:
        """Listen. Runs in the network's loop."""
        self._server = await self._network.loop.create_server(lambda: _Near(self), "127.0.0.1", 0)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        user, _, _ = self._url.netloc.rpartition("@")
        netloc = f"{user}@127.0.0.1:{self.port}" if user else f"127.0.0.1:{self.port}"
        return urlunsplit(self._url._replace(netloc=netloc))

    def cut(self) -> int:
        """Break every open connection; returns how many there were."""
        return int(self._network.call(self._cut))

    def refuse(self) -> None:
        """Break every connection, and every new one, until :meth:`mend`."""
        self.is_refusing = True
        self.cut()

    def freeze(self) -> None:
        """Pass nothing on, without a word to either side, until :meth:`mend`."""
        self.is_frozen = True

    def delay(self) -> None:
        """Hold back what is asked on the connections of now; those of later pass.

        What a client asked before it gave up and left arrives all the same, at :meth:`mend`.
        """
        self._network.call(self._delay)

    def eat(self) -> None:
        """Pass on what is asked and swallow what is answered, until :meth:`mend`."""
        self.is_eating = True

    def aim(self, url: str, *, cut: bool = True) -> None:
        """Another server for new connections; what is open breaks, unless it shall stay with the old one."""
        parts = urlsplit(url)
        self.target = (parts.hostname or "127.0.0.1", parts.port or 0)
        if cut:
            self.cut()

    def cut_some(self, rng: random.Random) -> tuple[int, int]:
        """Break about half of the connections; returns how many were broken and how many are left."""
        return cast("tuple[int, int]", self._network.call(lambda: self._cut_some(rng)))

    def mend(self) -> None:
        """Work again. Connections that lost an answer are broken: no network loses bytes out of the middle."""
        self.is_refusing = self.is_frozen = self.is_eating = False
        self._network.call(self._mend)

    def _delay(self) -> None:
        for link in self._links:
            link.is_stuck = True

    def _mend(self) -> None:
        late, self._late = self._late, []
        for link in late:
            self.delivered_late += link.deliver()
        for link in list(self._links):
            if link.lost:
                link.abort()
            else:
                link.is_stuck = False
                link.flush()

    def _cut(self) -> int:
        links = list(self._links)
        for link in links:
            link.abort()
        return len(links)

    def _cut_some(self, rng: random.Random) -> tuple[int, int]:
        broken = [link for link in self._links if rng.random() < 0.5]
        for link in broken:
            link.abort()
        return len(broken), len(self._links)


class _Link:
    """The two ends of one connection."""

    def __init__(self, proxy: Proxy, near: asyncio.Transport) -> None:
        self.proxy = proxy
        self.near = near
        self.far: asyncio.Transport | None = None
        self.lost = False
        self.is_stuck = False
        self._waiting: list[tuple[bool, bytes]] = []

    def pass_on(self, data: bytes, *, answer: bool) -> None:
        proxy = self.proxy
        if proxy.is_eating and answer:
            proxy.eaten += 1
            self.lost = True
        elif proxy.is_frozen or self.is_stuck or self.far is None:
            proxy.held_back += 1
            self._waiting.append((answer, data))
        elif not self.lost or not answer:
            end = self.near if answer else self.far
            if not end.is_closing():
                end.write(data)

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for answer, data in waiting:
            self.pass_on(data, answer=answer)

    def deliver(self) -> int:
        """Send what was asked, though nobody waits for the answer; returns how much it was."""
        asked = [data for is_answer, data in self._waiting if not is_answer]
        if self.far is not None and not self.far.is_closing():
            self.far.write(b"".join(asked))
            self.proxy._network.loop.call_later(0.3, self.far.close)
        return len(asked)

    def abort(self) -> None:
        self.proxy._links.discard(self)
        self.near.abort()
        if self.far is not None:
            self.far.abort()

    async def connect(self) -> None:
        try:
            await self.proxy._network.loop.create_connection(lambda: _Far(self), *self.proxy.target)
        except OSError:
            self.abort()


class _Near(asyncio.Protocol):
    """The client's side."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._link: _Link | None = None

    def connection_made(self, transport: Any) -> None:
        if self._proxy.is_refusing:
            self._proxy.refused += 1
            transport.abort()
            return
        self._proxy.accepted += 1
        self._link = _Link(self._proxy, transport)
        self._proxy._links.add(self._link)
        self._task = self._proxy._network.loop.create_task(self._link.connect())

    def data_received(self, data: bytes) -> None:
        if self._link is not None:
            self._link.pass_on(data, answer=False)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link is None:
            return
        if self._link.is_stuck and self._link in self._proxy._links:
            self._proxy._links.discard(self._link)
            self._proxy._late.append(self._link)
        else:
            self._link.abort()


class _Far(asyncio.Protocol):
    """The server's side."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def connection_made(self, transport: Any) -> None:
        self._link.far = transport
        if self._link not in self._link.proxy._links and self._link not in self._link.proxy._late:
            transport.abort()
        elif not self._link.proxy.is_frozen:
            self._link.flush()

    def data_received(self, data: bytes) -> None:
        self._link.pass_on(data, answer=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._link in self._link.proxy._links:
            # What was answered before the end is still on its way to the client.
            self._link.proxy._links.discard(self._link)
            self._link.near.close()
