"""A lean pool of connections to one engine.

Floor: edge. Last in, first out, so that a quiet pool shrinks. Bounded both ways: connections in all, and how many
idle ones are kept and for how long. Connecting is the only thing here that waits.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from urllib.parse import urlsplit

from backends.connection import EngineConnection
from backends.wire.failure import BackendFailure, FailureCode, Phase


@dataclass(frozen=True, slots=True)
class Address:
    """Where an engine listens. ``prefix`` is the path before ``/v1``, usually empty."""

    host: str
    port: int
    is_tls: bool
    prefix: str
    authority: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read ``http://host:port`` or ``https://…``.

        Raises:
            ValueError: with a sentence for the operator.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"A backend's address must look like http://host:port, got {url!r}.")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(
            parts.hostname, parts.port or (443 if is_tls else 80), is_tls, prefix, parts.netloc.rpartition("@")[2]
        )


class ConnectionPool:
    """Connections to one `Address`.

    Args:
        address: the engine.
        connect_timeout_s: deadline of one connect.
        max_connections: more are refused as ``OVERLOADED``.
        max_idle: idle connections kept.
        idle_s: how long an idle one is kept.
    """

    def __init__(
        self, address: Address, *, connect_timeout_s: float, max_connections: int, max_idle: int, idle_s: float
    ) -> None:
        self._address = address
        self._connect_timeout_s = connect_timeout_s
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._idle_s = idle_s
        self._idle: deque[EngineConnection] = deque()
        self._is_closed = False
        self._tls = ssl.create_default_context() if address.is_tls else None
        self.in_use = 0

    def take_idle(self) -> EngineConnection | None:
        """An open connection that waits for work, the youngest first; at once."""
        if not self._idle:
            return None
        self._drop_stale(time.monotonic())
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.reused = True
                self.in_use += 1
                return connection
        return None

    async def connect(self, *, beyond_bound: bool = False) -> EngineConnection:
        """A new connection.

        Args:
            beyond_bound: take it although ``max_connections`` are in use.

        Raises:
            BackendFailure: phase ``connect``: unreachable, too slow, or too many are open.
        """
        if self.in_use >= self._max_connections and not beyond_bound:
            raise BackendFailure(FailureCode.OVERLOADED, Phase.CONNECT)
        loop = asyncio.get_running_loop()
        self.in_use += 1
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    EngineConnection, self._address.host, self._address.port, ssl=self._tls
                )
        except BaseException as error:
            self.in_use -= 1
            if isinstance(error, TimeoutError):
                raise BackendFailure(FailureCode.TIMEOUT, Phase.CONNECT) from None
            if isinstance(error, OSError):
                raise BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT) from None
            raise
        return connection

    def give_back(self, connection: EngineConnection) -> None:
        """Return a connection after its answer; kept when it can serve another and there is room."""
        self.in_use -= 1
        if not connection.is_usable:
            return
        if self._is_closed or len(self._idle) >= self._max_idle:
            connection.abort()
            return
        connection.idle_since_s = time.monotonic()
        self._idle.append(connection)

    def close(self) -> None:
        """Drop every connection that waits for work, and those in use when they are given back."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().abort()

    def _drop_stale(self, now_s: float) -> None:
        while self._idle and (now_s - self._idle[0].idle_since_s > self._idle_s or not self._idle[0].is_usable):
            self._idle.popleft().abort()
