"""The load: clients that never stop asking, each with its own habits, drawn from one seed."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from ledger.core.meters import Meter
from tests.faults.attempt import Attempt, End, Rudeness
from tests.faults.clients import openai_of, send_openai, send_openai_sync, send_raw
from tests.faults.customers import USD, Customer, Register

TOKEN_RATES = {
    Meter.PROMPT: 150_000_001,
    Meter.CACHED_PROMPT: 75_000_003,
    Meter.COMPLETION: 600_000_007,
    Meter.REQUEST: 1_013,
}
FLAT_NANOS = 40_009
EXACT_REQUESTS = 60
CALM = 0.72
"""How many of the requests are polite and well answered."""

HARMLESS = ["crlf", "space_newlines", "comments", "no_done", "no_final_chunk", "coalesced", "close_after_answer"]
SILENT = ["no_usage", "bad_usage"]
FATAL = [
    *("close_mid_stream", "reset_mid_stream", "error_event", "malformed_chunk", "hang_mid_stream"),
    *("400", "500", "502", "html", "empty", "close_before_head", "reset_before_head"),
]


@dataclass(slots=True)
class Client:
    """One habit: whose key, how, how often."""

    customer: Customer
    key: str
    via: str
    pause_s: tuple[float, float]
    long_share: float = 0.1
    is_calm: bool = False


@dataclass(slots=True)
class Load:
    """All clients. ``attempts`` grows until somebody takes it (:meth:`take`)."""

    port: int
    seed: int
    register: Register
    attempts: list[Attempt] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    clients: list[Client] = field(default_factory=list)
    is_paused: bool = False
    down_s: set[int] = field(default_factory=set)
    """The seconds in which somebody was told 503 or found nobody listening."""
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _number: int = 0
    _busy: int = 0

    async def set_up(self) -> None:
        """The organizations and their clients."""
        add = self.register.add
        rich = await add("rich", rates=TOKEN_RATES, keys_wanted=3, credit_nanos=10_000 * USD)
        flat = await add("flat", rates={Meter.REQUEST: FLAT_NANOS}, keys_wanted=2, credit_nanos=10_000 * USD)
        poor = await add("poor", rates=TOKEN_RATES, keys_wanted=2, credit_nanos=400_000)
        poor_flat = await add(
            "poor flat", rates={Meter.REQUEST: FLAT_NANOS}, keys_wanted=1, credit_nanos=5 * FLAT_NANOS
        )
        exact = await add(
            "exact", rates={Meter.REQUEST: FLAT_NANOS}, keys_wanted=1, credit_nanos=EXACT_REQUESTS * FLAT_NANOS
        )
        quiet = await add("quiet", rates=TOKEN_RATES, keys_wanted=1, credit_nanos=3 * USD)
        quick, slow = (0.02, 0.25), (0.1, 1.0)
        for number in range(8):
            self._add(rich, "raw", quick if number < 5 else slow)
        for _ in range(4):
            self._add(flat, "raw", quick)
        for _ in range(3):
            self._add(poor, "raw", slow)
        self._add(poor_flat, "raw", slow)
        self._add(exact, "raw", (0.3, 1.5))
        self._add(quiet, "raw", (20.0, 45.0), is_calm=True)
        self._add(rich, "openai", slow)
        self._add(flat, "openai", slow)
        self._add(rich, "openai sync", slow)

    def _add(self, customer: Customer, via: str, pause_s: tuple[float, float], *, is_calm: bool = False) -> None:
        key = customer.keys[len(self.clients) % len(customer.keys)]
        self.clients.append(Client(customer, key, via, pause_s, is_calm=is_calm))

    def customer(self, name: str) -> Customer:
        return next(customer for customer in self.register.customers if customer.name == name)

    # -- running ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        for number, client in enumerate(self.clients):
            rng = random.Random(f"{self.seed} client {number}")
            self._tasks.append(asyncio.create_task(self._run(client, rng)))
        for name, amount_nanos, every_s in (("poor", 300_000, 4.0), ("poor flat", 7 * FLAT_NANOS, 9.0)):
            self._tasks.append(asyncio.create_task(self._top_up(self.customer(name), amount_nanos, every_s)))

    async def stop(self) -> None:
        """Let everything end that runs, and ask no more."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    async def pause(self) -> None:
        """Stop asking; returns when no request is open."""
        self.is_paused = True
        while self._busy:
            await asyncio.sleep(0.05)

    def resume(self) -> None:
        self.is_paused = False

    def take(self) -> list[Attempt]:
        """The attempts that ended since the last call."""
        taken, self.attempts = self.attempts, []
        return taken

    async def _run(self, client: Client, rng: random.Random) -> None:
        talker = openai_of(self.port, client.key) if client.via == "openai" else None
        try:
            while not self._stopping:
                if not self.is_paused:
                    self._busy += 1
                    try:
                        await self._work(client, rng, talker)
                    finally:
                        self._busy -= 1
                await self._pause(rng.uniform(*client.pause_s))
        finally:
            if talker is not None:
                await talker.close()

    async def _pause(self, seconds: float) -> None:
        until_s = time.monotonic() + seconds
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, 0.5))

    async def _work(self, client: Client, rng: random.Random, talker: AsyncOpenAI | None) -> None:
        attempt = self.draw(client, rng)
        if client.via == "openai sync":
            await self.note(attempt, asyncio.to_thread(send_openai_sync, self.port, attempt))
        elif talker is not None:
            await self.note(attempt, send_openai(talker, attempt))
        elif attempt.idempotency_key is None:
            dawdle_s = 0.05 if attempt.stream and rng.random() < 0.05 else 0.0
            await self.note(attempt, send_raw(self.port, attempt, dawdle_s=dawdle_s))
        else:
            await self._insist(attempt, rng)
        if attempt.end is End.REFUSED or attempt.status == 503:
            await self._pause(0.2)

    async def _insist(self, first: Attempt, rng: random.Random) -> None:
        """The same work under one key until it was answered, and then perhaps once more to be sure."""
        attempt = first
        for _ in range(4 if first.sim_fault in FATAL else 12):
            sending = self.note(attempt, send_raw(self.port, attempt))
            if rng.random() < 0.25:  # impatient: the same at the same time
                await asyncio.gather(sending, self.note(twin := self._again(first), send_raw(self.port, twin)))
            else:
                await sending
            if (attempt.finished and rng.random() < 0.5) or attempt.status in (400, 402, 422) or self._stopping:
                return
            await self._pause(rng.uniform(0.05, 0.7))
            attempt = self._again(first)

    def _again(self, first: Attempt) -> Attempt:
        again = self._attempt(first.customer, first.key, first.route, first.stream, first.body, first.tag)
        again.idempotency_key, again.sim_fault, again.cached = first.idempotency_key, first.sim_fault, first.cached
        return again

    async def note(self, attempt: Attempt, sending: Awaitable[None]) -> Attempt:
        """Send and keep it."""
        try:
            await sending
        finally:
            attempt.ended_s = attempt.ended_s or time.time()
            self.attempts.append(attempt)
            self.counts["attempts"] += 1
            self.counts[f"{attempt.status or attempt.end}"] += 1
            self.counts[attempt.rudeness] += attempt.end is End.LEFT
            if attempt.status == 503 or attempt.end is End.REFUSED:
                self.down_s.add(int(attempt.ended_s))
        return attempt

    async def _top_up(self, customer: Customer, amount_nanos: int, every_s: float) -> None:
        while not self._stopping:
            await self._pause(every_s)
            if not self.is_paused and not self._stopping:
                self._busy += 1
                try:
                    await self.register.pay(customer, amount_nanos)
                finally:
                    self._busy -= 1

    # -- drawing ---------------------------------------------------------------------------------------------

    def _attempt(
        self, customer: Customer, key: str, route: str, stream: bool, body: dict[str, Any], tag: str
    ) -> Attempt:
        self._number += 1
        size = len(json.dumps(body).encode())
        return Attempt(tag, f"try-{self.seed}-{self._number}", customer, key, route, stream, body, size)

    def plain(self, customer: Customer, *, stream: bool = False, tokens: int = 5, **sim: Any) -> Attempt:
        """A polite request that a fault or a check wants to make."""
        tag = f"work-{self.seed}-{self._number + 1}"
        body = {
            "model": customer.endpoint_id,
            "messages": [{"role": "user", "content": "word " * 7}],
            "stream": stream,
            "max_tokens": tokens + 5,
            "tag": tag,
            "sim": {"tokens": tokens, **sim},
        }
        return self._attempt(customer, customer.keys[0], "chat", stream, body, tag)

    def draw(self, client: Client, rng: random.Random) -> Attempt:
        """The next request of a client."""
        if client.is_calm:
            return self.plain(client.customer, stream=rng.random() < 0.5, tokens=rng.randint(2, 12))
        route = "chat" if client.via != "raw" else rng.choices(["chat", "completion", "embedding"], [80, 12, 8])[0]
        stream = route != "embedding" and rng.random() < 0.6
        tag = f"work-{self.seed}-{self._number + 1}"
        words = "word " * rng.randint(1, 40)
        body: dict[str, Any] = {"model": client.customer.endpoint_id, "tag": tag}
        if route == "chat":
            body |= {"messages": [{"role": "user", "content": words}], "stream": stream}
        elif route == "completion":
            body |= {"prompt": words, "stream": stream}
        else:
            body |= {"input": [words, "another"]}
        if stream and rng.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
        is_long = stream and rng.random() < client.long_share
        tokens = rng.randint(60, 150) if is_long else rng.randint(1, 25)
        if route != "embedding":
            body["max_tokens"] = max(1, tokens + rng.randint(-3, 20))
        cached = rng.choice([0, 0, 3]) if route != "embedding" else 0
        sim: dict[str, Any] = {
            "tokens": tokens,
            "itl_ms": 40 if is_long else rng.choice([0, 1, 8]),
            "cached_tokens": cached,
        }
        attempt = self._attempt(client.customer, client.key, route, stream, body, tag)
        attempt.cached = cached
        if route != "embedding":
            self._spoil(attempt, client, sim, rng)
            body["sim"] = sim
        elif rng.random() < 0.1:
            attempt.rudeness = Rudeness.BEFORE_ANSWER
        attempt.body_bytes = len(json.dumps(body).encode())
        if client.via == "raw" and attempt.rudeness is Rudeness.POLITE and rng.random() < 0.12:
            attempt.idempotency_key = f"key-{tag}"
        return attempt

    @staticmethod
    def _spoil(attempt: Attempt, client: Client, sim: dict[str, Any], rng: random.Random) -> None:
        dice = rng.random()
        if dice < CALM:
            return
        if dice < CALM + 0.16 and client.via == "raw":
            if attempt.stream:
                choices = [Rudeness.FIRST_BYTE, Rudeness.MIDDLE, Rudeness.LAST_BYTE, Rudeness.BEFORE_ANSWER]
                attempt.rudeness = rng.choices(choices, [1, 3, 2, 1])[0]
            else:
                attempt.rudeness = Rudeness.BEFORE_ANSWER
            return
        attempt.sim_fault = rng.choice(rng.choice([HARMLESS, SILENT, FATAL]))
        sim |= {"fail": attempt.sim_fault, "after_tokens": rng.randint(0, 4)}
