"""The door to the control process: HTTP on loopback, with a secret that only this installation's processes can read.

Floor: edges. Where the control process listens stands in a file of the data folder that it writes when it starts. A
connection that cannot be made reads the file anew and tries once more; a request that may have arrived is never sent
twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp
import orjson

from gateway.core import inner
from gateway.core.ports import PlatformAnswer, PlatformAsk, PlatformUnavailable

MAX_ANSWER_BYTES: Final = 64 * 1024 * 1024
TOTAL_S: Final = 55.0
"""Of an answer that is no stream; below the minute that clients wait."""
SILENCE_S: Final = 60.0
CONNECT_S: Final = 2.0
CONNECTIONS: Final = 256

_FOR_CLIENTS: Final = frozenset({"retry-after", "x-should-retry", "allow", "idempotent-replayed", "cache-control"})


class PlatformDoor:
    """The way of one worker.

    Args:
        address_file: what the control process wrote: ``{"url": …, "token": …}``.
    """

    def __init__(self, address_file: Path) -> None:
        self._address_file = address_file
        self._address: tuple[str, str] | None = None
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def ask(self, ask: PlatformAsk) -> AsyncIterator[PlatformAnswer]:
        """See `gateway.core.ports.Platform.ask`."""
        response = await self._send(ask)
        try:
            yield _Answer(response)
        finally:
            # A body that was not read to its end takes the connection with it; that is also how a stream is left.
            response.close()

    async def tell(self, target: str, body: bytes) -> None:
        """Tell the control process something of our own, and wait for no more than that it has heard.

        Raises:
            PlatformUnavailable: it has not, as far as we know.
        """
        url, token = await self._where(anew=False)
        try:
            async with self._opened().post(url + target, data=body, headers={inner.SECRET: token}) as response:
                if response.status != 204:
                    raise PlatformUnavailable
        except (aiohttp.ClientError, TimeoutError, OSError):
            self._address = None
            raise PlatformUnavailable from None

    async def close(self) -> None:
        """Drop the connections."""
        if self._session is not None:
            await self._session.close()

    async def _send(self, ask: PlatformAsk) -> aiohttp.ClientResponse:
        for is_last in (False, True):
            url, token = await self._where(anew=is_last)
            try:
                return await self._request(url, token, ask)
            except aiohttp.ClientConnectorError:
                if is_last:
                    raise PlatformUnavailable from None
            except (aiohttp.ClientError, TimeoutError, OSError):
                raise PlatformUnavailable from None
        raise AssertionError

    async def _request(self, url: str, token: str, ask: PlatformAsk) -> aiohttp.ClientResponse:
        headers = {
            inner.SECRET: token,
            inner.KEY: ask.key.id,
            inner.ORGANIZATION: ask.key.org_id,
            inner.REQUEST: ask.request_id,
        }
        if ask.content_type:
            headers["Content-Type"] = ask.content_type
        if ask.idempotency_key is not None:
            headers["Idempotency-Key"] = ask.idempotency_key
        return await self._opened().request(
            ask.method, url + ask.target, data=ask.body or None, headers=headers, allow_redirects=False
        )

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS),
                timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S, sock_read=SILENCE_S),
                auto_decompress=False,
                raise_for_status=False,
            )
        return self._session

    async def _where(self, *, anew: bool) -> tuple[str, str]:
        if self._address is None or anew:
            try:
                said = orjson.loads(await asyncio.to_thread(self._address_file.read_bytes))
                self._address = said["url"], said["token"]
            except (OSError, ValueError, KeyError, TypeError):
                raise PlatformUnavailable from None
        return self._address


class _Answer:
    """See `gateway.core.ports.PlatformAnswer`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        said = response.headers.get("Content-Type", "")
        self.is_stream = said.startswith("text/event-stream")
        self.content_type = f"Content-Type: {said}\r\n".encode("latin-1") if said else b""
        self.headers = _for_client(response.headers)
        self.error_code = response.headers.get(inner.ERROR)

    async def read(self) -> bytes:
        """The whole body."""
        try:
            async with asyncio.timeout(TOTAL_S):
                body = bytearray()
                async for piece in self._response.content.iter_any():
                    body += piece
                    if len(body) > MAX_ANSWER_BYTES:
                        raise PlatformUnavailable
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise PlatformUnavailable from None
        return bytes(body)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The events as they come."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, TimeoutError, OSError):
            raise PlatformUnavailable from None


def _for_client(headers: Mapping[str, str]) -> Mapping[str, str]:
    return {name: value for name, value in headers.items() if name.lower() in _FOR_CLIENTS}
