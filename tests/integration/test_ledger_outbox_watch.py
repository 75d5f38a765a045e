"""Promises of the outbox between Redis's answer and the books: a real journal, a real Redis, books made of paper."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ledger.core.pricing import Quote
from ledger.counter import Admission, CreditCounter, Held, Settlement
from ledger.outbox import SettlementOutbox
from ledger.outbox.journal import Journal
from ledger.outbox.set_aside import UNREADABLE_FILE
from tests.integration.outbox_books import PaperBooks
from tests.services import FreshRedis, RedisService

ORG = "org_outboxwatch1"
Opener = Callable[..., Awaitable[SettlementOutbox]]


@pytest.fixture
def redis(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
async def counter(redis: RedisService) -> AsyncIterator[CreditCounter]:
    made = await CreditCounter.connect(redis.url, epoch=1, timeout_s=0.5)
    await made.begin_epoch()
    await made.grant(ORG, 1, 10**9)
    yield made
    await made.close()


@pytest.fixture
def books() -> PaperBooks:
    return PaperBooks(prompt=False)


@pytest.fixture
async def open_outbox(counter: CreditCounter, books: PaperBooks, tmp_path: Path) -> AsyncIterator[Opener]:
    made: list[SettlementOutbox] = []

    async def make(slot: int = 0, **more: object) -> SettlementOutbox:
        journal = await Journal.open(tmp_path / f"worker-{slot}", wait_s=2, segment_bytes=2_000)
        options = {"ask_every_s": 0.02, "redeliver_after_s": 60.0, **more}
        made.append(SettlementOutbox(journal, counter, books, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for outbox in made:
        await outbox.close()


async def hold(counter: CreditCounter, name: str) -> str:
    assert isinstance(await counter.admit(Admission(name, ORG, "f", Quote(100, 0), 0, 60.0)), Held)
    return name


def end(name: str, amount: int = 60, *, epoch: int = 1) -> Settlement:
    return Settlement(name, ORG, amount, (("r", 3),), ("o",), b'{"outcome":"finished"}', epoch=epoch)


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


async def settle_all(counter: CreditCounter, outbox: SettlementOutbox, names: list[str]) -> None:
    for name in names:
        await hold(counter, name)
    await asyncio.gather(*(outbox.record(end(name)) for name in names))


async def spent(counter: CreditCounter) -> int:
    return (await counter.account(ORG)).spent_nanos


def segments(outbox: SettlementOutbox) -> list[Path]:
    return list(outbox.journal.folder.glob("*.seg"))


NAMES = [f"h{number}" for number in range(40)]


async def test_nothing_is_confirmed_before_it_is_booked(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """What Redis has confirmed stays in the journal, also through a clean end; it goes once Postgres has it."""
    outbox = await open_outbox()
    await settle_all(counter, outbox, NAMES)
    assert await outbox.drain(5) == 0
    await until(lambda: len(books.questions) >= 3)
    assert (outbox.unbooked, outbox.journal.unconfirmed) == (40, 40)
    books.in_books.update(NAMES[:25])
    await until(lambda: outbox.unbooked == 15)
    await outbox.close()
    assert segments(outbox)
    again = await open_outbox()
    assert await again.recover() == 15
    assert await again.drain(5) == 0
    assert (again.unbooked, again.counts.charged_nanos) == (15, 0)  # counted by the process that charged them
    books.prompt = True
    await until(lambda: again.unbooked == 0)
    assert again.counts.booked == 15
    await again.close()
    assert segments(again) == []
    assert await spent(counter) == 40 * 60


async def test_what_is_not_booked_is_delivered_again(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """A settlement that does not come into the books is sent to Redis again and again, and charged once."""
    seen: list[int] = []
    outbox = await open_outbox(redeliver_after_s=0.05, on_settled=lambda charged, short: seen.append(charged))
    await settle_all(counter, outbox, NAMES)
    await until(lambda: outbox.counts.redelivered >= 80)
    assert await spent(counter) == 40 * 60
    assert (outbox.pending, outbox.unbooked, outbox.counts.resettled) == (0, 40, 0)
    books.prompt = True
    await until(lambda: outbox.unbooked == 0)
    assert seen == [60] * 40


async def test_a_hold_that_redis_rolled_back_is_settled_now(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """When Redis has forgotten that it settled, though it still has the hold, the hold is settled again."""
    outbox = await open_outbox(redeliver_after_s=0.2)
    await settle_all(counter, outbox, ["h"])
    assert await outbox.drain(5) == 0
    key = "pareta:{0}:hold:h"
    await counter._read(0, "HSET", key, "state", "held", "held", 100, "opens", "[]", "info", "{}")
    await counter._read(0, "HINCRBY", "pareta:{0}:acct:" + ORG, "held", 100)
    await counter._read(0, "HINCRBY", "pareta:{0}:acct:" + ORG, "available", -100)
    await until(lambda: outbox.counts.resettled == 1)
    assert await spent(counter) == 120  # of an account that was not rolled back with the hold


async def test_postgres_away_delays_and_loses_nothing(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """While the books can't be asked, settlements are delivered and kept; nothing is sent twice for that reason."""
    books.away = books.prompt = True
    outbox = await open_outbox(redeliver_after_s=0.05)
    await settle_all(counter, outbox, NAMES)
    assert await outbox.drain(5) == 0
    await outbox.record(end("never-held"))
    await until(lambda: books.tries >= 4)
    assert (outbox.unbooked, outbox.pending, outbox.counts.redelivered) == (40, 1, 0)
    books.away = False
    await until(lambda: outbox.unbooked == 0 and outbox.pending == 0)
    assert [settlement.hold_id for settlement in books.recovered] == ["never-held"]
    assert outbox.journal.unconfirmed == 0


async def test_after_an_outage_the_reconciler_is_given_time(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """When Postgres is back, what it has not booked yet is not at once taken for lost."""
    books.away = True
    outbox = await open_outbox(redeliver_after_s=0.6)
    await settle_all(counter, outbox, NAMES)
    await asyncio.sleep(0.8)  # by now each of them is due
    books.away = False
    await until(lambda: len(books.questions) >= 3)
    assert outbox.counts.redelivered == 0
    await until(lambda: outbox.counts.redelivered >= 40)


async def test_an_unknown_hold_is_recovered(counter: CreditCounter, books: PaperBooks, open_outbox: Opener) -> None:
    """A settlement whose hold Redis does not know is booked by Postgres, counted, and not tried for ever."""
    seen: list[tuple[int, int]] = []
    outbox = await open_outbox(on_settled=lambda charged, short: seen.append((charged, short)))
    books.in_books.add("known-there")
    await outbox.record(end("never-held"))
    await outbox.record(end("known-there"))
    assert await outbox.drain(5) == 0
    counts = outbox.counts
    assert (counts.recovered_charges, counts.recovered_repeats, counts.charged_nanos) == (1, 1, 60)
    assert [settlement.hold_id for settlement in books.recovered] == ["never-held"]
    assert seen == [(60, 0)]
    assert outbox.journal.unconfirmed == 0


async def test_a_void_of_an_unknown_hold_is_recovered_if_its_epoch_is_known(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """A void tells the books that a hold of a lost epoch is over; one of an earlier version just ends."""
    outbox = await open_outbox()
    await outbox.record(end("of-this-epoch", 0))
    await outbox.record(end("of-nobody-knows", 0, epoch=0))
    assert await outbox.drain(5) == 0
    assert [settlement.hold_id for settlement in books.recovered] == ["of-this-epoch"]
    assert (outbox.journal.unconfirmed, outbox.counts.charged_nanos) == (0, 0)


async def test_the_trace_of_a_void_is_not_taken_for_its_booking(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """A worker that died after Redis left a tombstone, and before the books knew, leaves a void that is recovered."""
    settlement = end("lost", 0, epoch=7)
    await counter.void(settlement)  # Redis, at a later epoch, did not know it, and knows it as void now
    outbox = await open_outbox()
    await outbox.record(settlement)
    assert await outbox.drain(5) == 0
    assert [recovered.hold_id for recovered in books.recovered] == ["lost"]


async def test_a_new_epoch_is_answered_at_once(counter: CreditCounter, books: PaperBooks, open_outbox: Opener) -> None:
    """When an epoch ends, what Redis had confirmed is not left until its time comes: frozen credit is soon released."""
    outbox = await open_outbox(redeliver_after_s=3600.0)
    await settle_all(counter, outbox, NAMES)
    assert await outbox.drain(5) == 0
    books.in_books.update(NAMES[:30])
    await counter._read(0, "DEL", *(f"pareta:{{0}}:hold:{name}" for name in NAMES))
    await counter._read(0, "HSET", "pareta:{0}:meta", "epoch", 2, "seq", 0)
    counter.set_epoch(0, 2)
    await until(lambda: outbox.unbooked == 0)
    assert sorted(settlement.hold_id for settlement in books.recovered) == sorted(NAMES[30:])
    assert outbox.counts.charged_nanos == 40 * 60


async def test_one_settlement_that_the_books_cannot_take_stops_no_other(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """What the books refuse for good is kept in a file, and all others around it are booked."""
    books.poison, books.away = "u3", True
    outbox = await open_outbox()
    for number in range(8):
        await outbox.record(end(f"u{number}"))
    books.away = False
    assert await outbox.drain(10) == 0
    assert sorted(settlement.hold_id for settlement in books.recovered) == [f"u{n}" for n in range(8) if n != 3]
    assert b'"u3"' in (outbox.journal.folder / UNREADABLE_FILE).read_bytes()
    assert outbox.counts.refused == 1


async def test_more_than_fits_waits_for_the_books_on_disk(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """Beyond ``max_unbooked`` only the journal has what was delivered; all of it is asked for in the end."""
    outbox = await open_outbox(max_unbooked=10)
    names = [f"h{number}" for number in range(200)]
    await settle_all(counter, outbox, names)
    assert await outbox.drain(10) == 0
    assert outbox.unbooked == 200
    assert len(outbox._watch) <= 10
    books.prompt = True
    await until(lambda: outbox.unbooked == 0)
    assert max(books.questions) <= 10
    assert outbox.counts.redelivered == 0
    await outbox.close()
    assert segments(outbox) == []
    assert await spent(counter) == 200 * 60


async def test_both_queues_overflow_to_the_disk(
    counter: CreditCounter, redis: RedisService, books: PaperBooks, open_outbox: Opener
) -> None:
    """With Redis and Postgres away at once and little memory, every settlement is delivered and booked in the end."""
    names = [f"h{number}" for number in range(120)]
    for name in names:
        await hold(counter, name)
    books.away = books.prompt = True
    outbox = await open_outbox(max_pending=10, max_unbooked=10)
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        for name in names:
            await outbox.record(end(name))
        assert outbox.pending == 120
        assert outbox.counts.spilled >= 110
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert await outbox.drain(20) == 0
    assert await spent(counter) == 120 * 60
    assert len(outbox._watch) <= 10
    books.away = False
    await until(lambda: outbox.unbooked == 0)
    assert outbox.counts.booked == 120
    assert outbox.journal.unconfirmed == 0


async def test_a_backlog_in_the_journal_needs_little_memory(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener, tmp_path: Path
) -> None:
    """Thousands of settlements that were delivered and not booked take a fraction of what they take on the disk."""
    names = [f"h{number:05}" for number in range(6000)]
    await asyncio.gather(*(hold(counter, name) for name in names))
    outbox = await open_outbox(max_unbooked=500)
    await asyncio.gather(*(outbox.record(end(name)) for name in names[:1000]))
    assert await outbox.drain(20) == 0
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for start in range(1000, 6000, 500):
            await asyncio.gather(*(outbox.record(end(name)) for name in names[start : start + 500]))
            assert await outbox.drain(20) == 0
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    on_disk = sum(path.stat().st_size for path in segments(outbox))
    assert outbox.unbooked == 6000
    assert (after - before) * 6 < on_disk, (after - before, on_disk)


async def test_a_disk_that_refuses_leaves_the_settlement_in_memory_until_it_is_booked(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """A settlement that only Redis has is watched as well, and delivered again if Redis loses it."""
    outbox = await open_outbox(redeliver_after_s=0.1)
    await hold(counter, "h")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        await outbox.record(end("h"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (outbox.unbooked, outbox.pending, outbox.counts.undurable) == (1, 0, 1)
    await until(lambda: outbox.counts.redelivered >= 2)
    books.prompt = True
    await until(lambda: outbox.unbooked == 0)
    assert await spent(counter) == 60


async def test_a_record_that_vanished_is_said_and_given_up(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """When somebody deletes a segment, its settlements are asked for as long as they need not be sent again."""
    outbox = await open_outbox(redeliver_after_s=0.3)
    await settle_all(counter, outbox, NAMES)
    await outbox.record(end("unknown-one"))
    for path in sorted(segments(outbox))[:-1]:
        path.unlink()
    books.in_books.update(NAMES[:10])
    await until(lambda: outbox.counts.vanished > 0)
    books.prompt = True
    await until(lambda: outbox.unbooked == 0)
    assert outbox.counts.vanished + outbox.counts.booked == 40
    assert outbox.counts.booked >= 10
    assert "is gone from the disk" in caplog.text


async def test_an_adopted_journal_is_kept_until_it_is_booked(
    counter: CreditCounter, redis: RedisService, books: PaperBooks, open_outbox: Opener
) -> None:
    """A journal of a slot that never comes back stays locked until its last settlement is booked, then it is free."""
    gone = await open_outbox(7)
    await settle_all(counter, gone, NAMES)
    assert await gone.drain(5) == 0
    await gone.close()
    outbox = await open_outbox(0, max_unbooked=10)
    assert await outbox.adopt_orphans(gone.journal.folder.parent) == 40
    assert await outbox.drain(5) == 0
    assert outbox.unbooked == 40
    with pytest.raises(Exception, match="belongs to a process"):
        await Journal.open(gone.journal.folder)
    books.prompt = True
    await until(lambda: outbox.unbooked == 0)
    free = await Journal.open(gone.journal.folder, wait_s=5)
    await free.close()
    assert segments(gone) == []
    assert await spent(counter) == 40 * 60


async def test_draining_does_not_wait_for_the_books(
    counter: CreditCounter, books: PaperBooks, open_outbox: Opener
) -> None:
    """A worker that ends waits for Redis only; Postgres may be away."""
    books.away = True
    outbox = await open_outbox()
    await settle_all(counter, outbox, NAMES)
    assert await asyncio.wait_for(outbox.drain(30), 5) == 0
    await asyncio.wait_for(outbox.close(), 5)
