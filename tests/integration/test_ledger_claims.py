"""Idempotency keys in the credit counter: one charge for a key, whatever happens between."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from redis.asyncio import Redis

from ledger.counter import Claimed, Held, Recalled, Settled, UnknownHold
from ledger.counter.words import settle_words
from ledger.outbox.settlement_words import decode, encode
from tests.integration.ledger_counters import ORG, admission, end, opened
from tests.services import FreshRedis

NAME = "c" * 36


async def test_a_claim_lives_and_dies_with_its_hold(fresh_redis: FreshRedis) -> None:
    """Taken with the hold, busy while it is open, given back by a void, kept by a settlement with its outcome."""
    async with opened(fresh_redis(durable=False).url, grant=1000) as counter:
        assert await counter.recall(ORG, NAME, "f") is None
        first = replace(admission(), claim=NAME)
        assert isinstance(await counter.admit(first), Held)
        assert await counter.recall(ORG, NAME, "f") == Recalled("running")
        assert await counter.recall(ORG, NAME, "other") == Recalled("mismatch")
        assert await counter.admit(replace(admission(), claim=NAME)) == Claimed("running")
        assert await counter.admit(replace(admission(fingerprint="g"), claim=NAME)) == Claimed("mismatch")
        await counter.void(replace(end(first.hold_id), claim=NAME))
        assert await counter.recall(ORG, NAME, "f") is None

        second = replace(admission(), claim=NAME)
        assert isinstance(await counter.admit(second), Held)
        kept = replace(end(second.hold_id, 70), claim=NAME, outcome="what was answered")
        assert isinstance(await counter.settle(kept), Settled)
        assert await counter.recall(ORG, NAME, "f") == Recalled("done", "what was answered")
        assert await counter.admit(replace(admission(), claim=NAME)) == Claimed("done")
        assert (await counter.account(ORG)).spent_nanos == 70
        assert await counter.recall("org_another", NAME, "f") is None


async def test_of_many_at_once_one_gets_the_hold(fresh_redis: FreshRedis) -> None:
    """Two hundred repeats in the same moment, from two processes' counters: one hold."""
    url = fresh_redis(durable=False).url
    async with opened(url, grant=100_000) as one, opened(url) as other:
        repeats = [replace(admission(), claim=NAME) for _ in range(200)]
        verdicts = await asyncio.gather(*((one, other)[n % 2].admit(a) for n, a in enumerate(repeats)))
        assert sum(isinstance(verdict, Held) for verdict in verdicts) == 1
        assert (await one.account(ORG)).held_nanos == 100


async def test_a_dead_workers_claim_is_free_again(fresh_redis: FreshRedis) -> None:
    """Once the hold was reaped a repeat may run; a settlement that comes late does not touch the new claim."""
    async with opened(fresh_redis(durable=False).url, grant=1000) as counter:
        dead = replace(admission(expires_in_s=0.05), claim=NAME)
        await counter.admit(dead)
        await asyncio.sleep(0.1)
        assert await counter.reap() == 1
        fresh = replace(admission(), claim=NAME)
        assert isinstance(await counter.admit(fresh), Held)
        await counter.settle(replace(end(dead.hold_id, 10), claim=NAME, outcome="late"))
        assert await counter.recall(ORG, NAME, "f") == Recalled("running")


async def test_claims_are_bounded(fresh_redis: FreshRedis) -> None:
    """An organization that sends a new key with every request makes the oldest be forgotten, not Redis be full."""
    redis = fresh_redis(durable=False)
    async with opened(redis.url, grant=10_000_000) as counter:
        names = [f"{number:036d}" for number in range(4096 + 50)]
        for start in range(0, len(names), 200):
            batch = [replace(admission(fixed=1), claim=name) for name in names[start : start + 200]]
            await asyncio.gather(*(counter.admit(one) for one in batch))
        assert await counter.recall(ORG, names[0], "f") is None
        assert await counter.recall(ORG, names[-1], "f") == Recalled("running")


def test_the_journal_keeps_claims() -> None:
    """What is replayed after a crash ends the claim too; records written before there were claims are still read."""
    kept = replace(end("req_1", 5), claim=NAME, outcome="é")
    assert decode(encode(kept)) == kept
    old = b'{"hold":"h","org":"o","amount":1,"refunds":[],"opens":[],"info":"{}"}'
    assert settle_words(decode(old), "settle")[7] == ()


async def test_an_outcome_is_kept_though_its_hold_was_lost(fresh_redis: FreshRedis) -> None:
    """A hold that is lost with an epoch is charged by the books; its client's key still gets the answer, or is free."""
    url = fresh_redis(durable=False).url
    async with opened(url, grant=1000) as counter, Redis.from_url(url) as client:
        for outcome, recalled in (("what was answered", Recalled("done", "what was answered")), (None, None)):
            name = f"{NAME}-{outcome}"
            lost = replace(admission(), claim=name)
            await counter.admit(lost)
            await client.delete(f"pareta:{{0}}:hold:{lost.hold_id}")
            ended = replace(end(lost.hold_id, 70 if outcome else 0), claim=name, outcome=outcome)
            assert (await counter.close_holds([ended])) == [UnknownHold()]
            assert await counter.recall(ORG, name, "f") == recalled
