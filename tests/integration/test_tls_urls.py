"""TLS URLs of external databases: ``sslmode=verify-full`` and ``rediss://`` work, and a wrong certificate is refused.

The servers that come as wheels are built without TLS, so a proxy speaks it in front of them, as a managed database's
front does: for Postgres after the client's SSLRequest, for Redis from the first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from gateway.edges.state_feed import StateFeed
from gateway.stack.prepare import migrate_all
from ledger.books.ledger import Ledger, open_pool
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.errors import LedgerError
from tests.services import FreshDatabase

SSL_REQUEST = bytes.fromhex("0000000804d2162f")


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tls_front(url: str, authority: trustme.CA, *, is_postgres: bool) -> AsyncIterator[int]:
    """A TLS listener for ``localhost`` before the server of a URL; yields its port."""
    parts = urlsplit(url)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if is_postgres:
                assert await reader.readexactly(8) == SSL_REQUEST, "the client did not insist on TLS"
                writer.write(b"S")
                await writer.drain()
                await writer.start_tls(context)
            inner_reader, inner_writer = await asyncio.open_connection(parts.hostname, parts.port)
            await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if is_postgres else context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def _certificate(authority: trustme.CA, folder: Path, name: str) -> Path:
    path = folder / name
    authority.cert_pem.write_to_path(path)
    return path


async def test_postgres_over_tls(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    """Migrations, the ledger and the state feed (LISTEN too) work through verify-full; another authority is refused."""
    url = fresh_database()
    ours, other = trustme.CA(), trustme.CA()
    parts = urlsplit(url)
    async with tls_front(url, ours, is_postgres=True) as port:
        base = f"postgresql://{parts.username}:{parts.password}@localhost:{port}{parts.path}?sslmode=verify-full"
        good = f"{base}&sslrootcert={_certificate(ours, tmp_path, 'ours.pem')}"
        await migrate_all(good)
        pool = await open_pool(good, size=1, timeout_s=5, application_name="test")
        assert await Ledger(pool).epochs(2) == [1, 1]
        await pool.close()
        feed = await StateFeed.start(good)
        assert feed.fresh
        await feed.close()
        with pytest.raises(LedgerError):
            await migrate_all(f"{base}&sslrootcert={_certificate(other, tmp_path, 'other.pem')}")


async def test_redis_over_tls(redis_url: str, tmp_path: Path) -> None:
    """The counter works through rediss:// with the right authority and fails closed with another one."""
    ours, other = trustme.CA(), trustme.CA()
    parts = urlsplit(redis_url)
    async with tls_front(redis_url, ours, is_postgres=False) as port:
        base = f"rediss://{parts.netloc.rpartition('@')[0]}@localhost:{port}{parts.path}?ssl_ca_certs="
        counter = await CreditCounter.connect(f"{base}{_certificate(ours, tmp_path, 'ours.pem')}", epoch=1)
        await counter.meta(0)
        await counter.close()
        wrong = await CreditCounter.connect(f"{base}{_certificate(other, tmp_path, 'other.pem')}", epoch=1, timeout_s=1)
        with pytest.raises(CounterUnavailable) as caught:
            await wrong.meta(0)
        assert caught.value.reason == "unreachable"
        await wrong.close()
