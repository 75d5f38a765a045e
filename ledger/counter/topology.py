"""Which server has a key now: the one of the URL, the master that Sentinel names, or the cluster's node of its slot.

Floor: ``ledger`` edge. A route is asked only when there is no connection. It remembers whom to ask, never the answer,
so what a failover or a resharding has changed is seen with the next connection. Addresses that sentinels and clusters
announce are used as they are: behind address translation they must announce what their clients can reach
(``replica-announce-ip``, ``cluster-announce-ip``). Deadlines are the caller's.

Sources: redis.io, "Guidelines for Redis clients with support for Redis Sentinel" and "Redis Cluster specification".
"""

from __future__ import annotations

import asyncio
import binascii
import itertools
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from redis.exceptions import RedisError, ResponseError

from ledger.counter.node import Access, Node
from ledger.counter.url import Address, RedisUrl
from ledger.counter.values import CounterUnavailable

STAGGER_S = 0.25
"""After so long without an answer the next one is asked too."""

MOST_ASKED = 24
"""Sentinels or nodes that are asked for one answer at most."""

ASK_AGAIN_S = 2.0
"""Sentinels are asked again while a connection works: a master that was replaced serves on for up to ten seconds,
until a sentinel tells it, and what it does in that time is lost."""

ASK_AGAIN_LIMIT_S = 0.1
ASK_AGAIN_FAILED_S = 20.0
"""Until the next time when none has answered within that limit; a call must not suffer from sentinels that are away."""

_SLOTS = 16_384

T = TypeVar("T")


class Route(Protocol):
    """The way to the server that has a key."""

    async def open(self) -> Node:
        """Connect to it.

        Raises:
            CounterUnavailable, RedisError, OSError: it cannot be found or reached now.
        """

    async def open_at(self, address: Address) -> Node:
        """Connect to a server that another one has named. Raises as :meth:`open`."""

    async def agrees(self, node: Node) -> bool:
        """Whether the open connection still leads to the right server, as far as can be told at once."""

    def doubt(self) -> None:
        """What was found did not serve; ask somebody else first next time."""


def route_to(url: RedisUrl, key: str) -> Route:
    """The way to the server of a URL that has ``key``.

    Raises:
        ValueError: it is a cluster, and there is no key.
    """
    if url.kind == "server":
        return ServerRoute(url)
    if url.kind == "sentinel":
        return SentinelRoute(url)
    if not key:
        raise ValueError("A link to a Redis Cluster needs the key that it serves.")
    return ClusterRoute(url, key)


class ServerRoute:
    """Always the same server."""

    def __init__(self, url: RedisUrl) -> None:
        self._access = Access(url.connection, url.data)
        self._address = url.seeds[0] if url.seeds else None

    async def open(self) -> Node:
        """Connect to it."""
        return await Node.open(self._access, self._address)

    async def open_at(self, address: Address) -> Node:
        """Refuse to: this server is said to be alone."""
        raise CounterUnavailable("unreachable", "this Redis is one of a cluster: its URL starts with redis+cluster://")

    async def agrees(self, node: Node) -> bool:
        """There is nobody to ask."""
        return True

    def doubt(self) -> None:
        """There is nobody else."""


class SentinelRoute:
    """The master of a service, as any sentinel knows it and as the server itself confirms."""

    def __init__(self, url: RedisUrl) -> None:
        self._data = Access(url.connection, url.data)
        self._sentinel = Access(url.connection, url.sentinel)
        self._service = url.service
        self._seeds = deque(url.seeds)
        self._ask_again_s = 0.0

    async def open(self) -> Node:
        """Connect to the first master that a sentinel names and that is one."""
        left = list(self._seeds)
        failed: dict[Address, Exception] = {}
        while True:
            try:
                sentinel, master = await first_answer(self._ask, left)
            except CounterUnavailable:
                if failed:  # some sentinel did answer; what became of that says more
                    raise next(iter(failed.values())) from None
                raise
            left.remove(sentinel)
            if master in failed:
                continue
            try:
                node = await Node.open(self._data, master)
            except (CounterUnavailable, RedisError, OSError) as error:
                failed[master] = error
                continue
            self._seeds.rotate(-self._seeds.index(sentinel))
            self._ask_again_s = time.monotonic() + ASK_AGAIN_S
            return node

    async def open_at(self, address: Address) -> Node:
        """Refuse to: sentinels do not watch clusters."""
        raise CounterUnavailable("unreachable", "this Redis is one of a cluster: its URL starts with redis+cluster://")

    async def agrees(self, node: Node) -> bool:
        """Whether the sentinels still name this master; asked every few seconds, and believed in between."""
        if time.monotonic() < self._ask_again_s:
            return True
        try:
            async with asyncio.timeout(ASK_AGAIN_LIMIT_S):
                _, master = await first_answer(self._ask, self._seeds)
        except (CounterUnavailable, TimeoutError):
            self._ask_again_s = time.monotonic() + ASK_AGAIN_FAILED_S
            return True
        self._ask_again_s = time.monotonic() + ASK_AGAIN_S
        return master == node.address

    def doubt(self) -> None:
        """Ask another sentinel first."""
        self._seeds.rotate(-1)

    async def _ask(self, sentinel: Address) -> tuple[Address, Address]:
        reply = await self._sentinel.ask(sentinel, "SENTINEL", "get-master-addr-by-name", self._service)
        if reply is None:
            raise CounterUnavailable("unreachable", f"no service is named {self._service!r} there")
        return sentinel, (reply[0].decode(), int(reply[1]))


class ClusterRoute:
    """The master of a key's slot, as any node of the cluster knows it."""

    def __init__(self, url: RedisUrl, key: str) -> None:
        self._access = Access(url.connection, url.data)
        self._slot = slot_of(key)
        self._seeds = url.seeds
        self._known: deque[Address] = deque()

    async def open(self) -> Node:
        """Connect to it."""
        everybody = list(dict.fromkeys((*self._known, *self._seeds)))
        asked, slots = await first_answer(self._ask, everybody)
        nodes = [_node_address(row, asked) for entry in slots for row in entry[2:]]
        self._known = deque(dict.fromkeys([asked, *nodes]))
        for first, last, master, *_ in slots:
            if first <= self._slot <= last:
                return await Node.open(self._access, _node_address(master, asked))
        raise CounterUnavailable("unreachable", f"no node of the cluster serves slot {self._slot}")

    async def open_at(self, address: Address) -> Node:
        """Connect to the node that another one has redirected to."""
        return await Node.open(self._access, address)

    async def agrees(self, node: Node) -> bool:
        """The node itself says so when its slot is elsewhere."""
        return True

    def doubt(self) -> None:
        """Ask another node first."""
        self._known.rotate(-1)

    async def _ask(self, node: Address) -> tuple[Address, list[Any]]:
        return node, await self._access.ask(node, "CLUSTER", "SLOTS")


async def first_answer(ask: Callable[[Address], Awaitable[T]], whom: Iterable[Address]) -> T:
    """Ask in this order, the next one when one has failed or is slow; the first answer counts.

    Raises:
        CounterUnavailable: nobody has one.
    """
    waiting = deque(itertools.islice(whom, MOST_ASKED))
    asking: set[asyncio.Task[T]] = set()
    failures: list[str] = []
    try:
        while waiting or asking:
            if waiting:
                asking.add(asyncio.ensure_future(_described(ask, waiting.popleft())))
            wait_s = STAGGER_S if waiting else None
            done, asking = await asyncio.wait(asking, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, _NoAnswer):
                    raise error
                failures.append(str(error))
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    raise CounterUnavailable("unreachable", "; ".join(failures)[:300] or "there is nobody left to ask")


class _NoAnswer(Exception):
    pass


async def _described(ask: Callable[[Address], Awaitable[T]], address: Address) -> T:
    try:
        return await ask(address)
    except CounterUnavailable as error:
        raise _NoAnswer(f"{address[0]}:{address[1]}: {error.detail}") from error
    except (ResponseError, RedisError, OSError) as error:
        raise _NoAnswer(f"{address[0]}:{address[1]}: {error}") from error


def _node_address(row: Sequence[Any], asked: Address) -> Address:
    """The address in a row of CLUSTER SLOTS. A node that does not tell its host has that of the one that was asked."""
    host = (row[0] or b"").decode()
    return (asked[0] if host in ("", "?") else host), int(row[1])


def slot_of(key: str) -> int:
    """The hash slot of a key: CRC16 (XMODEM) of what is in its first non-empty braces, else of all of it."""
    name = key.encode()
    start = name.find(b"{")
    end = name.find(b"}", start + 1)
    if start >= 0 and end > start + 1:
        name = name[start + 1 : end]
    return binascii.crc_hqx(name, 0) % _SLOTS
