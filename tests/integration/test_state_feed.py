"""The feed of keys, endpoints and prices against a real Postgres, with the network failing on demand."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.control import endpoints, keys, organizations
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core import keys as core_keys
from gateway.core.ports import StateUnavailable, StateView
from gateway.core.state import EndpointStatus, Key, Limits, Scope
from gateway.edges import state_feed, state_rows
from gateway.edges.state_feed import FeedOptions, StateFeed
from ledger.books.database import Pool, open_pool
from ledger.books.discounts import end_discount, set_discount
from ledger.books.prices import set_price
from ledger.core.meters import Meter
from tests.integration.control_tools import AnyConnection, connected, migrated_database
from tests.integration.tcp_proxy import TcpProxy
from tests.services import FreshDatabase, PostgresService

# Long enough for a busy test machine; a promise about time has its own assertion.
PATIENCE_S = 20.0


@pytest.fixture
def database_url(postgres_service: PostgresService) -> Iterator[str]:
    url = migrated_database(postgres_service)
    yield url
    postgres_service.drop_database(url)


@pytest.fixture
async def conn(database_url: str) -> AsyncIterator[AnyConnection]:
    async with connected(database_url) as connection:
        yield connection


@pytest.fixture
async def org(conn: AnyConnection) -> organizations.Organization:
    return (await organizations.create(conn, "Acme", Limits(requests_per_minute=50)))[0]


@asynccontextmanager
async def feeding(url: str, **changes: float) -> AsyncIterator[StateFeed]:
    feed = await StateFeed.start(url, replace(FeedOptions(), **changes))  # type: ignore[arg-type]
    try:
        yield feed
    finally:
        await feed.close()


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def _new(org: organizations.Organization, **changes: object) -> NewEndpoint:
    plain = NewEndpoint(org_id=org.id, real_model="vendor/real-7b", backends=(NewBackend("http://127.0.0.1:9000"),))
    return replace(plain, **changes)  # type: ignore[arg-type]


async def _price(url: str, endpoint_id: str, **rates: int) -> None:
    pool = await open_pool(url, size=1)
    try:
        await set_price(pool, endpoint_id=endpoint_id, rates={Meter(name): rate for name, rate in rates.items()})
    finally:
        await pool.close()


async def _cut_listeners(conn: AnyConnection) -> int:
    """Kill the listening connection of every feed, as an administrator would."""
    return len(
        await conn.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'pareta-listen' AND datname = current_database()"
        )
    )


async def _table_reads(conn: AnyConnection, table: str) -> int:
    """Scans of a table by sessions that have ended, as Postgres itself counts them."""
    await conn.execute("SELECT pg_stat_clear_snapshot()")
    return int(
        await conn.fetchval(
            "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE schemaname = 'control' AND relname = $1", table
        )
    )


# -- endpoints and prices --------------------------------------------------------------------------------------------


async def test_the_feed_fulfils_the_port_of_the_hot_path(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """Everything the data plane needs of an endpoint is there from the start: backends, status, prices."""
    older, _ = await endpoints.add(
        conn, _new(org, name="prod", alias="qwen-1", backends=(NewBackend("http://b:1", health_path="/hz"),))
    )
    newer, _ = await endpoints.add(conn, _new(org, status=EndpointStatus.SEED, backends=()))
    await _price(database_url, older.id, prompt=1_000, completion=2_000)
    async with feeding(database_url) as feed:
        view: StateView = feed
        endpoint = view.endpoint(older.id)
        assert endpoint is not None
        assert (endpoint.name, endpoint.alias, endpoint.org_id) == ("prod", "qwen-1", org.id)
        assert endpoint.created_s == int(older.created_at.timestamp())
        assert [(b.url, b.model, b.health_path) for b in endpoint.backends] == [("http://b:1", "vendor/real-7b", "/hz")]
        card = endpoint.card_at(time.time_ns() // 1_000_000)
        assert card is not None
        assert card.rates == {Meter.PROMPT: 1_000, Meter.COMPLETION: 2_000}
        assert [e.id for e in view.endpoints_of(org.id)] == [older.id, newer.id]
        assert view.endpoints_of("org_aaaaaaaaaaaa") == ()
        named = view.endpoint_named(org.id, "prod")
        assert named is not None
        assert named.id == older.id
        assert [e.id for e in view.endpoints_serving(org.id, "qwen-1")] == [older.id]
        assert view.endpoint_named("org_aaaaaaaaaaaa", "prod") is None
        assert view.endpoint("ep_none") is None
        assert feed.fresh


async def test_every_change_of_an_endpoint_is_seen(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """Added, stopped, started, a backend drained, a price set, removed: each reaches the worker and its listeners."""
    async with feeding(database_url) as feed:
        told: list[str] = []
        feed.on_endpoint_changed(told.append)
        record, _ = await endpoints.add(conn, _new(org))
        await until(lambda: (e := feed.endpoint(record.id)) is not None and len(e.backends) == 1)
        await endpoints.stop(conn, record.id)
        await until(lambda: feed.endpoint(record.id).status is EndpointStatus.STOPPED)  # type: ignore[union-attr]
        await endpoints.start(conn, record.id)
        await until(lambda: feed.endpoint(record.id).status is EndpointStatus.LIVE)  # type: ignore[union-attr]
        await conn.execute("UPDATE control.backend SET state = 'drained' WHERE endpoint_id = $1", record.id)
        await until(lambda: feed.endpoint(record.id).backends == ())  # type: ignore[union-attr]
        for rate in (5, 7):
            await _price(database_url, record.id, request=rate)
            await until(lambda: feed.endpoint(record.id).cards[-1:] != ())  # type: ignore[union-attr]
            await until(
                lambda rate=rate: feed.endpoint(record.id).cards[-1].rates == {Meter.REQUEST: rate}  # type: ignore[misc, union-attr]
            )
        await endpoints.remove(conn, record.id)
        await until(lambda: feed.endpoint(record.id) is None)
        assert feed.endpoints_of(org.id) == ()
        assert feed.endpoint_named(org.id, record.name) is None
        assert not feed.endpoints_serving(org.id, record.alias or "")
        assert set(told) == {record.id}
        assert len(told) >= 7


async def test_discounts_of_an_organization_reach_its_endpoints(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """One for all and one for an endpoint, set and ended: each endpoint has those that fit it, and no others."""
    first, _ = await endpoints.add(conn, _new(org, name="a"))
    second, _ = await endpoints.add(conn, _new(org, name="b"))
    other_org = (await organizations.create(conn, "Other", Limits()))[0]
    other, _ = await endpoints.add(conn, _new(other_org, name="c"))

    async def change(act: Callable[[Pool], Awaitable[object]]) -> None:
        pool = await open_pool(database_url, size=1)
        try:
            await act(pool)
        finally:
            await pool.close()

    await change(lambda pool: set_discount(pool, org_id=org.id, bps=1_000))
    async with feeding(database_url) as feed:

        def bps_of(endpoint_id: str) -> int | None:
            found = feed.endpoint(endpoint_id)
            assert found is not None
            given = found.discount_at(time.time_ns() // 1_000_000)
            return None if given is None else given.bps

        assert (bps_of(first.id), bps_of(second.id), bps_of(other.id)) == (1_000, 1_000, None)
        await change(lambda pool: set_discount(pool, org_id=org.id, endpoint_id=first.id, bps=500))
        await until(lambda: bps_of(first.id) == 500)
        assert bps_of(second.id) == 1_000
        await change(lambda pool: end_discount(pool, org_id=org.id))
        await until(lambda: bps_of(second.id) is None)
        assert (bps_of(first.id), bps_of(other.id)) == (500, None)
        later = datetime.now(UTC) + timedelta(seconds=1)
        await change(lambda pool: set_discount(pool, org_id=org.id, bps=2_000, effective_from=later))
        await until(lambda: len(feed.endpoint(second.id).discounts) >= 2)  # type: ignore[union-attr]
        await until(lambda: bps_of(second.id) == 2_000)
        assert datetime.now(UTC) >= later


async def test_a_change_that_nobody_announced_is_seen_by_the_resync(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """With every trigger off, a stopped endpoint, a revoked key and a deleted key are still noticed."""
    record, _ = await endpoints.add(conn, _new(org))
    (revoked, _), (deleted, _), (kept, _) = [await keys.mint(conn, org.id) for _ in range(3)]
    async with feeding(database_url, resync_s=0.3) as feed:
        gone: list[str] = []
        feed.on_key_revoked(gone.append)
        for key in (revoked, deleted, kept):
            assert await feed.fetch_key(key.id) is not None
        await conn.execute("SET session_replication_role = replica")
        await conn.execute("UPDATE control.endpoint SET status = 'stopped'")
        await conn.execute("UPDATE control.api_key SET revoked_at = now() WHERE id = $1", revoked.id)
        await conn.execute("DELETE FROM control.api_key WHERE id = $1", deleted.id)
        await until(lambda: feed.endpoint(record.id).status is EndpointStatus.STOPPED)  # type: ignore[union-attr]
        await until(lambda: feed.key(revoked.id) is None and feed.key(deleted.id) is None)
        assert sorted(gone) == sorted([revoked.id, deleted.id])
        assert feed.key(kept.id) is not None


async def test_the_key_of_a_backend_comes_from_a_file(
    database_url: str, conn: AnyConnection, org: organizations.Organization, tmp_path: Path
) -> None:
    """What we present to a backend is read from its file, is in no table and in no repr; a lost file is no crash."""
    file = tmp_path / "backend key"
    file.write_text("s3cret-of-backend\n")
    backends = (NewBackend("http://a", api_key_file=str(file)), NewBackend("http://b", api_key_file="/nonexistent"))
    record, _ = await endpoints.add(conn, _new(org, backends=backends))
    async with feeding(database_url) as feed:
        endpoint = feed.endpoint(record.id)
        assert endpoint is not None
        assert [backend.api_key for backend in endpoint.backends] == ["s3cret-of-backend", None]
        assert "s3cret" not in repr(endpoint)


@pytest.mark.parametrize(
    "change",
    [
        'options = \'{"api_key_file": 5, "health_path": 7}\'',
        'options = \'{"api_key_file": "a\\u0001", "health_path": "x\\r\\ny"}\'',
        "url = 'http://engine:99999'",
    ],
)
async def test_an_endpoint_that_makes_no_sense_hides_no_other(
    database_url: str, conn: AnyConnection, org: organizations.Organization, change: str
) -> None:
    """What somebody wrote by hand is not served; changes of the others still arrive, pushed and by the resync."""
    record, _ = await endpoints.add(conn, _new(org))
    odd, _ = await endpoints.add(conn, _new(org, name="odd"))
    async with feeding(database_url, resync_s=0.3) as feed:
        await conn.execute(f"UPDATE control.backend SET {change} WHERE endpoint_id = $1", odd.id)
        await until(lambda: feed.endpoint(odd.id) is None)
        await asyncio.sleep(0.4)
        await endpoints.stop(conn, record.id)
        await until(lambda: feed.endpoint(record.id).status is EndpointStatus.STOPPED)  # type: ignore[union-attr]


# -- keys ------------------------------------------------------------------------------------------------------------


async def test_a_key_is_read_once_and_then_remembered(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A thousand requests of a key, the first hundred at the same moment, cost one query."""
    record, token = await keys.mint(conn, org.id, scope=Scope.READ, limits=Limits(tokens_per_minute=9))
    parsed = core_keys.parse(token)
    assert parsed is not None
    async with feeding(database_url) as feed:
        assert feed.key(record.id) is None
        found = await asyncio.gather(*(feed.fetch_key(record.id) for _ in range(100)))
        key = found[0]
        assert key is not None
        assert all(other is key for other in found)
        assert core_keys.secret_matches(key, parsed[1])
        assert (key.scope, key.limits.tokens_per_minute, key.org_limits.requests_per_minute) == (Scope.READ, 9, 50)
        assert (key.org_id, key.org_name, key.revoked) == (org.id, "Acme", False)
        for _ in range(900):
            assert feed.key(record.id) is key
        assert feed.lookups == 1


async def test_a_revoked_key_is_refused_within_a_second(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """Revocation is pushed: every worker has forgotten the key within one second, and reads it as revoked."""
    record, _ = await keys.mint(conn, org.id)
    async with feeding(database_url) as one, feeding(database_url) as two:
        told: list[str] = []
        for feed in (one, two):
            feed.on_key_revoked(told.append)
            assert await feed.fetch_key(record.id) is not None
        await keys.revoke(conn, record.id)
        async with asyncio.timeout(1.0):
            while one.key(record.id) is not None or two.key(record.id) is not None:
                await asyncio.sleep(0.001)
        assert told == [record.id, record.id]
        for feed in (one, two):
            key = await feed.fetch_key(record.id)
            assert key is not None
            assert key.revoked


async def test_new_limits_of_an_organization_reach_all_its_keys(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A change of the organization evicts its keys and nobody else's."""
    other, _ = await organizations.create(conn, "Other")
    (mine, _), (theirs, _) = await keys.mint(conn, org.id), await keys.mint(conn, other.id)
    async with feeding(database_url) as feed:
        for record in (mine, theirs):
            await feed.fetch_key(record.id)
        await organizations.set_limits(conn, org.id, Limits(concurrent=3))
        await until(lambda: feed.key(mine.id) is None)
        assert feed.key(theirs.id) is not None
        key = await feed.fetch_key(mine.id)
        assert key is not None
        assert key.org_limits == Limits(concurrent=3)


async def test_made_up_ids_cost_no_query(database_url: str, conn: AnyConnection) -> None:
    """Ten thousand ids of the right shape are refused without touching the table, by Postgres's own count."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    before = await _table_reads(conn, "api_key")
    async with feeding(database_url) as feed:
        for _ in range(10_000):
            made_up = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz234567", k=24))
            assert core_keys.id_is_ours(feed.pepper, made_up) or await feed.fetch_key(made_up) is None
        for nonsense in ("", "x", "é" * 24, "a" * 10_000):
            assert await feed.fetch_key(nonsense) is None
        assert feed.lookups == 0
    await asyncio.sleep(0.2)
    assert await _table_reads(conn, "api_key") == before


async def test_deleted_keys_cannot_flood_postgres(database_url: str) -> None:
    """Ids that we minted and no longer have: one query each, eight at once, and a bounded memory of them."""
    at_once = most = 0
    asked = state_rows.read_key

    async def counted(pool: object, key_id: str) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await asked(pool, key_id)  # type: ignore[arg-type]
        finally:
            at_once -= 1

    async with feeding(database_url) as feed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state_feed, "read_key", counted)
            one = core_keys.mint(feed.pepper, secrets.token_bytes(core_keys.MINT_BYTES)).id
            for _ in range(10_000):
                assert await feed.fetch_key(one) is None
            assert feed.lookups == 1
            many = [core_keys.mint(feed.pepper, secrets.token_bytes(core_keys.MINT_BYTES)).id for _ in range(2_000)]
            assert await asyncio.gather(*(feed.fetch_key(key_id) for key_id in many)) == [None] * 2_000
        assert feed.lookups == 2_001
        assert most == state_feed.LOOKUPS_AT_ONCE
        assert feed._keys.absent_count <= 10_000


async def test_a_change_during_a_lookup_is_not_overwritten_by_the_old_answer(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A key that is revoked while its row is on the way is read again: no stale copy stays behind."""
    record, _ = await keys.mint(conn, org.id)
    asked = state_rows.read_key
    calls = 0

    async def slow(pool: object, key_id: str) -> object:
        nonlocal calls
        calls += 1
        found = await asked(pool, key_id)  # type: ignore[arg-type]
        if calls == 1:  # the old row is read; before it is remembered, the key is revoked and that is announced
            await keys.revoke(conn, key_id)
            await until(lambda: key_id in feed._doubted)
        return found

    async with feeding(database_url) as feed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state_feed, "read_key", slow)
            key = await feed.fetch_key(record.id)
        assert calls == 2
        assert key is not None
        assert key.revoked
        assert feed.key(record.id) == key


async def test_the_lookup_survives_the_client_that_started_it(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """Whoever waits for the same key gets it, even when the first to ask hung up."""
    record, _ = await keys.mint(conn, org.id)
    async with feeding(database_url) as feed:
        first = asyncio.create_task(feed.fetch_key(record.id))
        await asyncio.sleep(0)
        second = asyncio.create_task(feed.fetch_key(record.id))
        await asyncio.sleep(0)
        first.cancel()
        key = await second
        assert key is not None
        assert first.cancelled() or first.cancelling()
        assert feed.lookups == 1


@pytest.mark.long
async def test_a_million_keys_neither_slow_the_start_nor_fill_the_memory(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """The start reads no key, whatever their number; one use reads one row; at most the cache's size is held."""
    await conn.execute("SET session_replication_role = replica")  # a million checks of a foreign key prove nothing here
    await conn.execute(
        """INSERT INTO control.api_key (id, org_id, secret_hash, scope)
           SELECT translate(lpad(to_hex(n), 24, '0'), '0189', 'ghij'), $1, decode(repeat('ab', 32), 'hex'), 'full'
             FROM generate_series(1, 1000000) n""",
        org.id,
        timeout=90,
    )
    minted = [await keys.mint(conn, org.id) for _ in range(20)]
    await asyncio.sleep(1.1)  # Postgres publishes the counts of a running session at most once a second
    await conn.execute("SELECT 1")
    before = await _table_reads(conn, "api_key")
    async with feeding(database_url, key_cache_size=5) as feed:
        assert feed.lookups == 0
        assert len(feed._keys) == 0
    await asyncio.sleep(0.2)
    assert await _table_reads(conn, "api_key") == before
    async with feeding(database_url, key_cache_size=5) as feed:
        for record, _ in minted:
            assert await feed.fetch_key(record.id) is not None
        assert feed.lookups == 20
        assert len(feed._keys) == 5
        assert feed.key(minted[-1][0].id) is not None
        assert feed.key(minted[0][0].id) is None


# -- the network fails -----------------------------------------------------------------------------------------------


async def test_a_killed_listening_connection_is_replaced_and_nothing_is_missed(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """What changed while nobody listened is known right after the reconnect, revoked keys first of all."""
    record, _ = await endpoints.add(conn, _new(org))
    (revoked, _), (kept, _) = await keys.mint(conn, org.id), await keys.mint(conn, org.id)
    async with TcpProxy(database_url) as proxy, feeding(proxy.url) as feed:
        gone: list[str] = []
        feed.on_key_revoked(gone.append)
        for key in (revoked, kept):
            await feed.fetch_key(key.id)
        await proxy.refuse()
        await keys.revoke(conn, revoked.id)
        await endpoints.stop(conn, record.id)
        proxy.mend()
        await until(lambda: feed.reconnects == 1)
        assert feed.key(revoked.id) is None
        assert gone == [revoked.id]
        assert feed.key(kept.id) is not None
        assert feed.endpoint(record.id).status is EndpointStatus.STOPPED  # type: ignore[union-attr]
        # and it listens again
        assert await _cut_listeners(conn) == 1
        await until(lambda: feed.reconnects == 2)
        await keys.revoke(conn, kept.id)
        await until(lambda: feed.key(kept.id) is None)


async def test_a_lookup_across_the_cut_is_repeated(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A row that was read before the cut, of a key revoked during it, is not remembered after it."""
    record, _ = await keys.mint(conn, org.id)
    asked = state_rows.read_key
    calls = 0

    async def slow(pool: object, key_id: str) -> object:
        nonlocal calls
        calls += 1
        found = await asked(pool, key_id)  # type: ignore[arg-type]
        if calls == 1:
            # Nobody hears of the revocation: its trigger is off, and the listening connection is made anew.
            await conn.execute("SET session_replication_role = replica")
            await keys.revoke(conn, key_id)
            await _cut_listeners(conn)
            await until(lambda: feed.reconnects == 1)
        return found

    async with feeding(database_url) as feed:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state_feed, "read_key", slow)
            await feed.fetch_key(record.id)
        key = feed.key(record.id)
        assert key is not None
        assert key.revoked


async def test_a_silently_dead_connection_is_noticed(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A network that swallows everything: keys are trusted a bounded time, then it is 503, then all is well again."""
    record, _ = await keys.mint(conn, org.id)
    async with TcpProxy(database_url) as proxy, feeding(proxy.url, max_staleness_s=1.0, timeout_s=0.5) as feed:
        await feed.fetch_key(record.id)
        proxy.freeze()
        assert feed.key(record.id) is not None
        await until(lambda: feed.key(record.id) is None)
        assert not feed.fresh
        with pytest.raises(StateUnavailable):
            await feed.fetch_key(record.id)
        proxy.mend()
        await until(lambda: feed.fresh)
        key = await feed.fetch_key(record.id)
        assert key is not None
        assert feed.key(record.id) is not None


async def test_postgres_gone_is_unavailable_within_the_deadline_and_then_recovers(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """Without Postgres, remembered keys serve for a while, endpoints stay, unknown keys are 503, made-up ones 401."""
    used, _ = await keys.mint(conn, org.id)
    unused, _ = await keys.mint(conn, org.id)
    record, _ = await endpoints.add(conn, _new(org))
    async with TcpProxy(database_url) as proxy, feeding(proxy.url, timeout_s=2.0) as feed:
        await feed.fetch_key(used.id)
        await proxy.refuse()
        started_s = time.monotonic()
        with pytest.raises(StateUnavailable) as caught:
            await feed.fetch_key(unused.id)
        assert time.monotonic() - started_s < 2.0 + 1.0
        assert "127.0.0.1" not in str(caught.value)
        assert feed.key(used.id) is not None
        assert feed.endpoint(record.id) is not None
        assert await feed.fetch_key("a" * 24) is None
        proxy.mend()
        assert isinstance(await _patiently(feed, unused.id), Key)
        await until(lambda: feed.reconnects == 1)


async def test_a_frozen_postgres_is_unavailable_within_the_deadline(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A hundred different keys, looked up while Postgres says nothing, end together at the deadline."""
    minted = [(await keys.mint(conn, org.id))[0].id for _ in range(100)]
    async with TcpProxy(database_url) as proxy, feeding(proxy.url, timeout_s=1.0) as feed:
        proxy.freeze()
        started_s = time.monotonic()
        results = await asyncio.gather(*(feed.fetch_key(key_id) for key_id in minted), return_exceptions=True)
        assert all(isinstance(result, StateUnavailable) for result in results)
        assert time.monotonic() - started_s < 1.0 + 2.0
        proxy.mend()
        assert isinstance(await _patiently(feed, minted[0]), Key)


async def _patiently(feed: StateFeed, key_id: str) -> Key | None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await feed.fetch_key(key_id)
            except StateUnavailable:
                await asyncio.sleep(0.05)


async def test_a_feed_that_cannot_start_says_why(fresh_database: FreshDatabase) -> None:
    """No Postgres, or no tables: a StateUnavailable with a sentence, nothing left open."""
    with pytest.raises(StateUnavailable, match="migrations"):
        await StateFeed.start(fresh_database())
    with pytest.raises(StateUnavailable) as caught:
        await StateFeed.start("postgresql://u:p@127.0.0.1:1/x")
    assert "127.0.0.1" not in str(caught.value)


@pytest.mark.parametrize("payload", ["", "no json", "[]", "{}", '{"kind":"key"}', '{"kind":"moon","id":[1]}', "null"])
async def test_nonsense_on_the_channel_is_ignored(
    database_url: str, conn: AnyConnection, org: organizations.Organization, payload: str
) -> None:
    """Whatever somebody announces, the feed goes on listening."""
    record, _ = await keys.mint(conn, org.id)
    async with feeding(database_url) as feed:
        await feed.fetch_key(record.id)
        await conn.execute("SELECT pg_notify('pareta_state', $1)", payload)
        await keys.revoke(conn, record.id)
        await until(lambda: feed.key(record.id) is None)
        assert feed.reconnects == 0


async def test_a_failing_listener_hurts_nobody(
    database_url: str, conn: AnyConnection, org: organizations.Organization
) -> None:
    """A callback that raises neither stops the feed nor the other callbacks."""
    record, _ = await keys.mint(conn, org.id)

    def fails(_: str) -> None:
        raise RuntimeError("bug")

    async with feeding(database_url) as feed:
        told: list[str] = []
        feed.on_key_revoked(fails)
        feed.on_key_revoked(told.append)
        await keys.revoke(conn, record.id)
        await until(lambda: told == [record.id])


async def test_close_ends_what_waits(database_url: str, conn: AnyConnection, org: organizations.Organization) -> None:
    """A lookup under way when the worker stops ends with StateUnavailable, and every connection is gone."""
    record, _ = await keys.mint(conn, org.id)
    async with TcpProxy(database_url) as proxy:
        feed = await StateFeed.start(proxy.url)
        proxy.freeze()
        waiting = asyncio.create_task(feed.fetch_key(record.id))
        await asyncio.sleep(0.05)
        await feed.close()
        with pytest.raises(StateUnavailable):
            await waiting
    async with asyncio.timeout(PATIENCE_S):
        while await conn.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name LIKE 'pareta-%' AND datname = current_database()"
        ):
            await asyncio.sleep(0.02)
