"""What Postgres books without Redis: lost settlements, carried holds, credit that came back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ledger.books.recovered import book_locked
from ledger.books.recovery import (
    CarriedBeat,
    Recovered,
    book_recovered,
    booked_holds,
    carry_holds,
    reap_carried,
    release_due,
)
from ledger.core.ids import request_id
from ledger.errors import LedgerUnavailable
from ledger.proof.audit import audit
from tests.integration.ledger_books import Books, opened_books
from tests.integration.ledger_world import new_request_id
from tests.services import FreshDatabase

ORG = "org_aaaaaaaaaaaa"
OTHER = "org_bbbbbbbbbbbb"


@pytest.fixture
async def books(fresh_database: FreshDatabase) -> AsyncIterator[Books]:
    async with opened_books(fresh_database()) as books:
        yield books
        assert await books.differences() == []


def beat(books: Books, hold: str, *, held: int = 10, accrued: int = 3, expires_in_s: float = 60.0) -> CarriedBeat:
    return CarriedBeat(hold, ORG, 0, 1, held, accrued, books.info(accrued), expires_in_s)


async def recover(books: Books, *items: Recovered) -> list[tuple[str, int, int]]:
    outcomes = await book_recovered(books.pool, books.months, items)
    return [(outcome.verdict, outcome.charged_nanos, outcome.shortfall_nanos) for outcome in outcomes]


async def test_a_settlement_of_a_lost_epoch_is_charged_from_frozen_credit(books: Books) -> None:
    """What Redis forgot is charged once, from what was frozen when it forgot; the receipt says so."""
    await books.fund(ORG, 100, granted=60)
    await books.lose()
    item = books.recovered(ORG, 25, epoch=1)
    assert await recover(books, item) == [("booked", 25, 0)]
    assert await books.purse(ORG) == (40, 0, 35)
    receipt = await books.ledger.receipt(item.hold_id)
    assert receipt is not None
    assert (receipt.charged_nanos, receipt.recovered, receipt.epoch, receipt.seq) == (25, True, 1, 0)
    assert [(moved.kind, moved.amount_nanos, moved.recovered) for moved in receipt.transfers] == [("charge", 25, True)]
    assert await recover(books, item) == [("repeated", 25, 0)]


async def test_available_credit_covers_what_is_not_frozen(books: Books) -> None:
    """A settlement that comes after the release is still paid, from what is available; only then is it a shortfall."""
    await books.fund(ORG, 100, granted=30)
    await books.lose()
    late, later = books.recovered(ORG, 50, epoch=1), books.recovered(ORG, 70, epoch=1)
    assert await recover(books, late, later) == [("booked", 50, 0), ("booked", 50, 20)]
    assert await books.purse(ORG) == (0, 0, 0)
    await books.ledger.top_up(ORG, 100, "more")
    assert await recover(books, later) == [("repeated", 50, 20)]
    assert await books.purse(ORG) == (100, 0, 0)


async def test_the_same_settlement_from_everywhere_at_once_is_charged_once(books: Books) -> None:
    """Forty callers at once, each with the same holds in another order, book each of them once."""
    await books.fund(ORG, 10_000)
    await books.fund(OTHER, 10_000)
    await books.lose()
    items = [books.recovered((ORG, OTHER)[number % 2], 7, epoch=1) for number in range(20)]
    answers = await asyncio.gather(
        *(recover(books, *(items[number % 20 :] + items[: number % 20])) for number in range(40))
    )
    verdicts = [verdict for answer in answers for verdict, _, _ in answer]
    assert (verdicts.count("booked"), verdicts.count("repeated")) == (20, 39 * 20 + 0)
    assert [await books.purse(org) for org in (ORG, OTHER)] == [(0, 0, 9930), (0, 0, 9930)]


async def test_the_same_hold_twice_in_one_call_is_charged_once(books: Books) -> None:
    """A journal that repeats itself changes nothing."""
    await books.fund(ORG, 100)
    await books.lose()
    item = books.recovered(ORG, 9, epoch=1)
    assert await recover(books, item, item, item) == [("booked", 9, 0), ("repeated", 9, 0), ("repeated", 9, 0)]
    assert await books.purse(ORG) == (0, 0, 91)


async def test_a_void_that_redis_forgot_costs_nothing(books: Books) -> None:
    """What failed is booked as a void, whatever price it came with."""
    await books.fund(ORG, 100)
    await books.lose()
    item = books.recovered(ORG, 9, epoch=1, kind="void")
    assert await recover(books, item) == [("booked", 0, 0)]
    assert await booked_holds(books.pool, [item.hold_id]) == {item.hold_id}
    assert await books.purse(ORG) == (0, 0, 100)


@pytest.mark.parametrize(
    ("kind", "price", "purse"), [("settle", 50, 50), ("settle", 20, 80), ("settle", 30, 70), ("void", 0, 100)]
)
async def test_a_settlement_after_the_reap_corrects_it_once(books: Books, kind: str, price: int, purse: int) -> None:
    """A hold that was reaped by Redis and settled after Redis was lost costs what was settled."""
    await books.fund(ORG, 100)
    reap = books.event(ORG, "reap", 30)
    await books.desks[0].book([reap])
    assert await booked_holds(books.pool, [reap.hold]) == set()
    await books.lose()
    item = books.recovered(ORG, price, hold=reap.hold, epoch=1, kind=kind)
    assert await recover(books, item) == [("booked", price, 0)]
    assert await recover(books, item) == [("repeated", price, 0)]
    assert sum(await books.purse(ORG)) == purse
    assert await booked_holds(books.pool, [reap.hold]) == {reap.hold}
    receipt = await books.ledger.receipt(reap.hold)
    assert receipt is not None
    assert (receipt.kind, receipt.charged_nanos) == ("late", price)


async def test_a_correction_beyond_all_credit_is_a_shortfall(books: Books) -> None:
    """A late settlement takes what is left and no more, and the rest is said to be missing."""
    await books.fund(ORG, 40)
    reap = books.event(ORG, "reap", 30)
    await books.desks[0].book([reap])
    await books.lose()
    assert await recover(books, books.recovered(ORG, 90, hold=reap.hold, epoch=1)) == [("booked", 40, 50)]
    assert await books.purse(ORG) == (0, 0, 0)


async def test_what_is_booked_is_not_recovered_again(books: Books) -> None:
    """A journal replayed from the beginning finds every settlement in the books, and pays for none again."""
    await books.fund(ORG, 100)
    settle, void = books.event(ORG, "settle", 10), books.event(ORG, "void", 0)
    await books.desks[0].book([settle, void])
    await books.lose()
    items = [books.recovered(ORG, 10, hold=settle.hold, epoch=1), books.recovered(ORG, 0, hold=void.hold, kind="void")]
    assert await recover(books, *items) == [("repeated", 10, 0), ("repeated", 0, 0)]
    unknown = new_request_id()
    assert await booked_holds(books.pool, [settle.hold, void.hold, unknown, "no id", "req_" + "7" * 26]) == {
        settle.hold,
        void.hold,
    }


async def test_an_event_that_comes_after_its_recovery_moves_no_money(books: Books) -> None:
    """Whichever is booked first is the charge; what Redis spent on the other comes back, and its number counts."""
    await books.fund(ORG, 200, granted=100)
    settle, reap = books.event(ORG, "settle", 30), books.event(ORG, "reap", 10)
    late = books.event(ORG, "late", 15, hold=reap.hold, price=25)
    free = books.event(ORG, "void", 0)
    items = [books.recovered(ORG, price, hold=event.hold) for event, price in ((settle, 30), (reap, 25), (free, 0))]
    assert [verdict for verdict, _, _ in await recover(books, *items)] == ["booked"] * 3
    assert await books.purse(ORG) == (45, 100, 0)
    booked = await books.desks[0].book([settle, reap, late, free, books.event(ORG, "settle", 5)])
    assert (booked.charged_nanos, booked.anomalies) == (5, 0)
    assert await books.purse(ORG) == (100, 40, 0)  # Redis has 100 - 30 - 25 - 5 left
    assert await books.pool.fetchval("SELECT sum(amount_nanos) FROM ledger.usage_event") == 60


async def test_a_settlement_without_a_place_in_the_books_is_kept_and_holds_nothing_up(books: Books) -> None:
    """No account, no such id, no such amount: refused for good, kept once as a difference; the others are booked."""
    await books.fund(ORG, 100)
    await books.lose()
    good = books.recovered(ORG, 5, epoch=1)
    bad = [
        books.recovered("org_nobody", 5),
        replace(good, hold_id=new_request_id(), org_id="org_\x00\ud800"),
        books.recovered(ORG, 5, hold="not an id \x00"),
        books.recovered(ORG, 5, hold=request_id(0, bytes(10))),
        books.recovered(ORG, 5, hold="req_" + "7" * 26),
        books.recovered(ORG, -5),
        books.recovered(ORG, 2**63),
        books.recovered(ORG, 5, epoch=2**31),
    ]
    for _ in range(2):
        outcomes = await recover(books, *bad[:4], good, *bad[4:])
        assert [verdict for verdict, _, _ in outcomes if verdict != "refused"] in (["booked"], ["repeated"])
        assert [verdict for verdict, _, _ in outcomes].count("refused") == len(bad)
    assert await books.purse(ORG) == (0, 0, 95)
    kept = await books.pool.fetch("SELECT kind, detail FROM ledger.anomaly")
    assert {row["kind"] for row in kept} == {"unrecoverable"}
    assert len(kept) == len(bad)
    report = await audit(books.pool, None)
    assert {difference.check for difference in report.differences} == {"anomalies"}
    await books.pool.execute("UPDATE ledger.anomaly SET resolved_at = now(), resolution = 'test'")


async def test_a_description_that_cannot_be_read_is_still_charged(books: Books) -> None:
    """The money of a settlement is booked whatever its description is; only the audit then asks for a price card."""
    await books.fund(ORG, 100)
    await books.lose()
    item = books.recovered(ORG, 5, epoch=1)
    broken = Recovered(item.hold_id, ORG, 0, 1, 0, b'\xff{"\x00', "settle")
    assert await recover(books, broken) == [("booked", 0, 0)]


async def test_a_carried_hold_keeps_its_credit_frozen(books: Books) -> None:
    """The stream of a worker goes on after its epoch was lost; its reserve is not released before it ends."""
    await books.fund(ORG, 100)
    await books.lose()
    hold = new_request_id()
    await carry_holds(books.pool, [beat(books, hold, held=30)])
    assert (await release_due(books.pool, 0)).released_nanos == 70
    assert await books.purse(ORG) == (70, 0, 30)
    assert (await release_due(books.pool, 0)).released_nanos == 0
    assert await recover(books, books.recovered(ORG, 12, hold=hold, epoch=1)) == [("booked", 12, 0)]
    released = await release_due(books.pool, 0)
    assert (released.released_nanos, released.epochs) == (18, (1,))
    assert await books.purse(ORG) == (88, 0, 0)


async def test_a_silent_carried_hold_is_charged_for_what_was_delivered(books: Books) -> None:
    """When its worker dies too, the hold is reaped at the last heartbeat; a settlement from its journal corrects it."""
    await books.fund(ORG, 100)
    await books.lose()
    hold, alive = new_request_id(), new_request_id()
    await carry_holds(books.pool, [beat(books, hold, accrued=8, expires_in_s=0.0), beat(books, alive)])
    assert await reap_carried(books.pool, books.months, 1) == 0
    assert await reap_carried(books.pool, books.months, 0) == 1
    assert await reap_carried(books.pool, books.months, 0) == 0
    assert await books.purse(ORG) == (0, 0, 92)
    assert await recover(books, books.recovered(ORG, 20, hold=hold, epoch=1)) == [("booked", 20, 0)]
    assert await books.purse(ORG) == (0, 0, 80)
    assert [event.kind for event in await books.ledger.guardian_events()] == ["reaped_carried"]


async def test_a_heartbeat_at_the_last_moment_saves_a_carried_hold(books: Books) -> None:
    """A hold that is renewed while it is about to be reaped is not charged."""
    await books.fund(ORG, 100)
    await books.lose()
    hold = new_request_id()
    await carry_holds(books.pool, [beat(books, hold, expires_in_s=0.0)])
    async with books.pool.acquire() as other, other.transaction():
        await other.execute("SELECT 1 FROM ledger.balance FOR UPDATE")
        reaping = asyncio.create_task(reap_carried(books.pool, books.months, 0))
        await _somebody_waits(books)
        await carry_holds(books.pool, [beat(books, hold)])
    assert await reaping == 0
    assert await books.purse(ORG) == (0, 0, 100)


async def test_a_hold_that_two_organizations_claim_is_charged_to_one(books: Books) -> None:
    """Their balances do not keep them apart, so the key of the hold does; who comes second is told to ask again."""
    await books.fund(ORG, 100, granted=0)
    await books.fund(OTHER, 100, granted=0)
    hold = new_request_id()
    mine, theirs = books.recovered(ORG, 5, hold=hold), books.recovered(OTHER, 7, hold=hold)
    async with books.pool.acquire() as first, first.transaction():
        assert [outcome.verdict for outcome in await book_locked(first, [mine])] == ["booked"]
        second = asyncio.create_task(recover(books, theirs))
        await _somebody_waits(books)
    with pytest.raises(LedgerUnavailable):
        await second
    assert await recover(books, theirs) == [("repeated", 5, 0)]


async def _somebody_waits(books: Books) -> None:
    while not await books.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
        await asyncio.sleep(0.01)


async def test_an_old_heartbeat_takes_nothing_back(books: Books) -> None:
    """Beats that overtake each other leave the most that was delivered and the latest expiry."""
    await books.fund(ORG, 100)
    await books.lose()
    hold = new_request_id()
    await carry_holds(books.pool, [beat(books, hold, accrued=9, expires_in_s=60)])
    await carry_holds(books.pool, [beat(books, hold, accrued=4, held=1, expires_in_s=-1)])
    assert await reap_carried(books.pool, books.months, 0) == 0
    await books.pool.execute("UPDATE ledger.carried_hold SET expires_at = now()")
    await reap_carried(books.pool, books.months, 0)
    assert await books.purse(ORG) == (0, 0, 91)


async def test_a_heartbeat_after_the_settlement_charges_nothing(books: Books) -> None:
    """A beat that was on its way when the hold ended leaves no charge, and its reserve only until it expires."""
    await books.fund(ORG, 100)
    await books.lose()
    hold = new_request_id()
    await recover(books, books.recovered(ORG, 12, hold=hold, epoch=1))
    await carry_holds(books.pool, [beat(books, hold, accrued=10, expires_in_s=0.0)])
    await reap_carried(books.pool, books.months, 0)
    assert await books.purse(ORG) == (0, 0, 88)
    assert await books.pool.fetchval("SELECT count(*) FROM ledger.carried_hold") == 0


async def test_what_redis_gives_back_is_available_again(books: Books) -> None:
    """A return moves escrow to available once, with its place in the sequence, also when it is read twice."""
    await books.fund(ORG, 100)
    give, settle = books.event(ORG, "return", 40), books.event(ORG, "settle", 5)
    booked = await books.desks[0].book([give, settle])
    assert (booked.events, booked.charged_nanos, booked.anomalies) == (2, 5, 0)
    assert await books.purse(ORG) == (40, 55, 0)
    await books.desks[0].conn.execute("UPDATE ledger.reconcile_checkpoint SET seq = 0, epoch = 0, stream_id = '0-0'")
    books.desks[0].at = books.desks[0].term.start
    again = await books.desks[0].book([give, settle])
    assert again.charged_nanos == 0
    assert await books.purse(ORG) == (40, 55, 0)
    row = await books.pool.fetchrow("SELECT id, seq, epoch FROM ledger.escrow_return")
    assert row is not None
    assert (row["seq"], row["epoch"], row["id"][:4]) == (1, 1, "ret_")


async def test_the_checkpoint_says_which_event_is_booked(books: Books) -> None:
    """The guardian can tell another history with the same numbers from the one that was booked."""
    await books.fund(ORG, 100)
    settle = books.event(ORG, "settle", 5)
    await books.desks[0].book([settle])
    said = await books.pool.fetchval("SELECT last_event FROM ledger.reconcile_checkpoint")
    assert said == f"settle:{settle.hold}:5:{settle.t_ms}"
