"""The chores of a leader: none of them ends the others, and nobody is reaped who could not renew."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from ledger.books.database import Pool, translated
from ledger.books.partitions import MonthKeeper
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.errors import LedgerUnavailable
from ledger.follow import EpochFollower
from ledger.upkeep import chores as module
from ledger.upkeep.chores import REAP_PAUSE_S, Chores
from ledger.upkeep.escrow import EscrowKeeper, EscrowPolicy


class FlakyCounter:
    """A counter that can be away."""

    shards = 1

    def __init__(self) -> None:
        self.is_away = False
        self.reaped = 0

    def epoch_of(self, shard: int) -> int:
        return 1 + shard

    def on_unsure(self, told: object) -> None:
        del told

    async def ping(self) -> None:
        if self.is_away:
            raise CounterUnavailable("unreachable", "away")

    async def reap(self, limit: int) -> int:
        await self.ping()
        self.reaped += 1
        return 0


def chores_of(counter: FlakyCounter) -> Chores:
    real = cast(CreditCounter, counter)
    pool = cast(Pool, None)
    return Chores(pool, real, MonthKeeper(), EscrowKeeper(pool, real, EscrowPolicy()), leads=lambda shard: True)


async def test_nobody_is_reaped_before_owners_had_time_to_renew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause begins with the last failure of Redis, not with the first."""
    counter, clock = FlakyCounter(), [100.0]
    chores = chores_of(counter)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    await chores._reap()
    assert counter.reaped == 1
    counter.is_away = True
    for now_s in (101.0, 103.0, 105.5, 109.0):
        clock.append(now_s)
        with pytest.raises(CounterUnavailable):
            await chores._reap()
    counter.is_away = False
    clock.append(109.0 + REAP_PAUSE_S - 0.1)
    await chores._reap()
    assert counter.reaped == 1
    clock.append(109.0 + REAP_PAUSE_S + 0.1)
    await chores._reap()
    assert counter.reaped == 2


async def test_a_chore_with_a_bug_ends_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever one of them raises is shown as its error, and all go on."""
    chores, ran = chores_of(FlakyCounter()), asyncio.Event()

    async def broken() -> None:
        raise KeyError("a bug")

    async def fine() -> None:
        if "partitions" in chores.errors:
            ran.set()

    for name in ("_deliver_grants", "_recover", "_compare", "_close_blocks"):
        monkeypatch.setattr(chores, name, fine)
    monkeypatch.setattr(chores.escrow, "refill", fine)
    monkeypatch.setattr(chores.escrow, "return_idle", fine)
    monkeypatch.setattr(chores, "_maintain", broken)
    stop = asyncio.Event()
    running = asyncio.create_task(chores.run(stop))
    async with asyncio.timeout(10):
        await ran.wait()
    assert not running.done()
    assert chores.errors["partitions"] == "partitions: an unexpected KeyError"
    stop.set()
    await running


async def test_a_follower_outlives_every_error_of_postgres(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that has no name here is one more reason to look again."""
    looks = 0
    monkeypatch.setattr("ledger.follow.LOOK_EVERY_S", 0.01)
    errors: list[Any] = [asyncpg.InternalServerError("tuple concurrently updated"), RuntimeError("a bug")]

    async def epochs(pool: object, shards: int) -> list[int]:
        nonlocal looks
        looks += 1
        if errors:
            with translated("read the epochs"):
                raise errors.pop(0)
        return []

    monkeypatch.setattr("ledger.follow.current_epochs", epochs)
    following = asyncio.create_task(EpochFollower(cast(Pool, None), cast(CreditCounter, FlakyCounter())).run())
    async with asyncio.timeout(10):
        while looks < 4:
            await asyncio.sleep(0.01)
    following.cancel()
    await asyncio.wait([following])
    assert following.cancelled()


@pytest.mark.parametrize("error", [asyncpg.InternalServerError, asyncpg.InvalidCachedStatementError])
def test_no_error_of_postgres_stays_untranslated(error: type[asyncpg.PostgresError]) -> None:
    """Whatever the server says is a sentence without its words, and may be tried again."""
    with pytest.raises(LedgerUnavailable, match="could not read: Postgres said"), translated("read"):
        raise error("secret words of the server")
