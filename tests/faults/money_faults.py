"""Faults that customers and operators make themselves: too many at once, twice the same, in the middle of something."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter

from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.core.pricing import Quote
from ledger.counter import Admission, CounterUnavailable, CreditCounter, Held
from tests.faults.attempt import Attempt, End, Rudeness
from tests.faults.clients import send_raw
from tests.faults.customers import Customer
from tests.faults.fault import DidNotFire, Fault, Scene
from tests.faults.load import FLAT_NANOS, TOKEN_RATES
from tests.faults.world import ROOT
from tests.system.wire import ask


async def all_at_once(scene: Scene, attempts: list[Attempt]) -> list[Attempt]:
    """Send them all and keep what came of them."""
    return list(await asyncio.gather(*(scene.load.note(a, send_raw(scene.world.port, a)) for a in attempts)))


class Crowd(Fault):
    """17: two hundred at once with credit for exactly ten."""

    number, name, parts = "17", "200 at once, credit for 10", frozenset({"redis", "postgres", "worker"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        price = FLAT_NANOS + rng.randint(0, 1000)
        name = f"crowd {self.fired + 1} {rng.randrange(10**6)}"
        customer = await scene.world.register.add(
            name, rates={Meter.REQUEST: price}, keys_wanted=1, credit_nanos=10 * price
        )
        await _wait_visible(scene, customer)
        wanted = [scene.load.plain(customer, stream=rng.random() < 0.5, ttft_ms=700) for _ in range(200)]
        answers = await all_at_once(scene, wanted)
        statuses = Counter(a.status for a in answers)
        served = sum(a.finished for a in answers)
        if served > 10:
            scene.findings.wrong("overspent", f"{served} of 200 were served with credit for 10", str(statuses))
        if not statuses[402]:
            raise DidNotFire(f"nobody was refused: {statuses}")
        if set(statuses) == {200, 402} and served != 10:
            scene.findings.wrong("wrong 402", f"{served} of 200 were served with credit for 10", str(statuses))
        self.happened(f"{served} served, {statuses[402]} × 402, {200 - served - statuses[402]} others")


async def _wait_visible(scene: Scene, customer: Customer) -> None:
    """Until every worker knows the endpoint; each fresh connection meets a worker of the kernel's choice."""
    seen = 0
    async with asyncio.timeout(20):
        while seen < 10:
            answer = await ask(scene.world.port, "GET", f"/v1/models/{customer.endpoint_id}", key=customer.keys[0])
            seen = seen + 1 if answer.status == 200 else 0
            if not seen:
                await asyncio.sleep(0.05)


class ThousandSettlements(Fault):
    """18: one hold is settled a thousand times, from two processes at once."""

    number, name, parts = "18", "one hold settled 1,000 times", frozenset({"redis", "postgres"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world, flat = scene.world, scene.load.customer("flat")
        async with world.sql() as conn:
            epochs = [
                await conn.fetchval("SELECT max(number) FROM ledger.epoch WHERE coalesce(shard, $1) = $1", shard)
                for shard in range(world.settings.shards)
            ]
        hold_id = request_id(time.time_ns() // 1_000_000, os.urandom(10))
        known = {"key": flat.key_ids[0], "endpoint": flat.endpoint_id, "card": flat.card.id, "route": "chat"}
        used = known | {"source": "reported", "outcome": "finished", "meters": {"request": 1}}
        counter = await CreditCounter.connect(world.redis.url, shards=len(epochs), epoch=epochs)
        try:
            asked = Admission(hold_id, flat.org_id, "f", Quote(FLAT_NANOS, 0), 0, 60.0, info=json.dumps(known).encode())
            held = await counter.admit(asked)
        except CounterUnavailable as error:
            raise DidNotFire(str(error)) from error
        finally:
            await counter.close()
        if not isinstance(held, Held):
            raise DidNotFire(f"no hold: {held}")
        words = [
            world.redis.url,
            ",".join(map(str, epochs)),
            flat.org_id,
            hold_id,
            str(FLAT_NANOS),
            "500",
            json.dumps(used),
        ]
        said = await asyncio.gather(*(_run_settler(words) for _ in range(2)))
        verdicts = sum((Counter(json.loads(text or "{}")) for text in said), Counter[str]())
        if verdicts["fresh"] or verdicts["repeated"]:
            scene.model.extra[hold_id] = FLAT_NANOS
        if verdicts.total() != 1000:
            raise DidNotFire(f"not everything was answered: {verdicts}")
        if verdicts["fresh"] != 1:
            scene.findings.wrong("twice", f"one hold was settled afresh {verdicts['fresh']} times", str(verdicts))
        self.happened(f"{dict(verdicts)}")


async def _run_settler(words: list[str]) -> bytes:
    command = [sys.executable, "-m", "tests.faults.settlers", *words]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd=ROOT)
    said, _ = await process.communicate()
    return said


class HangUps(Fault):
    """19: clients that leave at the first byte, in the middle, at the last byte."""

    number, name = "19", "clients hang up"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        rich = scene.load.customer("rich")
        wanted = []
        for rudeness in (Rudeness.BEFORE_ANSWER, Rudeness.FIRST_BYTE, Rudeness.MIDDLE, Rudeness.LAST_BYTE):
            for _ in range(4):
                attempt = scene.load.plain(rich, stream=True, tokens=rng.randint(12, 40), itl_ms=rng.choice([1, 10]))
                attempt.rudeness = rudeness
                wanted.append(attempt)
        left = [a for a in await all_at_once(scene, wanted) if a.end is End.LEFT]
        kinds = {a.rudeness for a in left}
        if len(kinds) < 4:
            raise DidNotFire(f"only {sorted(kinds)}")
        self.happened(f"{len(left)} left, at four moments", len(left))


class SilentEngine(Fault):
    """20: the engine dies in mid-answer, or never says what was used."""

    number, name = "20", "backend dies without usage"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        rich = scene.load.customer("rich")
        wanted = []
        for fault in ("close_mid_stream", "reset_mid_stream", "no_usage", "hang_mid_stream"):
            for stream in (True, True, False):
                sim = {"fail": fault, "after_tokens": rng.randint(1, 9)}
                attempt = scene.load.plain(rich, stream=stream, tokens=20, **sim)
                attempt.sim_fault = fault
                wanted.append(attempt)
        answers = await all_at_once(scene, wanted)
        died = [a for a in answers if not a.finished and a.sim_fault != "no_usage" and a.status in (200, 502, 504)]
        if not died:
            raise DidNotFire(f"{Counter(a.status for a in answers)}")
        self.happened(f"{len(died)} answers broke off", len(died))


class NewPrices(Fault):
    """21: the price changes while streams run; each pays the card under which it began."""

    number, name = "21", "price changes in mid-stream"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        rich = scene.load.customer("rich")
        streams = [scene.load.plain(rich, stream=True, tokens=40, itl_ms=60) for _ in range(4)]
        running = asyncio.create_task(all_at_once(scene, streams))
        await asyncio.sleep(rng.uniform(0.6, 1.2))
        rates = {meter: rate + rng.randint(0, rate // 20) for meter, rate in TOKEN_RATES.items()}
        await scene.world.register.price(rich, rates)
        crossed = sum(a.deltas == 0 and a.end is not End.LEFT and bool(a.progress) for a in streams)
        await running
        if not crossed:
            raise DidNotFire("no stream ran through the change")
        self.happened(f"{crossed} streams ran through it", crossed)


class SamePayment(Fault):
    """23: the same top-up five times at once."""

    number, name, parts = "23", "same top-up five times", frozenset({"postgres"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        customer = scene.load.customer(rng.choice(["poor", "quiet"]))
        answered = await scene.world.register.pay(customer, rng.randint(1_000, 400_000), at_once=5)
        if answered < 2:
            raise DidNotFire(f"{answered} were answered")
        self.happened(f"{answered} of 5 answered, one paid")
