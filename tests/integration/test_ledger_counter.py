"""Promises of the credit counter, kept by a real Redis. Faults of Redis itself are in test_ledger_counter_faults."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from redis.asyncio import Redis

from ledger.counter import (
    AccountState,
    Beat,
    CounterUnavailable,
    CreditCounter,
    Extended,
    Held,
    HoldConflict,
    LimitState,
    OpenLimit,
    OutOfCredit,
    RateLimit,
    RateLimited,
    Settled,
    UnknownHold,
    Voided,
)
from tests.integration.ledger_counters import ORG, admission, end, opened


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(redis_url, decode_responses=True)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
async def counter(redis_url: str, raw: Redis) -> AsyncIterator[CreditCounter]:
    async with opened(redis_url, grant=1000) as made:
        yield made


async def account(counter: CreditCounter) -> tuple[int, int, int]:
    """Available, held, spent; the identity is checked on the way."""
    state = await counter.account(ORG)
    assert state.granted_nanos == sum(
        (state.available_nanos, state.held_nanos, state.spent_nanos, state.returned_nanos)
    )
    assert min(state.available_nanos, state.held_nanos) >= 0
    return state.available_nanos, state.held_nanos, state.spent_nanos


# Credit


async def test_a_hold_reserves_and_a_settlement_charges(counter: CreditCounter) -> None:
    """What a hold reserved beyond the charge is free again."""
    assert await counter.admit(admission("h", fixed=400)) == Held(400, 0, ())
    assert await account(counter) == (600, 400, 0)
    assert await counter.settle(end("h", 150)) == Settled(150, 0, "fresh")
    assert await account(counter) == (850, 0, 150)


async def test_a_settlement_above_its_hold_takes_what_is_there(counter: CreditCounter) -> None:
    """A charge above the hold is taken from what is available; the rest is a recorded shortfall, never a debt."""
    await counter.admit(admission("h", fixed=400))
    await counter.admit(admission("i", fixed=500))
    assert await counter.settle(end("h", 700)) == Settled(500, 200, "fresh")
    assert await account(counter) == (0, 500, 500)
    assert (await counter.read_events(0))[-1].short_nanos == 200


async def test_the_same_hold_again_is_the_same_answer(counter: CreditCounter) -> None:
    """A repeated admission gets the recorded answer and reserves nothing more; another with its id conflicts."""
    first = await counter.admit(admission("h", fixed=400))
    assert await counter.admit(admission("h", fixed=400)) == first
    assert await counter.admit(admission("h", fixed=1, fingerprint="other")) == HoldConflict()
    assert await account(counter) == (600, 400, 0)
    await counter.settle(end("h", 1))
    assert await counter.admit(admission("h", fixed=400)) == HoldConflict()


async def test_tokens_are_clamped_to_what_can_be_paid(counter: CreditCounter) -> None:
    """A hold for more tokens than the credit covers is granted exactly as many as it covers."""
    assert await counter.admit(admission("h", fixed=100, rate=3_000_000, tokens=5000)) == Held(1000, 300, ())
    assert await counter.admit(admission("i", fixed=0, rate=1, tokens=1)) == OutOfCredit()


async def test_without_credit_for_one_token_nothing_is_written(counter: CreditCounter, raw: Redis) -> None:
    """A refusal for want of credit leaves no trace, of limits either."""
    before = {key: await raw.dump(key) for key in await raw.keys()}
    refused = await counter.admit(
        admission("h", fixed=1000, rate=1, tokens=1, rates=(RateLimit("r", 60, 1),), opens=(OpenLimit("o", 1),))
    )
    assert refused == OutOfCredit((LimitState("r", 60, 60, 0.0), LimitState("o", 1, 1, 0.0)), available_nanos=1000)
    assert {key: await raw.dump(key) for key in await raw.keys()} == before


async def test_an_organization_without_an_account_has_no_credit(counter: CreditCounter) -> None:
    """Who never paid in gets 402's verdict, but what costs nothing is held all the same."""
    assert await counter.admit(admission("h", org="org_nobody", fixed=1)) == OutOfCredit()
    assert await counter.admit(admission("i", org="org_nobody", fixed=0, tokens=7)) == Held(0, 7, ())
    assert await counter.settle(end("i", 0, org="org_nobody")) == Settled(0, 0, "fresh")


async def test_two_hundred_at_once_with_credit_for_ten(redis_url: str, raw: Redis) -> None:
    """Two hundred concurrent requests with credit for exactly ten: ten are held, the others are out of credit."""
    async with opened(redis_url, grant=1000) as one, opened(redis_url) as two:
        answers = await asyncio.gather(
            *((one, two)[number % 2].admit(admission(f"h{number}", fixed=100)) for number in range(200))
        )
        assert Counter(type(answer) for answer in answers) == {Held: 10, OutOfCredit: 190}
        assert await account(one) == (0, 1000, 0)


async def test_one_hold_settled_a_thousand_times(redis_url: str, raw: Redis) -> None:
    """The same hold settled a thousand times from two clients, voids in between, is charged once and told once."""
    async with opened(redis_url, grant=1000) as one, opened(redis_url) as two:
        await one.admit(admission("h", fixed=100))
        answers = await asyncio.gather(
            *(
                (one, two)[number % 2].void(end("h"))
                if number % 10 == 5
                else (one, two)[number % 2].settle(end("h", 60))
                for number in range(1000)
            )
        )
        assert Counter(answers) == {Settled(60, 0, "fresh"): 1, Settled(60, 0, "repeated"): 999}
        assert await account(one) == (940, 0, 60)
        assert [event.kind for event in await one.read_events(0)] == ["grant", "settle"]


@pytest.mark.parametrize("amount", [2**50 - 1, 2**50, 2**50 + 1, 10**14, 10**15 + 7, 2**52])
async def test_large_amounts_are_exact(counter: CreditCounter, raw: Redis, amount: int) -> None:
    """Amounts that a float prints as 1e+15 are held, charged and told to the nano."""
    org = "org_rich"
    await counter.grant(org, 1, amount)
    assert await counter.admit(admission("h", org=org, fixed=amount - 1)) == Held(amount - 1, 0, ())
    assert await raw.hget("pareta:{0}:hold:h", "held") == str(amount - 1)
    await counter.heartbeat([Beat("h", org, amount - 3, b"{}", 30.0)])
    assert await counter.settle(end("h", amount - 2, org=org)) == Settled(amount - 2, 0, "fresh")
    assert await counter.account(org) == AccountState(2, 0, amount - 2, 0, amount, 1)
    assert [event.amount_nanos for event in await counter.read_events(0)][1:] == [amount, amount - 2]


async def test_a_lifetime_beyond_what_a_float_counts_is_exact(counter: CreditCounter) -> None:
    """Over its life an account may be granted and spend more than 2^53 nanos, to the nano."""
    org = "org_old"
    for number in range(1, 6):
        await counter.grant(org, number, 2**52)
        await counter.admit(admission(f"h{number}", org=org, fixed=2**52 - 1))
        await counter.settle(end(f"h{number}", 2**52 - 1, org=org))
        await counter.admit(admission(f"i{number}", org=org, fixed=1))
        await counter.settle(end(f"i{number}", 1, org=org))
    assert await counter.account(org) == AccountState(0, 0, 5 * 2**52, 0, 5 * 2**52, 5)


async def test_a_price_beyond_all_credit_is_only_out_of_credit(counter: CreditCounter) -> None:
    """Numbers far above what a script can count are refused as what they are: more than anyone has."""
    for huge in (2**53, 2**64, 10**30):
        refused = OutOfCredit(available_nanos=1000)
        assert await counter.admit(admission(fixed=huge)) == refused
        assert await counter.admit(admission(fixed=0, rate=huge * 10**6, tokens=1)) == refused
    assert await counter.admit(admission("h", fixed=0, rate=10**9, tokens=10**30)) == Held(1000, 1, ())
    assert await counter.settle(end("h", 10**30)) == Settled(1000, 2**52 - 1000, "fresh")


@pytest.mark.parametrize(
    "wrong",
    [
        admission(fixed=-1),
        admission(tokens=-1),
        admission(expires_in_s=0),
        admission(org=""),
        admission(rates=(RateLimit("r", 0, 1),)),
        admission(rates=(RateLimit("r", 1, -1),)),
        admission(rates=(RateLimit("", 1, 1),)),
        admission(info=b"x" * 20_000),
        admission(info=b"\xff"),
        admission(fingerprint="\ud800"),
    ],
    ids=str,
)
async def test_what_makes_no_sense_is_refused_alone(counter: CreditCounter, wrong: object) -> None:
    """A wrong argument is a ValueError for its caller; the others of the same tick get their answers."""
    good, bad, other = await asyncio.gather(
        counter.admit(admission(fixed=1)),
        counter.admit(wrong),  # type: ignore[arg-type]
        counter.admit(admission(fixed=2)),
        return_exceptions=True,
    )
    assert (good, other) == (Held(1, 0, ()), Held(2, 0, ()))
    assert isinstance(bad, ValueError)


# Void, reap, heartbeat, extend


async def test_a_void_releases_all(counter: CreditCounter) -> None:
    """A voided hold costs nothing, is told as a void, and can't be charged afterwards."""
    await counter.admit(admission("h", fixed=400))
    assert await counter.void(end("h")) == Voided("fresh")
    assert await counter.void(end("h")) == Voided("repeated")
    assert await counter.settle(end("h", 9)) == Settled(0, 0, "repeated")
    assert await account(counter) == (1000, 0, 0)
    event = (await counter.read_events(0))[-1]
    assert (event.kind, event.amount_nanos, event.held_nanos) == ("void", 0, 400)


async def test_a_void_before_its_hold_keeps_it_from_being_taken(counter: CreditCounter, raw: Redis) -> None:
    """The void of an unknown hold leaves a tombstone that passes away by itself."""
    assert await counter.void(end("h")) == UnknownHold()
    assert await counter.admit(admission("h")) == HoldConflict()
    assert await raw.pttl("pareta:{0}:hold:h") > 86_000_000
    assert await account(counter) == (1000, 0, 0)


async def test_an_unknown_hold_is_not_charged(counter: CreditCounter) -> None:
    """A settlement without its hold, or in another organization's name, changes nothing."""
    assert await counter.settle(end("h", 5)) == UnknownHold()
    await counter.admit(admission("h", fixed=10))
    assert await counter.settle(end("h", 5, org="org_other")) == UnknownHold()
    assert await counter.void(end("h", org="org_other")) == UnknownHold()
    assert await account(counter) == (990, 10, 0)


async def test_an_expired_hold_is_charged_what_was_delivered(counter: CreditCounter) -> None:
    """A worker that dies leaves holds that are reaped at their last heartbeat, with its usage in the event."""
    await counter.admit(admission("h", fixed=400, expires_in_s=0.05))
    await counter.admit(admission("i", fixed=400, expires_in_s=30.0))
    assert await counter.heartbeat([Beat("h", ORG, 123, b'{"completion":7}', 0.05)]) == frozenset()
    assert await counter.reap() == 0
    await asyncio.sleep(0.08)
    assert await counter.reap() == 1
    assert await counter.reap() == 0
    assert await account(counter) == (477, 400, 123)
    event = (await counter.read_events(0))[-1]
    assert (event.kind, event.hold, event.amount_nanos, event.info, event.beat) == (
        "reap",
        "h",
        123,
        b'{"key":"k"}',
        b'{"completion":7}',
    )
    assert await counter.open_holds() == 1


@pytest.mark.parametrize(
    ("late", "difference", "charged", "short"),
    [(200, 77, 200, 0), (50, -73, 50, 0), (123, 0, 123, 0), (5000, 877, 1000, 4000)],
)
async def test_a_settlement_after_the_reaper_is_one_correction(
    counter: CreditCounter, late: int, difference: int, charged: int, short: int
) -> None:
    """A worker that was only slow corrects what was reaped, up or down, once, and never below zero."""
    await counter.admit(admission("h", fixed=400, expires_in_s=0.01))
    await counter.heartbeat([Beat("h", ORG, 123, b"{}", 0.01)])
    await asyncio.sleep(0.03)
    await counter.reap()
    assert await counter.settle(end("h", late)) == Settled(charged, short, "late")
    assert await counter.settle(end("h", late)) == Settled(charged, short, "repeated")
    assert await account(counter) == (1000 - charged, 0, charged)
    event = (await counter.read_events(0))[-1]
    assert (event.kind, event.amount_nanos, event.short_nanos) == ("late", difference, short)


async def test_a_void_after_the_reaper_gives_back(counter: CreditCounter) -> None:
    """What was reaped for a request that failed after all is given back."""
    await counter.admit(admission("h", fixed=400, expires_in_s=0.01))
    await counter.heartbeat([Beat("h", ORG, 123, b"{}", 0.01)])
    await asyncio.sleep(0.03)
    await counter.reap()
    assert await counter.void(end("h")) == Voided("late")
    assert await account(counter) == (1000, 0, 0)
    assert (await counter.read_events(0))[-1].amount_nanos == -123


async def test_heartbeats_keep_a_hold_alive_and_name_the_lost(counter: CreditCounter) -> None:
    """Renewed holds are not reaped; of many heartbeats exactly those whose holds are over come back."""
    holds = [f"h{number}" for number in range(350)]
    await asyncio.gather(*(counter.admit(admission(hold, fixed=1, expires_in_s=0.5)) for hold in holds))
    await counter.settle(end("h100", 1))
    lost = await counter.heartbeat([Beat(hold, ORG, 0, b"{}", 30.0) for hold in (*holds, "never")])
    assert lost == {"h100", "never"}
    await asyncio.sleep(0.6)
    assert await counter.reap(1000) == 0


async def test_a_heartbeat_never_lowers_what_was_delivered(counter: CreditCounter) -> None:
    """Heartbeats that arrive out of order can't lower the charge of a reap."""
    await counter.admit(admission("h", fixed=400))
    await counter.heartbeat([Beat("h", ORG, 100, b"{}", 30.0)])
    await counter.heartbeat([Beat("h", ORG, 50, b"{}", 0.001)])
    await asyncio.sleep(0.02)
    await counter.reap()
    assert (await account(counter))[2] == 100


async def test_many_expired_holds_are_reaped_in_portions(counter: CreditCounter) -> None:
    """A mass of dead holds is worked off a portion at a time, so that Redis is never blocked for long."""
    await asyncio.gather(*(counter.admit(admission(fixed=1, expires_in_s=0.001)) for _ in range(250)))
    await asyncio.sleep(0.02)
    assert [await counter.reap(100) for _ in range(4)] == [100, 100, 50, 0]
    assert await account(counter) == (1000, 0, 0)


async def test_one_broken_hold_does_not_bar_the_reaper(counter: CreditCounter, raw: Redis) -> None:
    """A hold that can't be reaped is put off and the others are reaped."""
    for hold in ("a", "b", "c"):
        await counter.admit(admission(hold, fixed=1, expires_in_s=0.001))
        await asyncio.sleep(0.002)
    await raw.hset("pareta:{0}:hold:a", "held", "999999")  # more than the account holds
    await asyncio.sleep(0.02)
    assert [await counter.reap(1) for _ in range(4)] == [0, 1, 1, 0]
    assert await counter.open_holds() == 1


async def test_an_extension_reserves_more_once(counter: CreditCounter) -> None:
    """A hold is raised to a total, so a repeat is harmless, and never beyond the credit."""
    await counter.admit(admission("h", fixed=400))
    assert await counter.extend("h", ORG, total_nanos=700) == Extended(700)
    assert await counter.extend("h", ORG, total_nanos=700) == Extended(700)
    assert await counter.extend("h", ORG, total_nanos=100) == Extended(700)
    assert await counter.extend("h", ORG, total_nanos=1001) == OutOfCredit(available_nanos=300, held_nanos=700)
    assert await account(counter) == (300, 700, 0)
    await counter.settle(end("h", 700))
    assert await counter.extend("h", ORG, total_nanos=800) == UnknownHold()


# Grants


async def test_grants_are_applied_once_and_in_order(counter: CreditCounter) -> None:
    """A grant sent again is not applied again, and none is applied before the one before it."""
    assert await counter.grant(ORG, 1, 1000) == "repeated"
    assert await counter.grant(ORG, 3, 7) == "gap"
    assert await counter.grant(ORG, 2, 5) == "applied"
    assert await counter.grant(ORG, 3, 7) == "applied"
    assert await counter.grant(ORG, 2, 5) == "repeated"
    assert await account(counter) == (1012, 0, 0)
    assert [(e.kind, e.grant_seq, e.amount_nanos) for e in await counter.read_events(0)] == [
        ("grant", 1, 1000),
        ("grant", 2, 5),
        ("grant", 3, 7),
    ]


async def test_a_grant_beyond_exact_numbers_is_refused_whole(counter: CreditCounter) -> None:
    """An account never holds more than the script can count."""
    with pytest.raises(CounterUnavailable, match="more than this script can count"):
        await counter.grant(ORG, 2, 2**52)
    for amount in (0, -1, 2**52 + 1):
        with pytest.raises(ValueError, match="A grant has"):
            await counter.grant(ORG, 2, amount)
    assert await account(counter) == (1000, 0, 0)


# Limits


async def test_a_rate_limit_refuses_and_refills(counter: CreditCounter) -> None:
    """A bucket of sixty a minute gives one a second, says how long to wait, and refuses without a trace."""
    limit = RateLimit("r", 60, 1)
    taken = [await counter.admit(admission(fixed=0, rates=(limit,))) for _ in range(60)]
    assert all(isinstance(answer, Held) for answer in taken)
    assert isinstance(taken[-1], Held)
    assert taken[-1].limits[0].remaining <= 1
    refused = await counter.admit(admission("h", fixed=0, rates=(limit,)))
    if isinstance(refused, Held):  # a slow machine: a second passed, and one was refilled
        refused = await counter.admit(admission("h", fixed=0, rates=(limit,)))
    assert isinstance(refused, RateLimited)
    assert (refused.name, refused.too_large) == ("r", False)
    assert 0 < refused.retry_after_s <= 1
    assert 58 < refused.limits[0].reset_s <= 60
    await asyncio.sleep(refused.retry_after_s + 0.005)
    assert isinstance(await counter.admit(admission("h", fixed=0, rates=(limit,))), Held)


async def test_a_limit_is_checked_before_credit(counter: CreditCounter) -> None:
    """Who is over a limit and out of credit is told of the limit."""
    both = admission(fixed=5000, rates=(RateLimit("r", 1, 2),))
    answer = await counter.admit(both)
    assert isinstance(answer, RateLimited)
    assert answer.too_large


async def test_the_longest_wait_is_named(counter: CreditCounter) -> None:
    """Of several limits that are used up, the one with the longest wait is named."""
    fast, slow = RateLimit("fast", 6000, 6000), RateLimit("slow", 60, 60)
    await counter.admit(admission(fixed=0, rates=(fast, slow)))
    answer = await counter.admit(
        admission(fixed=0, rates=(RateLimit("fast", 6000, 500), RateLimit("slow", 60, 30)), opens=(OpenLimit("o", 0),))
    )
    assert isinstance(answer, RateLimited)
    assert answer.name == "slow"
    assert [limit.name for limit in answer.limits] == ["fast", "slow", "o"]


async def test_nothing_is_taken_from_any_limit_by_a_refusal(counter: CreditCounter, raw: Redis) -> None:
    """A request that fails one limit takes nothing from the others."""
    answer = await counter.admit(admission(fixed=0, rates=(RateLimit("a", 100, 10), RateLimit("b", 5, 6))))
    assert isinstance(answer, RateLimited)
    assert answer.limits[0].remaining == 100
    assert await raw.exists("pareta:{0}:rate:a") == 0


async def test_unused_tokens_are_given_back_once(counter: CreditCounter) -> None:
    """What was reserved of a token limit and not used is free again after the settlement, once, up to the limit."""
    limit = RateLimit("tokens", 600, 500)
    await counter.admit(admission("h", fixed=0, rates=(limit,)))
    assert isinstance(await counter.admit(admission(fixed=0, rates=(limit,))), RateLimited)
    for _ in range(3):
        await counter.settle(end("h", 0, refunds=(("tokens", 450), ("unheard-of", 5))))
    answer = await counter.admit(admission(fixed=0, rates=(limit,)))
    assert isinstance(answer, Held)
    assert answer.limits[0].remaining < 100
    assert isinstance(await counter.admit(admission(fixed=0, rates=(limit,))), RateLimited)


async def test_rate_limits_count_exactly_at_any_size(counter: CreditCounter) -> None:
    """The largest limit and one far beyond it are counted without a rounding."""
    for name, per_minute, cost in (("a", 2**37, 2**37 - 1), ("b", 2**62, 2**37)):
        answer = await counter.admit(admission(fixed=0, rates=(RateLimit(name, per_minute, cost),)))
        assert isinstance(answer, Held)
    answer = await counter.admit(admission(fixed=0, rates=(RateLimit("c", 2**37, 2**40),)))
    assert isinstance(answer, RateLimited)
    assert answer.too_large


async def test_open_requests_are_limited(counter: CreditCounter) -> None:
    """At most so many holds are open; the end of one, however it ends, frees its place."""
    limit = (OpenLimit("o", 2),)
    assert isinstance(await counter.admit(admission("a", opens=limit)), Held)
    assert isinstance(await counter.admit(admission("b", opens=limit)), Held)
    assert isinstance(await counter.admit(admission("c", opens=limit)), RateLimited)
    await counter.settle(end("a", 1))
    assert isinstance(await counter.admit(admission("c", opens=limit)), Held)
    await counter.void(end("b"))
    assert isinstance(await counter.admit(admission("d", opens=limit)), Held)
    assert isinstance(await counter.admit(admission("e", opens=limit)), RateLimited)


async def test_places_of_dead_workers_free_themselves(counter: CreditCounter) -> None:
    """An open place is free when its hold expires, even before the reaper comes; a heartbeat keeps it."""
    limit = (OpenLimit("o", 2),)
    await counter.admit(admission("a", opens=limit, expires_in_s=0.02))
    await counter.admit(admission("b", opens=limit, expires_in_s=0.02))
    await counter.heartbeat([Beat("b", ORG, 0, b"{}", 30.0)])
    await asyncio.sleep(0.04)
    assert isinstance(await counter.admit(admission("c", opens=limit)), Held)
    assert isinstance(await counter.admit(admission("d", opens=limit)), RateLimited)


# Shards, the stream, the fence


async def test_organizations_spread_over_shards(redis_url: str, raw: Redis) -> None:
    """Each organization lives in one shard; every shard numbers its own events without a hole."""
    async with opened(redis_url, shards=4) as counter:
        orgs = [f"org_{number}" for number in range(40)]
        await asyncio.gather(*(counter.grant(org, 1, 100) for org in orgs))
        await asyncio.gather(*(counter.admit(admission(f"h-{org}", org=org, fixed=9)) for org in orgs))
        assert await counter.open_holds() == 40
        assert await counter.heartbeat([Beat(f"h-{org}", org, 1, b"{}", 9.0) for org in orgs]) == frozenset()
        await asyncio.gather(*(counter.settle(end(f"h-{org}", 5, org=org)) for org in orgs))
        found: list[str] = []
        for shard in range(4):
            events = await counter.read_events(shard)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert await counter.meta(shard) is not None
            found += [event.org for event in events if event.kind == "settle"]
            assert set(await counter.accounts(shard)) == {event.org for event in events}
        assert sorted(found) == sorted(orgs)


async def test_events_are_read_from_where_one_stopped_and_trimmed(counter: CreditCounter) -> None:
    """A reader gets each event once in order, waits for new ones, and what is trimmed is gone."""
    for number in range(2, 12):
        await counter.grant(ORG, number, 1)
    first = await counter.read_events(0, count=4)
    rest = await counter.read_events(0, first[-1].id, count=100)
    assert [event.seq for event in first + rest] == list(range(1, 12))
    waiting = asyncio.create_task(counter.read_events(0, rest[-1].id, block_ms=5000))
    await asyncio.sleep(0.02)
    await counter.grant(ORG, 12, 1)
    assert [event.seq for event in await asyncio.wait_for(waiting, 2)] == [12]
    assert await counter.read_events(0, "1-12", block_ms=10) == []
    assert await counter.trim(0, "1-12") == 11
    assert [event.seq for event in await counter.read_events(0)] == [12]
    await counter.trim(0, "1-13")
    await counter.grant(ORG, 13, 1)
    assert [event.seq for event in await counter.read_events(0)] == [13]


async def test_another_epoch_is_fenced(redis_url: str, counter: CreditCounter) -> None:
    """A client of another epoch, older or newer, moves no money and is told so."""
    for epoch in (2, 3):
        async with opened(redis_url, epoch=epoch, timeout_s=0.2, begin=False) as other:
            for work in (
                other.admit(admission()),
                other.settle(end("h", 1)),
                other.void(end("h")),
                other.grant(ORG, 2, 1),
                other.reap(),
                other.heartbeat([Beat("h", ORG, 1, b"{}", 1.0)]),
                other.ping(),
            ):
                with pytest.raises(CounterUnavailable, match="epoch") as caught:
                    await work
                assert caught.value.reason == "fenced"
    await counter.ping()
    assert await account(counter) == (1000, 0, 0)


async def test_a_redis_that_lacks_a_seen_event_is_fenced(redis_url: str, counter: CreditCounter, raw: Redis) -> None:
    """Whoever has seen an event is not served by a Redis that does not have it; one that has not seen it is."""
    await counter.admit(admission("h", fixed=10))
    await counter.settle(end("h", 5))
    await raw.hset("pareta:{0}:meta", "seq", "1")
    with pytest.raises(CounterUnavailable, match="event 1 of epoch 1, the caller has seen 2") as caught:
        await counter.admit(admission())
    assert caught.value.reason == "fenced"
    assert await account(counter) == (995, 0, 5)
    async with opened(redis_url, timeout_s=0.2) as stranger:
        assert isinstance(await stranger.admit(admission("i", fixed=1)), Held)


async def test_short_says_what_there_is(counter: CreditCounter) -> None:
    """Without leave to clamp, an admission that is not covered whole takes nothing and says what there is."""
    whole = replace(admission("h", fixed=0, rate=1_000_000, tokens=1001), clamp=False)
    assert await counter.admit(whole) == OutOfCredit(available_nanos=1000, returned_nanos=0)
    assert await counter.give_back(ORG, 1, keep_nanos=400) == 600
    assert await counter.admit(whole) == OutOfCredit(available_nanos=400, returned_nanos=600)
    assert isinstance(await counter.admit(replace(whole, clamp=True)), Held)


async def test_a_grant_of_another_epoch_is_stale(counter: CreditCounter) -> None:
    """A grant made for another epoch is never applied, whatever its number: its credit is frozen by then."""
    assert await counter.grant(ORG, 2, 5, epoch=7) == "stale"
    assert await counter.grant(ORG, 2, 5, epoch=1) == "applied"


async def test_a_wiped_redis_is_fenced(counter: CreditCounter, raw: Redis) -> None:
    """After FLUSHALL nothing is served, neither for free nor with a wrong 402."""
    await raw.flushall()
    with pytest.raises(CounterUnavailable) as caught:
        await counter.admit(admission())
    assert caught.value.reason == "fenced"
    assert await counter.is_blank()


async def test_an_event_that_was_numbered_before_is_refused(counter: CreditCounter, raw: Redis) -> None:
    """Should the number of events ever fall behind the stream, nothing is written rather than a number used twice."""
    await counter.admit(admission("h", fixed=10))
    await raw.hset("pareta:{0}:meta", "seq", "0")
    with pytest.raises(CounterUnavailable):
        await counter.settle(end("h", 5))
    assert await account(counter) == (990, 10, 0)
    await raw.hset("pareta:{0}:meta", "seq", "1")
    assert await counter.settle(end("h", 5)) == Settled(5, 0, "fresh")


async def test_one_failing_operation_leaves_the_others_their_answers(counter: CreditCounter, raw: Redis) -> None:
    """An operation on broken data fails alone, in the very call that serves the others."""
    await counter.admit(admission("h", fixed=10))
    await raw.set("pareta:{0}:acct:org_broken", "not a hash")
    calls = counter.counts.calls
    good, bad, other = await asyncio.gather(
        counter.settle(end("h", 4)),
        counter.admit(admission(org="org_broken")),
        counter.admit(admission(fixed=1)),
        return_exceptions=True,
    )
    assert counter.counts.calls == calls + 1
    assert (good, other) == (Settled(4, 0, "fresh"), Held(1, 0, ()))
    assert isinstance(bad, CounterUnavailable)


# Everything at once


async def test_a_random_crowd_keeps_every_balance(redis_url: str, raw: Redis) -> None:
    """Two clients doing everything at random, concurrently: each account is exact and each event is accounted for."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    orgs = [f"org_{number}" for number in range(5)]
    async with opened(redis_url) as one, opened(redis_url) as two:
        for org in orgs:
            await one.grant(org, 1, 50_000)

        async def life(number: int) -> None:
            counter, org, hold = dice.choice((one, two)), dice.choice(orgs), f"h{number}"
            expires = dice.choice((0.001, 30.0))
            answer = await counter.admit(
                admission(hold, org=org, fixed=dice.randrange(500), rate=10**6, tokens=500, expires_in_s=expires)
            )
            if not isinstance(answer, Held):
                return
            await asyncio.sleep(dice.random() * 0.01)
            if dice.random() < 0.5:
                await counter.heartbeat([Beat(hold, org, dice.randrange(500), b"{}", expires)])
            for _ in range(dice.randrange(3)):
                other = dice.choice((one, two))
                await dice.choice((other.void, other.settle))(end(hold, dice.randrange(1, 2000), org=org))
                await other.reap()

        await asyncio.gather(*(life(number) for number in range(600)))
        await asyncio.sleep(0.01)
        await one.reap(1000)
        spent: Counter[str] = Counter()
        events = await one.read_events(0, count=10_000)
        for event in events:
            spent[event.org] += event.amount_nanos if event.kind != "grant" else 0
        assert {"settle", "void", "reap"} <= {event.kind for event in events}
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        for org, state in (await one.accounts()).items():
            assert state.spent_nanos == spent[org]
            assert state.granted_nanos == state.available_nanos + state.held_nanos + state.spent_nanos
            assert min(state.available_nanos, state.held_nanos) >= 0
