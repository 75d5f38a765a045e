"""A TCP proxy on loopback that a test can cut, freeze and open again: a network that fails on demand."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""With which a client of Postgres asks for TLS; the server says ``S`` and goes on in it."""


class TcpProxy:
    """Stands in front of the server of a URL; :attr:`url` is the same URL through the proxy.

    Args:
        url: of the server.
        tls: speak TLS to those who come, as the front of a managed database does: to clients of Postgres once they
            asked for it, to others from the first byte.
    """

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None) -> None:
        self._target = urlsplit(url)
        self._tls = tls
        self._starts_tls = tls is not None and self._target.scheme.startswith("postgres")
        self._running = asyncio.Event()
        self._running.set()
        self._refusing = False
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.accepted = 0

    async def __aenter__(self) -> TcpProxy:
        tls = None if self._starts_tls else self._tls
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=tls)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        await self.cut()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        user, _, _ = self._target.netloc.rpartition("@")
        netloc = f"{user}@127.0.0.1:{self.port}" if user else f"127.0.0.1:{self.port}"
        return urlunsplit(self._target._replace(netloc=netloc))

    async def cut(self) -> None:
        """Break every connection that is open."""
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in self._writers:  # of a connection that was accepted a moment ago, and whose task never began
            writer.transport.abort()
        self._writers.clear()

    async def lead_to(self, url: str) -> None:
        """Stand in front of another server from now on; what is open breaks."""
        self._target = urlsplit(url)
        await self.cut()

    async def refuse(self) -> None:
        """Break every connection and every new one, until :meth:`mend`."""
        self._refusing = True
        await self.cut()

    def freeze(self) -> None:
        """Pass nothing on any more, without a word to either side, until :meth:`mend`."""
        self._running.clear()

    def mend(self) -> None:
        """Work again."""
        self._refusing = False
        self._running.set()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A cut must not reach asyncio's own callback as a cancellation.
        with suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
            try:
                if self._starts_tls:
                    await self._start_tls(reader, writer)
                if not self._refusing:
                    await self._relay(reader, writer)
            finally:
                writer.transport.abort()
                self._writers.discard(writer)

    async def _start_tls(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._tls is not None
        assert await reader.readexactly(8) == SSL_REQUEST, "the client did not insist on TLS"
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(self._tls)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._target.hostname is not None
        there, back = await asyncio.open_connection(self._target.hostname, self._target.port)
        try:
            pumps = {asyncio.ensure_future(self._pump(*ends)) for ends in ((reader, back), (there, writer))}
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
        finally:
            back.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65_536):
            await self._running.wait()
            sink.write(data)
            await sink.drain()
