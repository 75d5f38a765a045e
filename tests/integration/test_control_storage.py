"""Organizations, keys and endpoints in a real Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from gateway.control import database, endpoints, keys, organizations
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core import keys as core_keys
from gateway.core.state import EndpointStatus, Limits, Scope
from tests.integration.control_tools import AnyConnection, Listener, connected, migrated_database
from tests.services import FreshDatabase, PostgresService


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
    return (await organizations.create(conn, "Acme"))[0]


def _new(org: organizations.Organization, **changes: object) -> NewEndpoint:
    plain = NewEndpoint(org_id=org.id, real_model="vendor/real-7b", backends=(NewBackend("http://127.0.0.1:9000"),))
    return replace(plain, **changes)  # type: ignore[arg-type]


async def test_an_organization_created_twice_is_one(conn: AnyConnection) -> None:
    """A retried create finds the organization of the first try, even when both run at once."""
    first, was_new = await organizations.create(conn, "Acme", Limits(concurrent=5))
    again, new_again = await organizations.create(conn, " Acme ")
    assert (was_new, new_again) == (True, False)
    assert again == first
    assert await organizations.find(conn, "Acme") == await organizations.find(conn, first.id) == first
    assert await organizations.list_all(conn) == [first]


async def test_an_existing_organization_is_not_changed_by_create(conn: AnyConnection) -> None:
    """Create with other limits is refused; limits are changed only where that is asked for."""
    first, _ = await organizations.create(conn, "Acme")
    with pytest.raises(database.Refused, match="other limits"):
        await organizations.create(conn, "Acme", Limits(concurrent=5))
    assert (await organizations.set_limits(conn, first.id, Limits(concurrent=5))).limits == Limits(concurrent=5)
    assert (await organizations.find(conn, "Acme")).limits.concurrent == 5


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "bell\a"])
async def test_a_bad_organization_name_is_refused(conn: AnyConnection, name: str) -> None:
    """Names are printable and of bounded length."""
    with pytest.raises(database.Refused):
        await organizations.create(conn, name)


async def test_unknown_things_are_not_found(conn: AnyConnection, org: organizations.Organization) -> None:
    """Every lookup of something that is not there says so, in words of ours."""
    for attempt in (
        organizations.find(conn, "nobody"),
        organizations.set_limits(conn, "org_aaaaaaaaaaaa", Limits()),
        keys.find(conn, "a" * 24),
        keys.revoke(conn, "a" * 24),
        keys.mint(conn, "org_aaaaaaaaaaaa"),
        endpoints.find(conn, "ep_none"),
        endpoints.stop(conn, "ep_none"),
        endpoints.remove(conn, "ep_none"),
        endpoints.add(conn, _new(org, org_id="org_aaaaaaaaaaaa")),
    ):
        with pytest.raises(database.NotFound):
            await attempt


async def test_the_database_never_sees_a_secret(conn: AnyConnection, org: organizations.Organization) -> None:
    """Nothing in the row of a key contains its secret; the stored hash is enough to check it."""
    record, token = await keys.mint(conn, org.id, scope=Scope.READ, name="ci", limits=Limits(requests_per_minute=7))
    parsed = core_keys.parse(token)
    assert parsed is not None
    key_id, secret = parsed
    assert key_id == record.id
    assert (record.scope, record.name, record.limits.requests_per_minute) == (Scope.READ, "ci", 7)
    row = await conn.fetchrow("SELECT k::text AS text, secret_hash FROM control.api_key k WHERE id = $1", key_id)
    assert row is not None
    assert secret not in row["text"]
    assert row["secret_hash"] == core_keys.hash_secret(secret)
    assert core_keys.id_is_ours(await keys.pepper(conn), key_id)


async def test_a_revoked_key_stays_revoked(conn: AnyConnection, org: organizations.Organization) -> None:
    """Revoking twice keeps the first moment; the whole key is accepted as a reference."""
    record, token = await keys.mint(conn, org.id)
    first, changed = await keys.revoke(conn, token)
    again, changed_again = await keys.revoke(conn, record.id)
    assert (changed, changed_again) == (True, False)
    assert first.revoked_at is not None
    assert first.revoked_at == again.revoked_at
    assert first.state_at(datetime.now(UTC)) == "revoked"
    assert await keys.list_of(conn, org.id) == []
    assert [key.id for key in await keys.list_of(conn, org.id, with_revoked=True)] == [record.id]


async def test_a_key_that_would_be_expired_is_refused(conn: AnyConnection, org: organizations.Organization) -> None:
    """An expiry in the past is a mistake of the operator; one in the future is kept."""
    with pytest.raises(database.Refused, match="expired"):
        await keys.mint(conn, org.id, expires_at=datetime.now(UTC) - timedelta(seconds=1))
    later = datetime.now(UTC) + timedelta(days=30)
    record, _ = await keys.mint(conn, org.id, expires_at=later)
    assert record.expires_at == later
    assert record.state_at(later - timedelta(seconds=1)) == "active"
    assert record.state_at(later) == "expired"


async def test_a_mistyped_key_is_not_repeated_in_the_error(conn: AnyConnection) -> None:
    """Whoever pastes a broken key as a reference does not find its secret in the error."""
    with pytest.raises(database.NotFound) as caught:
        await keys.revoke(conn, "pareta_sk_" + "a" * 23 + "." + "verysecret" * 4)
    assert "verysecret" not in str(caught.value)


async def test_an_endpoint_is_called_by_its_id_unless_it_has_a_name(
    conn: AnyConnection, org: organizations.Organization
) -> None:
    """Without a name the endpoint gets a generated id that is also its name; with one, both find it."""
    plain, _ = await endpoints.add(conn, _new(org))
    assert plain.name == plain.id
    named, _ = await endpoints.add(conn, _new(org, name="prod-9"))
    assert named.id.startswith("ep_")
    assert (await endpoints.find(conn, "prod-9")).id == (await endpoints.find(conn, named.id)).id == named.id
    assert [endpoint.id for endpoint in await endpoints.list_all(conn)] == [plain.id, named.id]


async def test_an_endpoint_added_again_is_the_same(conn: AnyConnection, org: organizations.Organization) -> None:
    """A retry with the same content finds the first one, by id or by name, whatever its status is now."""
    two = (NewBackend("http://127.0.0.1:9000/v1/"), NewBackend("https://b.example:8443/api", health_path="/ping"))
    new = _new(org, id="ep_demo", backends=two, alias="qwen-1")
    first, was_new = await endpoints.add(conn, new)
    await endpoints.stop(conn, first.id)
    again, new_again = await endpoints.add(conn, new)
    assert (was_new, new_again, again.id) == (True, False, first.id)
    assert [backend.url for backend in first.backends] == ["http://127.0.0.1:9000", "https://b.example:8443/api"]
    assert first.backends[1].options == {"health_path": "/ping"}
    named, _ = await endpoints.add(conn, _new(org, name="n"))
    assert (await endpoints.add(conn, _new(org, name="n")))[0].id == named.id


@pytest.mark.parametrize(
    "changes",
    [
        {"real_model": "other"},
        {"alias": "qwen-1"},
        {"context_tokens": 99},
        {"backends": (NewBackend("http://127.0.0.1:9001"),)},
        {"backends": (NewBackend("http://127.0.0.1:9000", tolerates_unknown_fields=False),)},
        {"capabilities": ("embedding",)},
    ],
)
async def test_an_endpoint_with_other_content_is_refused(
    conn: AnyConnection, org: organizations.Organization, changes: dict[str, object]
) -> None:
    """The same name with another content is a conflict, never a silent change."""
    await endpoints.add(conn, _new(org, name="prod"))
    with pytest.raises(database.Refused, match="exists already with another"):
        await endpoints.add(conn, _new(org, name="prod", **changes))


async def test_two_organizations_may_use_the_same_name(conn: AnyConnection, org: organizations.Organization) -> None:
    """A name belongs to its organization: nobody learns from a refusal what others call theirs."""
    other, _ = await organizations.create(conn, "Other")
    await endpoints.add(conn, _new(org, name="prod"))
    theirs, _ = await endpoints.add(conn, _new(other, name="prod"))
    with pytest.raises(database.Refused, match="Several"):
        await endpoints.find(conn, "prod")
    assert (await endpoints.find(conn, "prod", org_id=other.id)).id == theirs.id


async def test_simultaneous_adds_make_one_endpoint(database_url: str, org: organizations.Organization) -> None:
    """Ten operators who add the same endpoint at once get one endpoint and no error."""

    async def one() -> tuple[str, bool]:
        async with database.session(database_url) as conn:
            record, was_new = await endpoints.add(conn, _new(org, name="prod"))
            return record.id, was_new

    results = await asyncio.gather(*(one() for _ in range(10)))
    assert len({endpoint_id for endpoint_id, _ in results}) == 1
    assert sum(was_new for _, was_new in results) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "prod"},
        {"id": "ep_a/b"},
        {"name": "auto"},
        {"name": "ep_other"},
        {"name": "a b"},
        {"name": "-a"},
        {"alias": "Qwen"},
        {"alias": "qwen-0"},
        {"real_model": ""},
        {"context_tokens": 0},
        {"max_output_tokens": 40_000},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"capabilities": ("dance",)},
        {"capabilities": ()},
        {"backends": ()},
        {"backends": (NewBackend("http://a"), NewBackend("http://a/"))},
        {"backends": (NewBackend("ftp://a"),)},
        {"backends": (NewBackend("http://user:pass@a"),)},
        {"backends": (NewBackend("http://a?b=c"),)},
        {"backends": (NewBackend("http://a:99999"),)},
        {"backends": (NewBackend("a:9000"),)},
        {"backends": (NewBackend("http://a", health_path="ping"),)},
        {"status": EndpointStatus.SEED},
    ],
)
async def test_a_wrong_endpoint_is_refused(
    conn: AnyConnection, org: organizations.Organization, changes: dict[str, object]
) -> None:
    """Every bound is checked before anything is written, with a sentence."""
    with pytest.raises(database.Refused) as caught:
        await endpoints.add(conn, _new(org, **changes))
    assert str(caught.value).endswith(".")
    assert await endpoints.list_all(conn) == []


async def test_the_life_of_an_endpoint(conn: AnyConnection, org: organizations.Organization) -> None:
    """Stop and start move it and repeat without harm; after removal it is gone and its id is not used again."""
    new = _new(org, id="ep_life")
    await endpoints.add(conn, new)
    for event, wanted in (
        (endpoints.stop, EndpointStatus.STOPPED),
        (endpoints.stop, EndpointStatus.STOPPED),
        (endpoints.start, EndpointStatus.LIVE),
        (endpoints.start, EndpointStatus.LIVE),
    ):
        assert (await event(conn, "ep_life")).status is wanted
    await endpoints.remove(conn, "ep_life")
    await endpoints.remove(conn, "ep_life")
    with pytest.raises(database.NotFound):
        await endpoints.start(conn, "ep_life")
    with pytest.raises(database.Refused, match="never used again"):
        await endpoints.add(conn, new)


async def test_a_seed_endpoint_cannot_be_driven(conn: AnyConnection, org: organizations.Organization) -> None:
    """A seed record is shown and removable, and neither starts nor stops."""
    seed, _ = await endpoints.add(conn, _new(org, status=EndpointStatus.SEED, backends=()))
    for event in (endpoints.start, endpoints.stop):
        with pytest.raises(database.Refused, match="seed"):
            await event(conn, seed.id)
    await endpoints.remove(conn, seed.id)


async def test_changes_are_announced_and_new_keys_are_not(
    conn: AnyConnection, org: organizations.Organization, database_url: str
) -> None:
    """Workers hear of every change they must obey, and are not woken by keys that nobody can have used yet."""
    async with connected(database_url) as other:
        listener = Listener(other)
        await listener.start()
        key, _ = await keys.mint(conn, org.id)
        await organizations.create(conn, "Quiet")
        assert await listener.settle() == []
        await keys.revoke(conn, key.id)
        await organizations.set_limits(conn, org.id, Limits(concurrent=1))
        endpoint, _ = await endpoints.add(conn, _new(org))
        await endpoints.stop(conn, endpoint.id)
        await conn.execute("UPDATE control.backend SET state = 'drained'")
        heard = await listener.settle()
    news = {"kind": "endpoint", "id": endpoint.id}
    assert heard == [{"kind": "key", "id": key.id, "revoked": True}, {"kind": "org", "id": org.id}, news, news, news]


async def test_an_unreachable_database_is_one_error_of_ours() -> None:
    """A refused connection, a wrong password, an unknown host: StoreUnavailable, with no address in its text."""
    for url in ("postgresql://u:p@127.0.0.1:1/x", "postgresql://u:p@no-such-host.invalid/x"):
        with pytest.raises(database.StoreUnavailable) as caught:
            async with database.session(url, timeout_s=2):
                pass
        assert "127.0.0.1" not in str(caught.value)
        assert "invalid" not in str(caught.value)


async def test_an_unmigrated_database_says_so(fresh_database: FreshDatabase) -> None:
    """Whoever forgot to migrate is told to migrate."""
    with pytest.raises(database.StoreUnavailable, match="migrate"):
        async with database.session(fresh_database()) as conn:
            await organizations.list_all(conn)


async def test_a_statement_past_its_deadline_is_unavailable(database_url: str) -> None:
    """A database that hangs costs the operator the deadline and no more."""
    with pytest.raises(database.StoreUnavailable):
        async with database.session(database_url, timeout_s=0.5) as conn:
            await conn.execute("SELECT pg_sleep(30)")


async def test_constraint_violations_are_refusals(conn: AnyConnection, org: organizations.Organization) -> None:
    """What only the database noticed is still a sentence to the operator."""
    with pytest.raises(database.Refused, match="does not hold"), database.translated():
        await conn.execute("INSERT INTO control.organization (id, name) VALUES ('nonsense', 'x')")
    with pytest.raises(asyncpg.CheckViolationError):
        await conn.execute("INSERT INTO control.organization (id, name) VALUES ('nonsense', 'x')")
