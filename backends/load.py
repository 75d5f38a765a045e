"""Ask a server's metrics page how busy it is.

Floor: edge.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from backends.pool import Address, ConnectionPool
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.load_page import Load, read_load

MAX_PAGE_BYTES = 4 * 1024 * 1024
__all__ = ["Load", "LoadSource", "MetricsPage"]


class LoadSource(Protocol):
    """Where the load of a server can be read."""

    async def read(self, timeout_s: float) -> Load | None:
        """The load now; ``None`` if it can't be had."""

    async def close(self) -> None:
        """Keep no connection any more."""


class MetricsPage:
    """A Prometheus page over HTTP.

    Args:
        url: of the page, ``http://host:port/metrics``.
        model: what the server calls the model whose queue counts.

    Raises:
        ValueError: the address is none.
    """

    def __init__(self, url: str, *, model: str, connect_timeout_s: float = 5.0) -> None:
        self._model = model
        root, _, path = url.partition("://")[2].partition("/")
        self._address = Address.parse(f"{url.partition('://')[0]}://{root}")
        self._pool = ConnectionPool(
            self._address, connect_timeout_s=connect_timeout_s, max_connections=4, max_idle=0, idle_s=1.0
        )
        self._request = (
            f"GET /{path} HTTP/1.1\r\nHost: {self._address.authority}\r\nUser-Agent: pareta-gateway\r\n\r\n"
        ).encode()

    async def read(self, timeout_s: float) -> Load | None:
        """The load now; ``None`` if the page can't be read or tells nothing we know."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._pool.connect()
                page = _Page()
                connection.send(self._request, page)
                try:
                    return read_load(await page.text, self._model)
                finally:
                    connection.abort()
                    self._pool.give_back(connection)
        except (TimeoutError, BackendFailure):
            return None

    async def close(self) -> None:
        """Keep no connection any more."""
        self._pool.close()


class _Page:
    """Collects one page."""

    def __init__(self) -> None:
        self.text: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._parts: list[bytes] = []
        self._size = 0
        self._status = 0

    def head(self, status: int, headers: dict[bytes, bytes]) -> None:
        del headers
        self._status = status

    def body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= MAX_PAGE_BYTES:
            self._parts.append(data)

    def ended(self) -> None:
        if self._status == 200 and self._size <= MAX_PAGE_BYTES:
            self._tell(b"".join(self._parts).decode("utf-8", "replace"))
        else:
            self._tell(None)

    def lost(self, *, malformed: bool) -> None:
        del malformed
        self._tell(None)

    def _tell(self, page: str | None) -> None:
        if self.text.done():
            return
        if page is None:
            self.text.set_exception(BackendFailure(FailureCode.PROTOCOL, Phase.BODY))
        else:
            self.text.set_result(page)
