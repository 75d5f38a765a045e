"""Promises of the settlement outbox: a real journal, a real Redis, real crashes."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ledger.core.pricing import Quote
from ledger.counter import Admission, CounterUnavailable, CreditCounter, Held, Recalled, Settlement
from ledger.counter.words import MAX_INFO_BYTES, MAX_OUTCOME_LETTERS
from ledger.outbox import OutboxUnavailable, SettlementOutbox
from ledger.outbox.journal import Journal
from ledger.outbox.set_aside import UNREADABLE_FILE
from tests.integration.outbox_books import PaperBooks
from tests.services import FreshRedis, RedisService

ORG = "org_outboxoutbox"
Opener = Callable[..., Awaitable[SettlementOutbox]]


@pytest.fixture
def redis(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
async def counter(redis: RedisService) -> AsyncIterator[CreditCounter]:
    made = await CreditCounter.connect(redis.url, epoch=1, timeout_s=0.5)
    await made.begin_epoch()
    await made.grant(ORG, 1, 1_000_000)
    yield made
    await made.close()


@pytest.fixture
def books() -> PaperBooks:
    return PaperBooks()


@pytest.fixture
async def open_outbox(counter: CreditCounter, books: PaperBooks, tmp_path: Path) -> AsyncIterator[Opener]:
    made: list[SettlementOutbox] = []

    async def make(slot: int = 0, **more: object) -> SettlementOutbox:
        journal = await Journal.open(tmp_path / f"worker-{slot}", wait_s=2, segment_bytes=50_000)
        options = {"ask_every_s": 0.02, "redeliver_after_s": 60.0, **more}
        made.append(SettlementOutbox(journal, counter, books, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for outbox in made:
        await outbox.close()


async def hold(counter: CreditCounter, name: str, amount: int = 100) -> str:
    held = await counter.admit(Admission(name, ORG, "f", Quote(amount, 0), 0, 60.0))
    assert isinstance(held, Held)
    return name


def end(name: str, amount: int = 60) -> Settlement:
    return Settlement(name, ORG, amount, (("r", 3),), ("o",), b'{"outcome":"finished"}')


async def start_again(redis: RedisService, counter: CreditCounter) -> None:
    """Start a Redis that was killed, and let callers in as the guardian would."""
    await asyncio.to_thread(redis.start)
    async with asyncio.timeout(10):
        while True:
            try:
                return await counter.load_script(0)
            except CounterUnavailable:
                await asyncio.sleep(0.02)


async def all_booked(outbox: SettlementOutbox) -> None:
    """Wait until nothing is delivered and not booked."""
    async with asyncio.timeout(20):
        while outbox.unbooked:
            await asyncio.sleep(0.01)


async def spent(counter: CreditCounter) -> int:
    return (await counter.account(ORG)).spent_nanos


async def test_a_cancelled_future_stops_nothing(counter: CreditCounter, open_outbox: Opener) -> None:
    """Whoever cancels what tells of a settlement only stops being told: it becomes durable and is charged."""
    outbox = await open_outbox()
    names = [await hold(counter, f"h{number}") for number in range(20)]
    told = [outbox.post(end(name)) for name in names]
    for one in told[::2]:
        one.cancel()
    await outbox.written()
    assert outbox.counts.recorded == 20
    assert [one.cancelled() for one in told] == [True, False] * 10
    assert all(one.done() for one in told)
    assert await outbox.drain(20) == 0
    assert await spent(counter) == 20 * 60


async def test_a_settlement_that_makes_no_sense_is_said_by_its_future(open_outbox: Opener) -> None:
    """It gets neither into the journal nor in the way of the end of a worker."""
    outbox = await open_outbox()
    refused = outbox.post(end("h", -1))
    with pytest.raises(ValueError, match="not negative"):
        await refused
    await outbox.written()
    assert (outbox.pending, outbox.journal.unconfirmed, outbox.counts.recorded) == (0, 0, 0)


async def test_what_is_recorded_is_charged(counter: CreditCounter, open_outbox: Opener) -> None:
    """A recorded settlement reaches Redis by itself, is charged once, and leaves nothing in the journal."""
    seen: list[tuple[int, int]] = []
    outbox = await open_outbox(on_settled=lambda charged, short: seen.append((charged, short)))
    for number in range(500):
        await hold(counter, f"h{number}")
    await asyncio.gather(*(outbox.record(end(f"h{number}")) for number in range(500)))
    assert await outbox.drain(10) == 0
    assert await spent(counter) == 500 * 60
    assert seen == [(60, 0)] * 500
    await all_booked(outbox)
    await outbox.close()
    assert not list(outbox.journal.folder.glob("*.seg"))


async def test_amount_zero_is_a_void(counter: CreditCounter, open_outbox: Opener) -> None:
    """The end of a hold without a charge gives the credit back and books a void."""
    outbox = await open_outbox()
    await hold(counter, "h")
    await outbox.record(end("h", 0))
    assert await outbox.drain(5) == 0
    assert (await counter.read_events(0))[-1].kind == "void"
    assert (await counter.account(ORG)).available_nanos == 1_000_000


async def test_a_stopped_redis_delays_and_loses_nothing(
    counter: CreditCounter, redis: RedisService, open_outbox: Opener
) -> None:
    """While Redis hangs, settlements are durable at once; when it is back, each is charged exactly once."""
    outbox = await open_outbox()
    for number in range(20):
        await hold(counter, f"h{number}")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        await asyncio.wait_for(asyncio.gather(*(outbox.record(end(f"h{number}")) for number in range(20))), 5)
        assert await outbox.drain(1.2) == 20
        assert outbox.counts.retried > 0
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert await outbox.drain(10) == 0
    assert await spent(counter) == 20 * 60
    assert [event.kind for event in await counter.read_events(0)] == ["grant"] + ["settle"] * 20


async def test_a_killed_redis_delays_and_loses_nothing(
    counter: CreditCounter, redis: RedisService, open_outbox: Opener
) -> None:
    """Redis is killed under load and comes back from its disk: every recorded settlement is charged exactly once."""
    outbox = await open_outbox()
    for number in range(200):
        await hold(counter, f"h{number}")

    async def settle(number: int) -> None:
        await asyncio.sleep(number * 0.001)
        await outbox.record(end(f"h{number}"))

    work = [asyncio.create_task(settle(number)) for number in range(200)]
    await asyncio.sleep(0.05)
    await asyncio.to_thread(redis.kill)
    await asyncio.gather(*work)
    assert outbox.pending > 0
    await start_again(redis, counter)
    assert await outbox.drain(15) == 0
    assert await spent(counter) == 200 * 60
    account = await counter.account(ORG)
    assert account.granted_nanos == account.available_nanos + account.held_nanos + account.spent_nanos


async def test_a_new_start_delivers_what_the_old_one_could_not(
    counter: CreditCounter, redis: RedisService, open_outbox: Opener
) -> None:
    """Settlements of a worker that ended while Redis was away are delivered by the next worker of its slot."""
    outbox = await open_outbox()
    await hold(counter, "h")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        await outbox.record(end("h"))
        await outbox.close()
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    again = await open_outbox()
    assert await again.recover() == 1
    assert await again.drain(5) == 0
    assert await spent(counter) == again.counts.charged_nanos == 60


async def test_orphans_are_adopted(counter: CreditCounter, redis: RedisService, open_outbox: Opener) -> None:
    """A slot that never comes back is emptied by another worker; a slot that lives is left alone."""
    gone, alive = await open_outbox(7), await open_outbox(8)
    await hold(counter, "h")
    await hold(counter, "i")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        await gone.record(end("h"))
        await alive.record(end("i"))
        await gone.close()
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    outbox = await open_outbox(0)
    assert await outbox.adopt_orphans(outbox.journal.folder.parent) == 1
    assert await outbox.drain(5) == 0
    assert await alive.drain(5) == 0
    assert await spent(counter) == 120
    await all_booked(outbox)
    await open_outbox(7)  # its lock is let go once it is empty
    assert not list(gone.journal.folder.glob("*.seg"))


async def test_a_record_that_is_no_settlement_is_set_aside(tmp_path: Path, open_outbox: Opener) -> None:
    """A record of another version stops nothing and is kept."""
    journal = await Journal.open(tmp_path / "worker-0")
    await journal.write(b"\x00not a settlement")
    await journal.close()
    outbox = await open_outbox()
    assert await outbox.recover() == 1
    assert await outbox.drain(5) == 0
    assert b"not a settlement" in (outbox.journal.folder / UNREADABLE_FILE).read_bytes()
    assert outbox.counts.unreadable == 1


async def test_a_full_disk_falls_back_to_redis(counter: CreditCounter, open_outbox: Opener) -> None:
    """When the disk refuses, a recorded settlement is one that Redis has confirmed; when it takes again, it is used."""
    outbox = await open_outbox()
    for name in ("h", "i", "j"):
        await hold(counter, name)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        await outbox.record(end("h"))
        assert await spent(counter) == 60
        await outbox.record(end("i"))
        assert await spent(counter) == 120
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert outbox.counts.undurable == 2
    await asyncio.sleep(0.3)
    await outbox.record(end("j"))
    assert outbox.counts.undurable == 2
    assert await outbox.drain(5) == 0
    assert await spent(counter) == 180


async def test_no_disk_and_no_redis_is_said(counter: CreditCounter, redis: RedisService, open_outbox: Opener) -> None:
    """When neither the disk nor Redis takes a settlement, the caller is told, and it is still delivered later."""
    outbox = await open_outbox(undurable_wait_s=0.3)
    await hold(counter, "h")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    os.kill(redis.pid, signal.SIGSTOP)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        with pytest.raises(OutboxUnavailable, match="neither on disk nor in Redis"):
            await outbox.record(end("h"))
        assert outbox.pending == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.kill(redis.pid, signal.SIGCONT)
    assert await outbox.drain(10) == 0
    assert await spent(counter) == 60


async def test_a_full_disk_beside_a_full_queue_loses_nothing(
    counter: CreditCounter, redis: RedisService, open_outbox: Opener
) -> None:
    """What is not on the disk stays in memory, however much waits there already."""
    outbox = await open_outbox(max_pending=1, undurable_wait_s=20.0)
    await hold(counter, "h")
    await hold(counter, "i")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        await outbox.record(end("h"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
        recording = asyncio.create_task(outbox.record(end("i")))
        async with asyncio.timeout(10):
            while not outbox.counts.undurable:
                await asyncio.sleep(0.01)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        os.kill(redis.pid, signal.SIGCONT)
    await recording
    assert outbox.counts.spilled == 0
    assert await outbox.drain(10) == 0
    assert await spent(counter) == 120


async def test_a_cancelled_caller_loses_nothing(counter: CreditCounter, open_outbox: Opener) -> None:
    """A caller that is cancelled at any moment of ``record`` still has its settlement delivered."""
    outbox = await open_outbox()
    for number in range(30):
        await hold(counter, f"h{number}")
        task = asyncio.create_task(outbox.record(end(f"h{number}")))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        started = number % 6 > 0
        task.cancel()
        await asyncio.wait([task])
        if not started:
            await outbox.record(end(f"h{number}"))
    assert await outbox.drain(5) == 0
    assert await spent(counter) == 30 * 60


async def test_more_than_fits_in_memory_waits_on_disk(
    counter: CreditCounter, redis: RedisService, open_outbox: Opener
) -> None:
    """Beyond ``max_pending`` the journal keeps settlements, and they are read back and delivered."""
    outbox = await open_outbox(max_pending=10)
    for number in range(60):
        await hold(counter, f"h{number}")
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        for number in range(60):
            await outbox.record(end(f"h{number}"))
        assert outbox.pending == 60
        assert outbox.counts.spilled >= 50
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert await outbox.drain(10) == 0
    assert await spent(counter) == 60 * 60


async def test_a_settlement_that_makes_no_sense_is_refused(open_outbox: Opener) -> None:
    """What the counter would refuse never gets into the journal."""
    outbox = await open_outbox()
    with pytest.raises(ValueError, match="negative"):
        await outbox.record(end("h", -1))
    assert outbox.pending == 0


WORKER = """
import asyncio, itertools, os, sys
from pathlib import Path
from ledger.core.pricing import Quote
from ledger.counter import Admission, CounterUnavailable, CreditCounter, Held, Settlement
from ledger.outbox.journal import Journal
from ledger.outbox import SettlementOutbox

url, folder, told_path, life = sys.argv[1:]

async def main():
    counter = await CreditCounter.connect(url, epoch=1, timeout_s=0.5)
    journal = await Journal.open(Path(folder), wait_s=5, segment_bytes=30_000)
    outbox = SettlementOutbox(journal, counter)
    await outbox.recover()
    told = os.open(told_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    numbers = itertools.count()

    async def client():
        while True:
            number = next(numbers)
            hold, amount = f"{life}-{number}", number % 50
            try:
                held = await counter.admit(Admission(hold, "org_outboxoutbox", "f", Quote(50, 0), 0, 1.0))
            except CounterUnavailable:
                await asyncio.sleep(0.01)
                continue
            assert isinstance(held, Held)
            await outbox.record(Settlement(hold, "org_outboxoutbox", amount))
            os.write(told, f"{hold} {amount}\\n".encode())

    print("ready", flush=True)
    await asyncio.gather(*(client() for _ in range(16)))

asyncio.run(main())
"""


async def test_a_worker_killed_at_any_moment_charges_each_request_once(
    counter: CreditCounter, books: PaperBooks, redis: RedisService, open_outbox: Opener, tmp_path: Path
) -> None:
    """kill -9 of a worker at random moments, Redis killed in between: every settlement that was recorded is charged
    exactly once and exactly, and holds that were left behind are reaped at nothing."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    told = tmp_path / "told"
    await counter.grant(ORG, 2, 10**12)
    for life in range(8):
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER, redis.url, str(tmp_path / "worker-0"), str(told), str(life)],
            stdout=subprocess.PIPE,
        )
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"ready\n"
        await asyncio.sleep(dice.random() * 0.3)
        if life in (3, 6):
            await asyncio.to_thread(redis.kill)
            await asyncio.sleep(dice.random() * 0.1)
        worker.send_signal(signal.SIGKILL)
        assert worker.wait() == -signal.SIGKILL
        worker.stdout.close()
        if life in (3, 6):
            await start_again(redis, counter)
    outbox = await open_outbox()
    await outbox.recover()
    assert await outbox.drain(10) == 0
    assert not books.recovered
    await asyncio.sleep(1.1)
    while await counter.reap(1000):
        pass
    promised = dict(line.split() for line in told.read_text().splitlines())
    booked: dict[str, list[tuple[str, int]]] = {}
    after, seqs = "0-0", []
    while events := await counter.read_events(0, after, count=10_000):
        after = events[-1].id
        seqs += [event.seq for event in events]
        for event in events:
            if event.kind != "grant":
                booked.setdefault(event.hold, []).append((event.kind, event.amount_nanos))
    assert len(promised) > 300
    for hold, amount in promised.items():
        # A settlement that waited out its hold's expiry in the journal would be a late one; here none does.
        assert booked[hold] == [("settle" if int(amount) else "void", int(amount))], hold
    assert {len(events) for events in booked.values()} == {1}
    assert all(events[0][1] == 0 for hold, events in booked.items() if events[0][0] == "reap")
    assert seqs == list(range(1, len(seqs) + 1))
    account = await counter.account(ORG)
    assert account.held_nanos == 0
    assert account.spent_nanos == sum(amount for events in booked.values() for _, amount in events)


async def test_the_largest_settlement_fits_into_the_journal(counter: CreditCounter, open_outbox: Opener) -> None:
    """Whatever the counter takes can be made durable, every letter escaped, and comes back from the disk unchanged."""
    outbox = await open_outbox()
    for name, letter in (("h", "\x01"), ("i", "\U0001f600")):
        admission = Admission(name, ORG, "f", Quote(9, 0), 0, 60.0, claim="c" + name)
        assert isinstance(await counter.admit(admission), Held)
        outcome = letter * MAX_OUTCOME_LETTERS
        await outbox.record(Settlement(name, ORG, 5, info=b"\x01" * MAX_INFO_BYTES, claim="c" + name, outcome=outcome))
        assert await outbox.drain(10) == 0
        assert await counter.recall(ORG, "c" + name, "f") == Recalled("done", outcome)
    assert await spent(counter) == 10
