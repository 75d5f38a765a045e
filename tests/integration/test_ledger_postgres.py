"""Accounts, top-ups, grants and prices in a real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from ledger.books.database import Pool, open_pool, transaction
from ledger.books.grants import Grant, grant_slice
from ledger.books.ledger import Ledger
from ledger.books.partitions import time_of_ms
from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.core.money import MAX_GRANT_NANOS, MAX_NANOS
from ledger.counter.values import GrantVerdict
from ledger.errors import LedgerConflict, LedgerNotMigrated, LedgerRefused, LedgerUnavailable, UnknownAccount
from tests.integration.ledger_world import migrated_pool
from tests.services import FreshDatabase

ORG = "org_aaaaaaaaaaaa"
USD = 1_000_000_000


@pytest.fixture
async def pool(fresh_database: FreshDatabase) -> AsyncIterator[Pool]:
    async with migrated_pool(fresh_database()) as pool:
        yield pool


@pytest.fixture
async def ledger(pool: Pool) -> Ledger:
    ledger = Ledger(pool)
    await ledger.open_accounts(ORG)
    await ledger.epochs(1)
    return ledger


async def grant(pool: Pool, want_nanos: int = 1 << 62) -> Grant | None:
    async with transaction(pool, "grant") as conn:
        return await grant_slice(conn, ORG, shard=0, epoch=1, want_nanos=want_nanos)


class Counter:
    """Takes grants as the Redis script does: each number once and in order."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.granted: dict[str, int] = {}

    async def grant(self, org_id: str, grant_seq: int, amount_nanos: int, *, epoch: int | None = None) -> GrantVerdict:
        last = self.last.get(org_id, 0)
        if grant_seq <= last:
            return "repeated"
        if grant_seq > last + 1:
            return "gap"
        self.last[org_id] = grant_seq
        self.granted[org_id] = self.granted.get(org_id, 0) + amount_nanos
        return "applied"


async def test_the_same_top_up_five_times_at_once_is_one(ledger: Ledger, pool: Pool) -> None:
    """Five concurrent payments with one idempotency key book one transfer, and none of it is granted unasked."""
    booked = await asyncio.gather(*(ledger.top_up(ORG, 5 * USD, "invoice-1", "card") for _ in range(5)))
    assert len({top_up.id for top_up in booked}) == 1
    assert sorted(top_up.replayed for top_up in booked) == [False, True, True, True, True]
    assert (await ledger.balance(ORG)).total_nanos == 5 * USD
    assert await pool.fetchval("SELECT count(*) FROM ledger.transfer WHERE kind = 'top_up'") == 1
    assert (await ledger.balance(ORG)).available_nanos == 5 * USD


async def test_a_key_with_another_amount_is_a_conflict(ledger: Ledger) -> None:
    """A retry that asks for something else is refused and changes nothing."""
    await ledger.top_up(ORG, 5 * USD, "invoice-1")
    with pytest.raises(LedgerConflict):
        await ledger.top_up(ORG, 6 * USD, "invoice-1")
    assert (await ledger.balance(ORG)).total_nanos == 5 * USD


@pytest.mark.parametrize("amount_nanos", [0, -1, MAX_NANOS + 1])
async def test_an_impossible_amount_is_refused(ledger: Ledger, amount_nanos: int) -> None:
    """Nothing, less than nothing and more than Redis can count exactly are not payments."""
    with pytest.raises(LedgerRefused):
        await ledger.top_up(ORG, amount_nanos, "invoice-1")


async def test_an_unknown_organization_cannot_pay_in(ledger: Ledger) -> None:
    """Money never lands where no account was opened."""
    with pytest.raises(UnknownAccount):
        await ledger.top_up("org_bbbbbbbbbbbb", USD, "invoice-1")
    with pytest.raises(UnknownAccount):
        await ledger.balance("org_bbbbbbbbbbbb")


async def test_opening_accounts_twice_keeps_the_balance(ledger: Ledger) -> None:
    """Opening is idempotent."""
    await ledger.top_up(ORG, USD, "invoice-1")
    assert (await ledger.open_accounts(ORG)).total_nanos == USD


async def test_grants_reach_the_counter_once_and_in_order(ledger: Ledger, pool: Pool) -> None:
    """Whatever is delivered twice, or from two places at once, is counted once."""
    counter = Counter()
    for number in range(3):
        await ledger.top_up(ORG, USD, f"invoice-{number}")
        await grant(pool)
    deliveries = await asyncio.gather(*(ledger.deliver_grants(counter) for _ in range(3)))
    assert max(delivery.delivered for delivery in deliveries) == 3
    assert counter.granted == {ORG: 3 * USD}
    assert await ledger.pending_grants() == []
    credit = await ledger.credit(ORG)
    assert (credit.topped_up_nanos, credit.escrow_nanos, credit.charged_nanos) == (3 * USD, 3 * USD, 0)


async def test_a_counter_that_lost_its_grants_is_reported(ledger: Ledger, pool: Pool) -> None:
    """A gap stays pending and is named: it means that Redis has forgotten credit."""
    await ledger.top_up(ORG, USD, "invoice-1")
    await grant(pool, USD // 2)
    await ledger.deliver_grants(Counter())
    await grant(pool, USD // 2)
    delivery = await ledger.deliver_grants(Counter())
    assert (delivery.delivered, delivery.gaps) == (0, (ORG,))
    assert len(await ledger.pending_grants()) == 1


async def test_more_than_one_grant_may_carry_waits_in_postgres(ledger: Ledger, pool: Pool) -> None:
    """Escrow never exceeds what a Redis script can count; the rest stays available."""
    await ledger.top_up(ORG, MAX_GRANT_NANOS + 7, "invoice-1")
    assert await grant(pool) is not None
    balance = await ledger.balance(ORG)
    assert (balance.available_nanos, balance.escrow_nanos) == (7, MAX_GRANT_NANOS)
    assert await grant(pool) is None


@pytest.mark.parametrize("table", ["transfer", "transfer_2026_11", "usage_event", "top_up", "audit_block"])
@pytest.mark.parametrize("change", ["UPDATE {} SET {} = {}", "DELETE FROM {}", "TRUNCATE {}"])
async def test_the_past_cannot_be_changed(ledger: Ledger, pool: Pool, table: str, change: str) -> None:
    """UPDATE, DELETE and TRUNCATE of booked rows fail, also for the owner and for a superuser."""
    await ledger.top_up(ORG, USD, "invoice-1")
    await pool.execute("INSERT INTO ledger.audit_block VALUES (1, now(), now() + interval '1s', 0, 0, '', '')")
    await pool.execute(
        """INSERT INTO ledger.usage_event (hold_id, id_time, revision, kind, org_id, held_nanos, amount_nanos,
                  shortfall_nanos, settled_at, epoch, shard, seq)
           SELECT id, ledger.id_time(id), 0, 'void', $1, 0, 0, 0, now(), 1, 0, 1 FROM ledger.top_up""",
        ORG,
    )
    if table == "transfer_2026_11":
        table = await pool.fetchval("SELECT tableoid::regclass::text FROM ledger.transfer LIMIT 1")
    name = table.rpartition(".")[2]
    column = await pool.fetchval(
        "SELECT column_name FROM information_schema.columns WHERE table_schema = 'ledger' AND table_name = $1", name
    )
    before = await pool.fetchval(f"SELECT count(*) FROM ledger.{name}")
    assert before
    for grant in ("SELECT 1", f"GRANT ALL ON ledger.{name} TO CURRENT_USER"):
        await pool.execute(grant)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(change.format(f"ledger.{name}", column, column))
    assert await pool.fetchval(f"SELECT count(*) FROM ledger.{name}") == before


async def test_every_id_lands_in_the_month_of_its_own_time(pool: Pool) -> None:
    """The time that Postgres reads out of an id is the time that was put in, to the millisecond."""
    for time_ms in (0, 1, 1_735_689_599_999, 1_795_371_461_270, 7_258_118_399_999):
        minted = request_id(time_ms, b"\xff\x00" * 5)
        assert await pool.fetchval("SELECT ledger.id_time($1)", minted) == time_of_ms(time_ms)
    with pytest.raises(asyncpg.CheckViolationError):
        await pool.execute(
            """INSERT INTO ledger.usage_event (hold_id, id_time, revision, kind, org_id, held_nanos, amount_nanos,
                      shortfall_nanos, settled_at, epoch, shard, seq)
               VALUES ($1, now(), 0, 'void', $2, 0, 0, 0, now(), 1, 0, 1)""",
            request_id(1_795_371_461_270, bytes(10)),
            ORG,
        )


async def test_a_price_change_closes_the_old_card(ledger: Ledger) -> None:
    """There is one price at every moment, and the old card stays readable for ever."""
    first = await ledger.set_price("ep_a", {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000})
    again = await ledger.set_price("ep_a", {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000})
    assert again == first
    second = await ledger.set_price("ep_a", {Meter.REQUEST: 1_200_000})
    cards = await ledger.price_cards("ep_a")
    assert [card.id for card in cards] == [first.id, second.id]
    assert cards[0].effective_to_ms == cards[1].effective_from_ms
    assert cards[0].rates == {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000}
    assert await ledger.current_cards(endpoint_id="ep_a") == {"ep_a": (second,)}


async def test_a_price_may_be_scheduled_but_not_backdated(ledger: Ledger) -> None:
    """A future card is shown beside the present one; a past one, or one before it, is refused."""
    now = datetime.now(UTC)
    await ledger.set_price("ep_a", {Meter.REQUEST: 1}, now - timedelta(days=1))
    await ledger.set_price("ep_a", {Meter.REQUEST: 2}, now + timedelta(hours=1))
    assert [card.rates[Meter.REQUEST] for card in (await ledger.current_cards())["ep_a"]] == [1, 2]
    assert [card.rates[Meter.REQUEST] for card in (await ledger.current_cards(now + timedelta(hours=2)))["ep_a"]] == [2]
    for moment in (now - timedelta(hours=1), now + timedelta(minutes=30), None):
        with pytest.raises(LedgerConflict):
            await ledger.set_price("ep_a", {Meter.REQUEST: 3}, moment)


async def test_many_price_changes_at_once_never_overlap(ledger: Ledger, pool: Pool) -> None:
    """Twenty operators at once leave a gapless row of cards."""
    await asyncio.gather(*(ledger.set_price("ep_a", {Meter.REQUEST: rate}) for rate in range(20)))
    cards = await ledger.price_cards("ep_a")
    assert len(cards) == 20
    assert [card.effective_to_ms for card in cards[:-1]] == [card.effective_from_ms for card in cards[1:]]
    assert cards[-1].effective_to_ms is None


async def test_the_database_itself_refuses_overlapping_cards(ledger: Ledger, pool: Pool) -> None:
    """No program can give one endpoint two prices at once, nor rewrite or delete a card."""
    await ledger.set_price("ep_a", {Meter.REQUEST: 1})
    overlapping = "INSERT INTO ledger.price_card (id, endpoint_id, rates, effective_from_ms) VALUES ($1, $2, '{}', $3)"
    with pytest.raises(asyncpg.ExclusionViolationError):
        await pool.execute(overlapping, "pc_x", "ep_a", 2**45)
    await pool.execute(overlapping, "pc_y", "ep_a ", 2**45)
    for sql in (
        "UPDATE ledger.price_card SET rates = '{\"request\": 2}'",
        "UPDATE ledger.price_card SET effective_from_ms = 1",
        "DELETE FROM ledger.price_card",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await pool.execute(sql)


@pytest.mark.parametrize("rates", [{}, {Meter.PROMPT: -1}, {Meter.PROMPT: 10**14}, {Meter.PROMPT: True}, {"tokens": 1}])
async def test_a_wrong_rate_is_refused_with_a_sentence(ledger: Ledger, rates: dict[Meter, int]) -> None:
    """What cannot be charged exactly never becomes a price."""
    with pytest.raises(LedgerRefused, match=r"\.$"):
        await ledger.set_price("ep_a", rates)


async def test_a_price_change_is_pushed(ledger: Ledger, pool: Pool) -> None:
    """Whoever listens learns of a new price in the commit that made it."""
    heard: asyncio.Queue[str] = asyncio.Queue()
    async with pool.acquire() as conn:

        def hear(*notification: object) -> None:
            heard.put_nowait(str(notification[3]))

        await conn.add_listener("pareta_state", hear)
        await ledger.set_price("ep_a", {Meter.REQUEST: 1})
        assert json.loads(await asyncio.wait_for(heard.get(), 10)) == {"kind": "price", "id": "ep_a"}
        await conn.remove_listener("pareta_state", hear)


async def test_a_missing_schema_says_what_to_do(fresh_database: FreshDatabase) -> None:
    """An empty database is not an outage without a reason: the error says to migrate."""
    pool = await open_pool(fresh_database(), size=1)
    with pytest.raises(LedgerNotMigrated, match="migrations"):
        await Ledger(pool).balance(ORG)
    await pool.close()


async def test_an_unreachable_server_is_unavailable_without_its_address(unused_tcp_port: int) -> None:
    """The sentence names neither host nor user nor password."""
    with pytest.raises(LedgerUnavailable) as caught:
        await open_pool(f"postgres://someone:secret@127.0.0.1:{unused_tcp_port}/db")
    assert not any(word in str(caught.value) for word in ("127.0.0.1", "someone", "secret", str(unused_tcp_port)))


async def test_a_query_that_outlasts_its_deadline_is_unavailable(fresh_database: FreshDatabase) -> None:
    """A lock that somebody else holds costs the deadline and no more."""
    async with migrated_pool(fresh_database(), timeout_s=0.3) as pool:
        ledger = Ledger(pool)
        await ledger.open_accounts(ORG)
        async with pool.acquire() as other, other.transaction():
            await other.execute("SELECT 1 FROM ledger.balance FOR UPDATE")
            with pytest.raises(LedgerUnavailable, match="in time"):
                await ledger.top_up(ORG, USD, "invoice-1")
        assert (await ledger.top_up(ORG, USD, "invoice-1")).replayed is False
