"""Two guardians at one shard, or one whose commands arrive late: only whoever fenced it last may change it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from ledger.counter import CounterUnavailable, CreditCounter
from ledger.counter.door import ShardDoor
from tests.integration.ledger_counters import ORG, admission, opened
from tests.services import FreshRedis

GRANT = 1_000


@pytest.fixture
async def counter(fresh_redis: FreshRedis) -> AsyncIterator[CreditCounter]:
    """A counter at epoch 1 with credit, a hold and events."""
    async with opened(fresh_redis(durable=False).url, grant=GRANT) as counter:
        await counter.admit(admission())
        yield counter


@pytest.fixture
async def doors(counter: CreditCounter) -> AsyncIterator[tuple[ShardDoor, ShardDoor]]:
    """Two hands on shard 0."""
    doors = counter.door(0), counter.door(0)
    yield doors
    for door in doors:
        await door.close()


async def test_a_wipe_that_comes_after_another_opened_an_epoch_changes_nothing(
    counter: CreditCounter, doors: tuple[ShardDoor, ShardDoor]
) -> None:
    """The slow one saw epoch 1; by the time its commands come there is an epoch 2 with credit in it, which stays."""
    slow, quick = doors
    seen = await slow.look()
    found = await quick.look()
    await quick.open(found, 2)
    await quick.let_in(found, 2, 0)
    counter.set_epoch(0, 2)
    assert await counter.grant(ORG, 1, GRANT) == "applied"
    for change in (slow.fence(seen), slow.open(seen, 2), slow.open(seen, 3)):
        with pytest.raises(CounterUnavailable):
            await change
    look = await quick.look()
    assert (look.epoch, look.seq) == (2, 1)
    assert (await counter.account(ORG)).available_nanos == GRANT


async def test_of_two_that_fenced_the_later_one_goes_on(doors: tuple[ShardDoor, ShardDoor]) -> None:
    """Each fences under a name of its own, so the first cannot wipe or open any more."""
    first, second = doors
    seen, found = await first.look(), await second.look()
    name = await first._fence(seen)
    await second._fence(found)
    with pytest.raises(CounterUnavailable):
        await first._wipe(seen.generation, name)
    assert (await second.look()).epoch == 0
    await second.open(await second.look(), 2)
    assert (await second.look()).epoch == 2
