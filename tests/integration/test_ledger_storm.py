"""Everything at once: stream events, recoveries, heartbeats, reaps, releases, grants and losses, in many tasks."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable

from ledger.books.database import translated
from ledger.books.recovery import CarriedBeat, Recovered, book_recovered, carry_holds, reap_carried, release_due
from tests.integration.ledger_books import Books, opened_books
from tests.integration.ledger_world import new_request_id
from tests.services import FreshDatabase

ORGS = tuple(f"org_{letter}" for letter in "abcdefgh")
ROUNDS = 12


async def test_nothing_is_charged_twice_when_everything_happens_at_once(fresh_database: FreshDatabase) -> None:
    """Whoever is first books a hold, nobody waits in a circle, and afterwards everything adds up to the nano."""
    seed = int(os.environ.get("PARETA_SEED") or random.SystemRandom().randrange(2**32))
    print(f"PARETA_SEED={seed}")
    rng = random.Random(seed)
    async with opened_books(fresh_database(), shards=2, size=16) as books:
        for org in ORGS:
            await books.fund(org, 100_000, granted=30_000)
        prices: dict[str, int] = {}
        for _ in range(ROUNDS):
            await _round(books, rng, prices)
        await books.later()
        for shard in range(2):
            await books.pool.execute("UPDATE ledger.carried_hold SET expires_at = now()")
            await reap_carried(books.pool, books.months, shard)
            await release_due(books.pool, shard)
        assert await books.differences() == []
        rows = await books.pool.fetch("SELECT hold_id, sum(amount_nanos) AS nanos FROM ledger.usage_event GROUP BY 1")
        assert {row["hold_id"]: row["nanos"] for row in rows} == prices
        left = [sum(await books.purse(org)) for org in ORGS]
        assert sum(left) == 100_000 * len(ORGS) - sum(prices.values())
        # Both roads were taken, and sometimes one of them found that the other had been faster.
        assert await books.pool.fetchval("SELECT count(*) FROM ledger.usage_event WHERE recovered") > 0
        assert await books.pool.fetchval("SELECT count(*) FROM ledger.usage_event WHERE NOT recovered") > 0


async def _round(books: Books, rng: random.Random, prices: dict[str, int]) -> None:
    events = [books.event(rng.choice(ORGS), "settle", rng.randint(1, 40)) for _ in range(60)]
    prices |= {event.hold: event.amount_nanos for event in events}
    items = [books.recovered(event.org, event.amount_nanos, hold=event.hold) for event in events]
    carried = [(rng.choice(ORGS), new_request_id(), rng.randint(1, 9)) for _ in range(12)]
    prices |= {hold: nanos for _, hold, nanos in carried}

    async def book(shard: int) -> None:
        mine = [event for event in events if books.desk_of(event.org).shard == shard]
        while mine:
            size = rng.randint(1, 12)
            batch, mine = mine[:size], mine[size:]
            with translated("book"):
                await books.desks[shard].book(batch)

    async def recover(some: list[Recovered]) -> None:
        await book_recovered(books.pool, books.months, some)

    async def carry() -> None:
        for _ in range(3):
            beats = [
                CarriedBeat(
                    hold, org, books.desk_of(org).shard, 1, 9, nanos, books.info(nanos), rng.choice((0.0, 0.02))
                )
                for org, hold, nanos in rng.sample(carried, k=len(carried))
            ]
            await carry_holds(books.pool, beats)
            await reap_carried(books.pool, books.months, rng.randrange(2))

    async def move_money() -> None:
        for _ in range(4):
            org = rng.choice(ORGS)
            await books.grant(org, rng.randint(1, 50))
            await release_due(books.pool, books.desk_of(org).shard)

    tasks: list[Callable[[], Awaitable[None]]] = [
        lambda: book(0),
        lambda: book(1),
        carry,
        carry,
        move_money,
        move_money,
    ]
    for _ in range(4):
        # A third of what is in the stream is recovered too, in several tasks and in different orders.
        some = rng.sample(items, k=20)
        tasks.append(lambda some=some: recover(some))  # type: ignore[misc]
    rng.shuffle(tasks)
    await asyncio.gather(*(task() for task in tasks))
    if rng.random() < 0.4:
        await books.lose(rng.randrange(2), grace_s=rng.choice((0.0, 1000.0)))
        for org in ORGS:
            await books.grant(org, 3_000)
