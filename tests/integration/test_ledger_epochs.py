"""The end of an epoch in the books: frozen, released, and never for the wrong organization."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import asyncpg
import pytest

from ledger.books.epochs import current_epochs, never_used
from ledger.books.ledger import Ledger
from ledger.books.recovery import (
    CarriedBeat,
    book_recovered,
    carry_holds,
    open_epoch,
    record_guardian_event,
    release_due,
    witness,
    witnessed,
)
from ledger.books.terms import try_take
from ledger.core.ids import shard_of
from ledger.errors import Fenced, LedgerUnavailable
from tests.integration.ledger_books import Books, opened_books
from tests.integration.ledger_world import migrated_pool, new_request_id
from tests.services import FreshDatabase


def org_in(shard: int, shards: int = 2, nth: int = 0) -> str:
    """The name of an organization of that shard."""
    names = (f"org_{number}" for number in itertools.count())
    return next(itertools.islice((name for name in names if shard_of(name, shards) == shard), nth, None))


ZERO, ONE = org_in(0), org_in(1)


@pytest.fixture
async def books(fresh_database: FreshDatabase) -> AsyncIterator[Books]:
    """Two shards, with one organization each."""
    async with opened_books(fresh_database(), shards=2) as books:
        await books.fund(ZERO, 100, granted=60)
        await books.fund(ONE, 100, granted=60)
        yield books
        assert await books.differences() == []


async def test_the_first_epoch_is_of_every_shard_and_the_next_of_one(books: Books) -> None:
    """A shard that loses its Redis gets a new epoch with a number of its own; the others stay where they are."""
    assert await current_epochs(books.pool, 3) == [1, 1, 1]
    await books.lose(0)
    assert await current_epochs(books.pool, 3) == [2, 1, 1]
    await books.lose(1)
    await books.lose(0)
    assert await books.ledger.epochs(3) == [4, 3, 1]
    stories = await books.ledger.epoch_stories()
    assert [(story.number, story.shard, story.closes) for story in stories] == [
        (4, 0, 2),
        (3, 1, 1),
        (2, 0, 1),
        (1, None, None),
    ]


async def test_a_lost_epoch_freezes_the_escrow_of_its_shard_alone(books: Books) -> None:
    """What Redis had is frozen to the last nano, a grant on its way included; another shard does not notice."""
    await books.desks[0].book([books.event(ZERO, "settle", 7)])
    await books.grant(ZERO, 20)
    await books.lose(0)
    assert await books.purse(ZERO) == (20, 0, 73)
    assert await books.purse(ONE) == (40, 60, 0)
    assert [grant.org_id for grant in await books.ledger.pending_grants()] == [ONE]
    story = (await books.ledger.epoch_stories())[0]
    assert (story.frozen_nanos, story.booked_seq, story.redis_seq, story.witnessed_seq) == (73, 1, 1, 1)
    checkpoint = await books.pool.fetchrow(
        "SELECT epoch, seq, stream_id FROM ledger.reconcile_checkpoint WHERE shard = 0"
    )
    assert checkpoint is not None
    assert tuple(checkpoint) == (2, 0, "0-0")
    credit = await books.ledger.credit(ZERO)
    assert (credit.frozen_nanos, credit.charged_nanos, credit.pending_grant_nanos) == (73, 7, 0)


async def test_the_new_epoch_is_booked_from_its_beginning(books: Books) -> None:
    """Grants are numbered from 1 again, events too, and both epochs add up."""
    await books.desks[0].book([books.event(ZERO, "settle", 7)])
    await books.lose(0)
    grant = await books.grant(ZERO, 30)
    assert grant is not None
    assert (grant.epoch, grant.grant_seq) == (2, 1)
    await books.desks[0].book([books.event(ZERO, "settle", 4), books.event(ZERO, "return", 6)])
    assert await books.purse(ZERO) == (16, 20, 53)


async def test_a_grant_never_falls_between_two_epochs(books: Books) -> None:
    """Grants made while epochs end one after the other are frozen with the old epoch or made in the new one."""
    made = 0

    async def keep_granting() -> None:
        nonlocal made
        for _ in range(40):
            made += await books.grant(ZERO, 1) is not None
            await asyncio.sleep(0)

    granting = [asyncio.create_task(keep_granting()) for _ in range(4)]
    for _ in range(8):
        await books.lose(0)
        assert await books.differences() == []
    await asyncio.gather(*granting)
    assert made > 0
    available, escrow, frozen = await books.purse(ZERO)
    assert available + escrow + frozen == 100


async def test_whose_term_is_over_opens_no_epoch(books: Books) -> None:
    """A guardian that was paused past its term changes nothing."""
    await books.pool.execute("UPDATE ledger.reconcile_checkpoint SET fence = fence + 1 WHERE shard = 0")
    with pytest.raises(Fenced):
        await books.lose(0)
    assert await current_epochs(books.pool, 2) == [1, 1]
    assert await books.purse(ZERO) == (40, 60, 0)


async def test_an_epoch_is_opened_entirely_or_not_at_all(books: Books) -> None:
    """A connection that dies in the middle leaves the old epoch whole; the next try opens it."""
    async with books.pool.acquire() as blocker, blocker.transaction():
        await blocker.execute("SELECT 1 FROM ledger.balance WHERE org_id = $1 FOR UPDATE", ZERO)
        losing = asyncio.create_task(books.lose(0))
        while not await books.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            await asyncio.sleep(0.01)
        doomed = await books.pool.fetchval("SELECT pid FROM pg_locks WHERE NOT granted LIMIT 1")
        await books.pool.execute("SELECT pg_terminate_backend($1)", doomed)
        with pytest.raises(LedgerUnavailable):
            await losing
    assert await current_epochs(books.pool, 2) == [1, 1]
    assert await books.purse(ZERO) == (40, 60, 0)
    async with books.pool.acquire() as conn:
        term = await try_take(conn, 0, "the next")
        assert term is not None
        books.desks[0].epoch = await open_epoch(
            conn, term, 2, reason="x", grace_s=0, redis_epoch=None, redis_seq=None, witnessed_seq=None
        )
    assert await books.purse(ZERO) == (40, 0, 60)


async def test_two_shards_that_lose_redis_at_once_get_two_epochs(books: Books) -> None:
    """Numbers are never shared, and nothing is frozen twice."""
    await asyncio.gather(books.lose(0), books.lose(1))
    assert sorted(await current_epochs(books.pool, 2)) == [2, 3]
    assert [await books.purse(org) for org in (ZERO, ONE)] == [(40, 0, 60), (40, 0, 60)]


async def test_many_organizations_are_frozen_in_pages(
    fresh_database: FreshDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, each organization of the shard is frozen once, and no other."""
    monkeypatch.setattr("ledger.books.freezing.ORGANIZATIONS_AT_ONCE", 3)
    monkeypatch.setattr("ledger.books.freezing.RELEASED_AT_ONCE", 2)
    async with opened_books(fresh_database(), shards=2) as books:
        orgs = [f"org_{number}" for number in range(20)]
        for org in orgs:
            await books.fund(org, 10)
        await books.lose(0)
        frozen = {org for org in orgs if await books.purse(org) == (0, 0, 10)}
        assert frozen == {org for org in orgs if shard_of(org, 2) == 0}
        released = await release_due(books.pool, 0)
        assert (released.organizations, released.released_nanos, released.epochs) == (
            len(frozen),
            10 * len(frozen),
            (1,),
        )
        assert await books.differences() == []


async def test_nothing_is_released_before_the_grace_time_is_over(books: Books) -> None:
    """Until journals had their time the credit stays frozen; then all that is left of it is released, once."""
    await books.lose(0, grace_s=1000)
    assert (await release_due(books.pool, 0)).released_nanos == 0
    assert await books.purse(ZERO) == (40, 0, 60)
    await book_recovered(books.pool, books.months, [books.recovered(ZERO, 11, epoch=1)])
    await books.later()
    released = await asyncio.gather(*(release_due(books.pool, 0) for _ in range(8)))
    assert sum(one.released_nanos for one in released) == 49
    assert await books.purse(ZERO) == (89, 0, 0)
    story = (await books.ledger.epoch_stories())[0]
    assert (story.frozen_nanos, story.released_nanos, story.released_at is not None) == (60, 49, True)
    assert (await release_due(books.pool, 1)).epochs == ()
    events = await books.ledger.guardian_events()
    assert sum(event.detail["nanos"] for event in events if event.kind == "released") == 49


async def test_epochs_that_are_lost_one_after_the_other_are_released_each_in_its_time(books: Books) -> None:
    """A second loss during the first one's grace time neither releases early nor keeps the first one's credit."""
    await books.lose(0, grace_s=0)
    await books.grant(ZERO, 25)
    await books.lose(0, grace_s=1000)
    assert await books.purse(ZERO) == (15, 0, 85)
    first = await release_due(books.pool, 0)
    assert (first.released_nanos, first.epochs) == (60, (1,))
    assert await books.purse(ZERO) == (75, 0, 25)
    await books.grant(ZERO, 30)
    await books.lose(0, grace_s=0)
    third = await release_due(books.pool, 0)
    assert (third.released_nanos, third.epochs) == (30, (3,))
    await books.later()
    second = await release_due(books.pool, 0)
    assert (second.released_nanos, second.epochs) == (25, (2,))
    assert [story.released_nanos for story in await books.ledger.epoch_stories()] == [30, 25, 60, 0]


async def test_what_was_spent_of_one_epoch_is_not_released_from_the_next(books: Books) -> None:
    """Charges make the first loss's share smaller; its release leaves all of the second loss's credit frozen."""
    await books.lose(0, grace_s=0)
    await books.grant(ZERO, 25)
    await books.lose(0, grace_s=1000)
    await book_recovered(books.pool, books.months, [books.recovered(ZERO, 20, epoch=1)])
    assert (await release_due(books.pool, 0)).released_nanos == 40
    assert await books.purse(ZERO) == (55, 0, 25)


async def test_a_reserve_larger_than_what_is_frozen_releases_nothing(books: Books) -> None:
    """Carried holds may reserve more than was frozen: then all of it stays, and nothing becomes negative."""
    await books.lose(0)
    holds = [new_request_id() for _ in range(3)]
    await carry_holds(books.pool, [CarriedBeat(hold, ZERO, 0, 1, 50, 0, b"{}", 60.0) for hold in holds])
    assert (await release_due(books.pool, 0)).released_nanos == 0
    assert (await books.ledger.epoch_stories())[0].released_at is None
    await books.pool.execute("UPDATE ledger.carried_hold SET expires_at = now()")
    assert (await release_due(books.pool, 0)).released_nanos == 60


async def test_an_epoch_without_credit_is_released_at_once(books: Books) -> None:
    """Where nothing was frozen, nothing waits."""
    await books.lose(0)
    await release_due(books.pool, 0)
    await books.lose(0)
    assert (await release_due(books.pool, 0)).epochs == (2,)


async def test_the_highest_witness_counts(books: Books) -> None:
    """Many workers report what they saw in any order; the highest stands, epoch by epoch and shard by shard."""
    await asyncio.gather(*(witness(books.pool, 0, 1, seq) for seq in (5, 41, 7, 3)))
    await witness(books.pool, 1, 1, 2)
    assert [await witnessed(books.pool, *at) for at in ((0, 1), (1, 1), (0, 2))] == [41, 2, 0]


async def test_what_the_guardian_did_can_be_read(books: Books) -> None:
    """Every note comes back as it was made, newest first; a kind that nobody knows is refused."""
    await record_guardian_event(books.pool, 0, "begun", epoch=1, detail={"reason": "first"})
    async with books.pool.acquire() as conn:
        await record_guardian_event(
            conn, 1, "new_epoch", epoch=2, redis_epoch=1, redis_seq=3, booked_seq=4, witnessed_seq=5
        )
    newest, oldest = await books.ledger.guardian_events()
    assert (newest.kind, newest.shard, newest.epoch, newest.redis_epoch) == ("new_epoch", 1, 2, 1)
    assert (newest.redis_seq, newest.booked_seq, newest.witnessed_seq, newest.detail) == (3, 4, 5, {})
    assert (oldest.kind, oldest.detail) == ("begun", {"reason": "first"})


async def test_a_ledger_is_used_as_soon_as_a_grant_is_sent(fresh_database: FreshDatabase) -> None:
    """An empty Redis is a beginning only as long as no credit was ever sent and no epoch was ever lost."""
    async with opened_books(fresh_database()) as books:
        await books.fund("org_a", 10)
        async with books.pool.acquire() as conn:
            assert await never_used(conn)
            await books.pool.execute("UPDATE ledger.escrow_grant SET attempted_at = now()")
            assert not await never_used(conn)


async def test_many_processes_may_ask_for_the_first_epoch(fresh_database: FreshDatabase) -> None:
    """A fresh ledger has one epoch, whoever asks first."""
    async with migrated_pool(fresh_database()) as pool:
        asked = await asyncio.gather(*(Ledger(pool).epochs(2) for _ in range(8)))
        assert asked == [[1, 1]] * 8
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute("UPDATE ledger.epoch SET reason = 'another'")
