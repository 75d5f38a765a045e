"""Promises of the credit counter when Redis, the network or the caller fails. Real processes, real sockets."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

import ledger.counter.collector
from gateway.stack.embedded_redis import find_redis
from ledger.counter import CounterUnavailable, CreditCounter, Held, Settled
from tests.integration.ledger_counters import ORG, AnswerEater, admission, end, opened
from tests.integration.tcp_proxy import TcpProxy
from tests.services import FreshRedis, RedisService


@pytest.fixture
def redis(fresh_redis: FreshRedis) -> RedisService:
    return fresh_redis()


@pytest.fixture
async def counter(redis: RedisService) -> AsyncIterator[CreditCounter]:
    async with opened(redis.url, grant=100_000, timeout_s=0.4) as made:
        yield made


async def free_of_holds(counter: CreditCounter, within_s: float = 10.0) -> None:
    """Wait until nothing is held, and check that nothing was charged."""
    async with asyncio.timeout(within_s):
        while counter.orphans or await counter.open_holds():
            await asyncio.sleep(0.02)
    account = await counter.account(ORG)
    assert (account.available_nanos, account.held_nanos, account.spent_nanos) == (100_000, 0, 0)


# Cancelled callers


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_cancelled_at_any_moment_leaves_no_hold(counter: CreditCounter, steps: int) -> None:
    """A caller cancelled while its admission is queued, in flight or just answered leaves nothing held."""
    others = [asyncio.create_task(counter.admit(admission(f"other{number}"))) for number in range(3)]
    task = asyncio.create_task(counter.admit(admission("h")))
    for _ in range(steps):
        await asyncio.sleep(0)
    if not task.cancel():  # a fast machine: it was answered, and the hold is the caller's
        await counter.void(end("h"))
    await asyncio.wait([task])
    assert await asyncio.gather(*others) == [Held(100, 0, ())] * 3
    for number in range(3):
        await counter.void(end(f"other{number}"))
    await free_of_holds(counter)


async def test_a_caller_cancelled_in_the_tick_of_its_answer_leaves_no_hold(counter: CreditCounter) -> None:
    """When the answer and the cancellation come in the same tick, the caller never sees the answer: it is voided."""

    async def killer() -> None:
        await counter.admit(admission("killer", fixed=0))
        task.cancel()

    murder = asyncio.create_task(killer())  # it is answered in the same call, and wakes first
    task = asyncio.create_task(counter.admit(admission("h")))
    await murder
    with pytest.raises(asyncio.CancelledError):
        await task
    await counter.void(end("killer"))
    await free_of_holds(counter)
    assert counter.counts.orphans_voided == 1


async def test_a_crowd_cancelled_at_random_leaves_no_hold(counter: CreditCounter) -> None:
    """Of a thousand admissions cancelled after random times, every one is either answered or voided."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)

    async def caller(number: int) -> str:
        task = asyncio.create_task(counter.admit(admission(f"h{number}", fixed=1)))
        await asyncio.sleep(dice.random() * 0.5)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            return "cancelled"
        await counter.void(end(f"h{number}"))
        return "answered"

    ends = Counter(await asyncio.gather(*(caller(number) for number in range(1000))))
    assert min(ends["cancelled"], ends["answered"]) > 0
    await free_of_holds(counter)


async def test_a_settlement_whose_caller_is_gone_is_made(counter: CreditCounter) -> None:
    """A settlement that was asked for happens, whether its caller still waits or not."""
    for number in range(4):
        await counter.admit(admission(f"h{number}"))
        task = asyncio.create_task(counter.settle(end(f"h{number}", 7)))
        for _ in range(number + 1):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    async with asyncio.timeout(5):
        while await counter.open_holds():
            await asyncio.sleep(0.01)
    assert (await counter.account(ORG)).spent_nanos == 28


# Redis hangs, dies, forgets


async def test_a_hanging_redis_is_unavailable_and_keeps_no_hold(counter: CreditCounter, redis: RedisService) -> None:
    """While Redis hangs, every caller is told within its deadline; the holds that it took after all are voided."""
    await counter.admit(admission("warm", fixed=0))
    await counter.void(end("warm"))
    os.kill(redis.pid, signal.SIGSTOP)
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    try:

        async def caller(number: int) -> object:
            await asyncio.sleep(number * 0.01)
            asked_s = loop.time()
            answer = (await asyncio.gather(counter.admit(admission(f"h{number}")), return_exceptions=True))[0]
            assert loop.time() - asked_s < 0.4 * 1.25 + 0.5
            return answer

        answers = await asyncio.gather(*(caller(number) for number in range(100)))
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    assert loop.time() - started_s > 0.4
    assert {answer.reason for answer in answers if isinstance(answer, CounterUnavailable)} == {"timeout"}
    assert all(isinstance(answer, CounterUnavailable) for answer in answers)
    assert counter.orphans > 0
    await free_of_holds(counter)
    assert counter.counts.orphans_voided > 0
    assert isinstance(await counter.admit(admission("again")), Held)


async def test_a_lost_answer_does_not_hold_credit(redis: RedisService) -> None:
    """A network that swallows answers: the hold was taken, nobody was told, and it is voided."""
    async with (
        AnswerEater(redis.url) as proxy,
        opened(redis.url, grant=100_000) as witness,
        opened(proxy.url, timeout_s=0.3) as counter,
    ):
        await counter.admit(admission("warm", fixed=0))
        await counter.void(end("warm"))
        proxy.eating = True
        with pytest.raises(CounterUnavailable) as caught:
            await counter.admit(admission("h"))
        assert caught.value.reason == "timeout"
        assert proxy.eaten
        assert await witness.open_holds() == 1
        proxy.eating = False
        async with asyncio.timeout(5):
            while counter.orphans:
                await asyncio.sleep(0.02)
        await free_of_holds(witness)


async def test_a_cut_connection_is_mended(redis: RedisService) -> None:
    """After the network was cut, the next operation connects again, and no answer is taken for another's."""
    async with TcpProxy(redis.url) as proxy, opened(proxy.url, grant=100_000) as counter:
        for number in range(10):
            await counter.admit(admission(f"h{number}", fixed=number + 1))
            await proxy.cut()
            await asyncio.sleep(0.01)
            assert await counter.settle(end(f"h{number}", number + 1)) == Settled(number + 1, 0, "fresh")
        await proxy.refuse()
        with pytest.raises(CounterUnavailable) as caught:
            await counter.admit(admission("x"))
        assert caught.value.reason == "unreachable"
        proxy.mend()
        assert isinstance(await counter.admit(admission("y")), Held)


async def test_a_killed_redis_comes_back_with_every_answer_it_gave(counter: CreditCounter, redis: RedisService) -> None:
    """Redis is killed under load: what was answered is there afterwards, and nothing was charged twice."""
    charged: dict[str, int] = {}
    stop = False

    async def worker(number: int) -> None:
        turn = 0
        while not stop:
            hold = f"h{number}-{turn}"
            turn += 1
            try:
                if isinstance(await counter.admit(admission(hold, fixed=2)), Held):
                    while True:
                        try:
                            answer = await counter.settle(end(hold, 1))
                        except CounterUnavailable:
                            await asyncio.sleep(0.02)
                            continue
                        assert isinstance(answer, Settled)
                        charged[hold] = answer.charged_nanos
                        break
            except CounterUnavailable:
                await asyncio.sleep(0.02)

    workers = [asyncio.create_task(worker(number)) for number in range(20)]
    for _ in range(3):
        await asyncio.sleep(0.2)
        await asyncio.to_thread(redis.kill)
        await asyncio.sleep(0.05)
        await asyncio.to_thread(redis.start)
        await counter.load_script(0)
    await asyncio.sleep(0.2)
    stop = True
    await asyncio.gather(*workers)
    async with asyncio.timeout(10):
        while counter.orphans:
            await asyncio.sleep(0.02)
    assert counter.counts.unsure_calls + counter.counts.failed_calls >= 3
    assert counter.counts.failed_calls >= 1
    told: Counter[str] = Counter()
    seqs = []
    after = "0-0"
    while events := await counter.read_events(0, after, count=5000):
        seqs += [event.seq for event in events]
        told.update({event.hold: event.amount_nanos for event in events if event.kind == "settle"})
        after = events[-1].id
    assert seqs == list(range(1, len(seqs) + 1))
    assert told == charged
    account = await counter.account(ORG)
    assert account.spent_nanos == sum(charged.values())
    assert account.held_nanos == 0


async def test_a_flushed_script_is_waited_for(counter: CreditCounter, redis: RedisService) -> None:
    """After SCRIPT FLUSH under load nobody is served until the script is loaded, and then everybody is."""
    client = Redis.from_url(redis.url)
    told: list[tuple[int, int, int]] = []
    counter.on_unsure(lambda *what: told.append(what))
    try:
        for number in range(10):
            await client.script_flush()
            asking = asyncio.gather(*(counter.admit(admission(f"h{number}-{other}", fixed=1)) for other in range(20)))
            await asyncio.sleep(0.02)
            assert not asking.done()
            await counter.load_script(0)
            assert await asking == [Held(1, 0, ())] * 20
        assert counter.counts.unsure_calls >= 10
        assert told[0] == (0, 1, 1)
    finally:
        await client.aclose()


async def test_a_redis_that_was_restarted_serves_nobody_unchecked(counter: CreditCounter, redis: RedisService) -> None:
    """A Redis that comes back is fenced until somebody has compared it with the books and loaded the script."""
    await counter.admit(admission("h"))
    await asyncio.to_thread(redis.kill)
    await asyncio.to_thread(redis.start)
    with pytest.raises(CounterUnavailable, match="not been checked") as caught:
        await counter.settle(end("h", 1))
    assert caught.value.reason == "fenced"
    with pytest.raises(CounterUnavailable, match="not been checked"):
        await counter.ping()
    assert (await counter.account(ORG)).held_nanos == 100
    await counter.load_script(0)
    await counter.ping()
    assert await counter.settle(end("h", 1)) == Settled(1, 0, "fresh")


async def test_a_full_redis_refuses_and_writes_nothing(counter: CreditCounter, redis: RedisService) -> None:
    """At its memory limit Redis refuses: callers are told, nothing is half done, and it works again with memory."""
    await counter.admit(admission("h"))
    before = await counter.account(ORG)
    client = Redis.from_url(redis.url)
    try:
        await client.config_set("maxmemory", "100kb")
        for work in (counter.admit(admission("i")), counter.settle(end("h", 5)), counter.grant(ORG, 2, 1)):
            with pytest.raises(CounterUnavailable) as caught:
                await work
            assert caught.value.reason == "busy"
        await client.config_set("maxmemory", "0")
    finally:
        await client.aclose()
    assert await counter.account(ORG) == before
    assert await counter.settle(end("h", 5)) == Settled(5, 0, "fresh")


async def test_a_redis_that_is_away_at_the_start_is_waited_for(redis: RedisService) -> None:
    """A counter can be made while Redis is away; it says so, and works when Redis is there."""
    await asyncio.to_thread(redis.kill)
    async with asyncio.timeout(10):
        counter = await CreditCounter.connect(redis.url, epoch=1)
        with pytest.raises(CounterUnavailable) as caught:
            await counter.admit(admission())
        assert caught.value.reason == "unreachable"
        with pytest.raises(CounterUnavailable):
            await counter.ping()
    await asyncio.to_thread(redis.start)
    await counter.begin_epoch()
    assert await counter.grant(ORG, 1, 5) == "applied"
    await counter.close()


async def test_too_much_at_once_is_refused_at_once(
    counter: CreditCounter, redis: RedisService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue is bounded: beyond it callers are told without waiting, and the others are served."""
    monkeypatch.setattr(ledger.counter.collector, "MAX_WAITING", 50)
    answers = await asyncio.gather(
        *(counter.admit(admission(f"h{number}", fixed=1)) for number in range(80)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, CounterUnavailable)]
    assert {answer.reason for answer in refused} == {"busy"}
    assert (len(refused), answers.count(Held(1, 0, ()))) == (30, 50)


async def test_a_closing_counter_finishes_what_waits(redis: RedisService) -> None:
    """What was asked before ``close`` is answered; what is asked after it is refused."""
    async with opened(redis.url, grant=1000) as counter:
        tasks = [asyncio.create_task(counter.admit(admission(f"h{number}", fixed=1))) for number in range(300)]
        await asyncio.sleep(0)
        await counter.close()
        assert await asyncio.gather(*tasks) == [Held(1, 0, ())] * 300
        with pytest.raises(CounterUnavailable, match="closed"):
            await counter.admit(admission())


# Ways to connect


async def test_a_wrong_password_is_unreachable(redis: RedisService) -> None:
    """A wrong password is told as what it is, without the password."""
    address = urlsplit(redis.url)
    counter = await CreditCounter.connect(f"redis://:sesame-open@{address.hostname}:{address.port}", epoch=1)
    with pytest.raises(CounterUnavailable, match="password") as caught:
        await counter.admit(admission())
    assert caught.value.reason == "unreachable"
    assert "sesame" not in str(caught.value)
    await counter.close()


async def test_a_unix_socket_works(tmp_path: Path) -> None:
    """``unix://`` URLs are served by the same code."""
    server = subprocess.Popen(
        [find_redis(), "--port", "0", "--unixsocket", "redis.sock", "--save", ""],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    url = f"unix://{tmp_path}/redis.sock"
    try:
        early = await CreditCounter.connect(url, epoch=1)
        async with asyncio.timeout(10):
            while True:
                with suppress(CounterUnavailable):
                    if await early.is_blank():
                        break
                await asyncio.sleep(0.02)
        await early.close()
        async with opened(url, grant=10) as counter:
            assert isinstance(await counter.admit(admission(fixed=1)), Held)
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "", "redis://localhost:port"])
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    """A URL that names no Redis is refused when the counter is made."""
    with pytest.raises(ValueError):
        await CreditCounter.connect(url, epoch=1)
