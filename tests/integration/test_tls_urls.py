"""TLS URLs of external databases: ``sslmode=verify-full`` and ``rediss://`` work, and a wrong certificate is refused.

The servers that come as wheels are built without TLS, so a proxy speaks it in front of them, as a managed database's
front does: for Postgres after the client's SSLRequest, for Redis from the first byte.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trustme

from gateway.edges.state_feed import StateFeed
from gateway.stack.prepare import migrate_all
from ledger.books.ledger import Ledger, open_pool
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.errors import LedgerError
from tests.integration.tcp_proxy import TcpProxy
from tests.services import FreshDatabase


def _tls(authority: trustme.CA) -> ssl.SSLContext:
    """Of a server called ``localhost``."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


def _certificate(authority: trustme.CA, folder: Path, name: str) -> Path:
    path = folder / name
    authority.cert_pem.write_to_path(path)
    return path


async def test_postgres_over_tls(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    """Migrations, the ledger and the state feed (LISTEN too) work through verify-full; another authority is refused."""
    url = fresh_database()
    ours, other = trustme.CA(), trustme.CA()
    parts = urlsplit(url)
    async with TcpProxy(url, tls=_tls(ours)) as front:
        base = f"postgresql://{parts.username}:{parts.password}@localhost:{front.port}{parts.path}?sslmode=verify-full"
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
    """The counter works through rediss:// with the right authority and fails closed with every other one."""
    ours, other = trustme.CA(), trustme.CA()
    parts = urlsplit(redis_url)
    async with TcpProxy(redis_url, tls=_tls(ours)) as front:
        base = f"rediss://{parts.netloc.rpartition('@')[0]}@localhost:{front.port}{parts.path}"
        good = f"{base}?ssl_ca_certs={_certificate(ours, tmp_path, 'ours.pem')}"
        counter = await CreditCounter.connect(good, epoch=1)
        await counter.meta(0)
        await counter.close()
        for url in (f"{base}?ssl_ca_certs={_certificate(other, tmp_path, 'other.pem')}", base):
            stranger = await CreditCounter.connect(url, epoch=1, timeout_s=1)
            with pytest.raises(CounterUnavailable) as caught:
                await stranger.meta(0)
            assert caught.value.reason == "unreachable"
            await stranger.close()
