"""Promises of the credit counter on Redis Cluster, under Sentinel and behind a changing address. Real processes."""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest

from gateway.stack.processes import free_port
from ledger.core.ids import shard_of
from ledger.counter import Beat, CounterUnavailable, CreditCounter, Extended, Held, OutOfCredit, Settled, Voided
from ledger.counter.collector import SCRIPT_SHA, meta_key
from ledger.counter.link import RedisLink, pack
from ledger.counter.topology import slot_of
from tests.integration.ledger_counters import admission, end, opened
from tests.integration.tcp_proxy import TcpProxy
from tests.redis_cluster import PASSWORD, Cluster, TestServer, cluster, servers, until, watched

SHARDS = 4
GRANT = 1_000_000
T = TypeVar("T")


def org_in(shard: int, number: int = 0) -> str:
    """An organization of this shard."""
    names = (f"org_{count:012d}" for count in itertools.count())
    return next(itertools.islice((name for name in names if shard_of(name, SHARDS) == shard), number, None))


async def insist(ask: Callable[[], Awaitable[T]], within_s: float = 15.0) -> T:
    """Repeat until there is an answer, as an outbox does."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                return await ask()
            except CounterUnavailable:
                await asyncio.sleep(0.02)


class Spender:
    """Takes holds and settles them without a pause, and keeps count of what it was told."""

    def __init__(self, counter: CreditCounter, org: str) -> None:
        self.counter, self.org = counter, org
        self.charged: dict[str, int] = {}
        self.refused = 0
        self._ids = itertools.count(1)

    async def run(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            hold_id = f"req_{self.org[-6:]}{next(self._ids):020d}"
            try:
                held = await self.counter.admit(admission(hold_id, org=self.org, fixed=10))
            except CounterUnavailable:
                self.refused += 1
                await asyncio.sleep(0.01)
                continue
            assert isinstance(held, Held), held
            settled = await insist(functools.partial(self.counter.settle, end(hold_id, 7, org=self.org)))
            assert isinstance(settled, Settled), settled
            self.charged[hold_id] = settled.charged_nanos

    async def check(self) -> None:
        """Redis has exactly what this was told, once each."""
        shard = self.counter.shard_of(self.org)

        async def quiet() -> bool:
            return self.counter.orphans == 0 and (await self.counter.account(self.org)).held_nanos == 0

        await until(quiet, "holds of unknown outcome are voided")
        account = await self.counter.account(self.org)
        assert account.spent_nanos == sum(self.charged.values()) == 7 * len(self.charged)
        assert account.available_nanos == account.granted_nanos - account.spent_nanos
        events = await self.counter.read_events(shard, count=10_000)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        settled = Counter(event.hold for event in events if event.kind == "settle" and event.org == self.org)
        assert settled == Counter(dict.fromkeys(self.charged, 1))


@asynccontextmanager
async def spending(*spenders: Spender) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for spender in spenders:
            group.create_task(spender.run(stop))
        try:
            yield
        finally:
            stop.set()


async def grant(counter: CreditCounter, org: str) -> None:
    assert await counter.grant(org, 1, GRANT) == "applied"


# Redis Cluster


async def test_every_operation_of_the_counter_works_on_a_cluster() -> None:
    """Shards are spread over the nodes of a cluster, and every operation finds its own."""
    async with cluster() as whole, opened(whole.url, shards=SHARDS) as counter:
        owners = {(await whole.owner_of(slot_of(meta_key(shard)))).port for shard in range(SHARDS)}
        assert len(owners) == 3
        for shard in range(SHARDS):
            org = org_in(shard)
            await grant(counter, org)
            one, two, three = (f"req_{shard}{number:025d}" for number in range(3))
            assert isinstance(await counter.admit(admission(one, org=org)), Held)
            assert isinstance(await counter.admit(admission(two, org=org)), Held)
            assert isinstance(await counter.admit(admission(three, org=org)), Held)
            assert await counter.extend(one, org, total_nanos=150) == Extended(150)
            assert await counter.heartbeat([Beat(one, org, 5, b"{}", 30), Beat(two, org, 6, b"{}", 0.0)]) == frozenset()
            assert await counter.settle(end(one, 120, org=org)) == Settled(120, 0, "fresh")
            assert await counter.void(end(three, org=org)) == Voided("fresh")
            await insist_reaped(counter, two, org)
            account = await counter.account(org)
            assert (account.available_nanos, account.held_nanos, account.spent_nanos) == (GRANT - 126, 0, 126)
            assert await counter.accounts(shard) == {org: account}
            assert isinstance(await counter.admit(admission(f"req_{shard}rich", org=org, fixed=GRANT)), OutOfCredit)
            events = await counter.read_events(shard)
            assert [event.kind for event in events] == ["grant", "settle", "void", "reap"]
            assert await counter.trim(shard, events[-1].id) == 3
            assert await counter.stream_length(shard) == 1
        closings = await counter.close_holds([end("req_none", 1, org=org_in(shard)) for shard in range(SHARDS)])
        assert not any(isinstance(closing, CounterUnavailable) for closing in closings)
        assert await counter.open_holds() == 0
        await counter.ping()


async def insist_reaped(counter: CreditCounter, hold_id: str, org: str) -> None:
    async with asyncio.timeout(5):
        while not await counter.reap():
            await asyncio.sleep(0.005)


async def test_a_slot_that_moves_under_load_loses_nothing() -> None:
    """While the keys of a shard go to another node one by one, its calls fail closed or are done once; reads go on."""
    async with cluster() as whole, opened(whole.url, shards=SHARDS, timeout_s=1.0) as counter:
        spenders = [Spender(counter, org_in(shard, number)) for shard in range(SHARDS) for number in range(2)]
        for spender in spenders:
            await grant(counter, spender.org)
        slot = slot_of(meta_key(0))
        source = await whole.owner_of(slot)
        target = next(server for server in whole.masters if server is not source)
        async with spending(*spenders):
            await until(lambda: more(spenders[0], 10), "it works")
            await whole.open_slot(slot, source, target)
            await asyncio.sleep(0.2)
            await whole.move_keys(slot, source, target, most=20)
            await asyncio.sleep(0.2)
            await whole.move_keys(slot, source, target)
            assert (await counter.account(spenders[0].org)).spent_nanos > 0
            await whole.close_slot(slot, target)
            await insist(lambda: counter.load_script(0))
            await until(lambda: more(spenders[0], len(spenders[0].charged)), "the moved shard works again")
        assert await whole.owner_of(slot) is target
        said = {**await source.info("errorstats"), **await target.info("errorstats")}
        assert {"errorstat_ASK", "errorstat_TRYAGAIN", "errorstat_MOVED"} <= said.keys()
        for spender in spenders:
            await spender.check()


async def more(spender: Spender, than: int) -> bool:
    """Whether it has settled ten holds more."""
    async with asyncio.timeout(15):
        while len(spender.charged) < than + 10:
            await asyncio.sleep(0.02)
    return True


async def test_a_replica_takes_over_from_a_killed_node() -> None:
    """Without its node a shard fails closed; the promoted replica serves it once it was let in, all money there."""
    async with cluster(replica=True) as whole, opened(whole.url, shards=SHARDS, timeout_s=0.5) as counter:
        master, replica = whole.masters[0], whole.replica
        assert replica is not None
        shard = next(s for s in range(SHARDS) if slot_of(meta_key(s)) < 5461)
        org = org_in(shard)
        await grant(counter, org)
        assert isinstance(await counter.admit(admission("open", org=org)), Held)
        await in_step(master, replica)
        await master.kill()
        with pytest.raises(CounterUnavailable) as gone:
            await counter.admit(admission(org=org))
        assert gone.value.reason in ("unreachable", "timeout")
        await replica.do("CLUSTER", "FAILOVER", "TAKEOVER")
        await whole.wait_ok([*whole.masters[1:], replica])
        await until(lambda: served(counter, shard), "its reads are served again")
        with pytest.raises(CounterUnavailable) as unchecked:
            await counter.admit(admission(org=org))
        assert unchecked.value.reason == "fenced"
        await counter.load_script(shard)
        assert await insist(lambda: counter.settle(end("open", 100, org=org))) == Settled(100, 0, "fresh")
        await asyncio.gather(*(insist(functools.partial(counter.account, org_in(other))) for other in range(SHARDS)))
        account = await counter.account(org)
        assert (account.granted_nanos, account.spent_nanos) == (GRANT, 100)


async def served(counter: CreditCounter, shard: int) -> bool:
    with suppress(CounterUnavailable):
        return await counter.meta(shard) is not None
    return False


async def in_step(master: TestServer, replica: TestServer) -> None:
    """Wait until the replica has all that its master has, so that its promotion loses nothing."""

    async def caught_up() -> bool:
        ahead = (await master.info("replication"))["master_repl_offset"]
        return bool((await replica.info("replication"))["slave_repl_offset"] == ahead)

    await until(caught_up, "the replica has everything")


async def test_a_connection_to_a_cluster_is_one_of_its_generation() -> None:
    """A call that belongs to a connection follows no redirection; one that belongs to none does."""
    async with cluster() as whole:
        key = "{0}a"
        source = await whole.owner_of(slot_of(key))
        target = next(server for server in whole.masters if server is not source)
        link = RedisLink(whole.url, key)
        assert await link.call(pack("INCR", key), 2) == 1
        first = link.generation
        assert await link.call(pack("INCR", key), 2, generation=first) == 2
        run_id = (await source.info("server"))["run_id"]
        assert await link.call(lambda where: pack("ECHO", where), 2) == link.run_id.encode() == run_id.encode()
        await whole.open_slot(slot_of(key), source, target)
        await whole.move_keys(slot_of(key), source, target)
        assert await link.call(pack("INCR", key), 2) == 3
        with pytest.raises(CounterUnavailable, match="on its way"):
            await link.call(pack("INCR", key), 2, generation=link.generation)
        await whole.close_slot(slot_of(key), target)
        assert await link.call(pack("GET", key), 2) == b"3"
        with pytest.raises(CounterUnavailable, match="is gone"):
            await link.call(pack("INCR", key), 2, generation=first)
        second = link.generation
        assert second > first
        await whole.open_slot(slot_of(key), target, source)
        await whole.move_keys(slot_of(key), target, source)
        await whole.close_slot(slot_of(key), source)
        with pytest.raises(CounterUnavailable, match="gone to another node"):
            await link.call(pack("INCR", key), 2, generation=link.generation)
        assert await source.do("GET", key) == "3"
        await link.close()


async def test_nodes_that_are_away_and_wrong_passwords() -> None:
    """Dead and silent seeds cost no call its answer; a wrong password is told without its text."""
    async with cluster() as whole, silent_place() as silent:
        seeds = [dead_place(), silent, whole.masters[1].place]
        for shard in range(SHARDS):
            link = RedisLink(whole.url_of(seeds), meta_key(shard))
            assert await link.call(pack("SET", meta_key(shard), shard), 2) == b"OK"
            await link.close()
        wrong = RedisLink(f"redis+cluster://:hunter2@{whole.masters[0].place}", "key")
        with pytest.raises(CounterUnavailable, match=r"invalid (username-)?password") as refused:
            await wrong.call(pack("GET", "key"), 2)
        assert (refused.value.reason, "hunter2" in str(refused.value)) == ("unreachable", False)
        foreign = next(key for key in ("a", "b", "c", "d") if slot_of(key) > 5461)
        alone = RedisLink(whole.masters[0].url, foreign)
        with pytest.raises(CounterUnavailable, match=r"redis\+cluster://"):
            await alone.call(pack("GET", foreign), 2)
        nobody = RedisLink(Cluster.url_of([dead_place()]), "key")
        with pytest.raises(CounterUnavailable, match=r"127\.0\.0\.1"):
            await nobody.call(pack("GET", "key"), 2)


def dead_place() -> str:
    """Where nobody listens."""
    return f"127.0.0.1:{free_port()}"


@asynccontextmanager
async def silent_place() -> AsyncIterator[str]:
    """A server that takes connections and says nothing."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


# Redis Sentinel


@pytest.mark.parametrize("how", ["asked for", "killed"])
async def test_the_counter_follows_the_sentinel(how: str) -> None:
    """After a failover the counter finds the new master by itself, and works once it was let in there."""
    async with watched() as service, silent_place() as silent:
        url = service.url(before=[dead_place(), silent])
        async with opened(url, shards=SHARDS, timeout_s=1.0) as counter:
            org = org_in(0)
            await grant(counter, org)
            assert isinstance(await counter.admit(admission("open", org=org)), Held)
            await in_step(service.master, service.replica)
            if how == "killed":
                await service.master.kill()
                with pytest.raises(CounterUnavailable):
                    await counter.settle(end("open", 100, org=org))
            else:
                await service.sentinel.do("SENTINEL", "FAILOVER", "credit")
            await service.failed_over()
            # The old master would take calls for some time to come.
            await until(lambda: unchecked(counter, org), "the counter has left the old master", within_s=5)
            await insist(lambda: counter.load_script(0))
            assert await insist(lambda: counter.settle(end("open", 100, org=org))) == Settled(100, 0, "fresh")
            assert (await counter.account(org)).spent_nanos == 100
            assert await service.replica.do("HGET", f"pareta:{{0}}:acct:{org}", "spent") == "100"


async def unchecked(counter: CreditCounter, org: str) -> bool:
    """Whether it meets a Redis that nobody let it in to."""
    try:
        await counter.admit(admission(org=org))
    except CounterUnavailable as error:
        return error.reason == "fenced"
    return False


async def test_a_sentinel_that_cannot_help_is_told_in_a_sentence() -> None:
    """A service that it does not know, a password that it does not take, a sentinel that is taken for a server."""
    async with watched() as service:
        good = service.url()
        for url, hint in (
            (service.url("debit"), "no service is named 'debit'"),
            (good.partition("?")[0], "Authentication required"),
            (good.replace("redis+sentinel", "redis").partition("/credit")[0], r"use redis\+sentinel://"),
        ):
            link = RedisLink(url, "key")
            with pytest.raises(CounterUnavailable, match=hint) as refused:
                await link.call(pack("GET", "key"), 2)
            assert refused.value.reason == "unreachable"
            assert PASSWORD not in str(refused.value)


# One server


async def test_a_server_that_was_demoted_is_left() -> None:
    """Whoever is connected to a server that became a replica notices within about a second, though its reads work."""
    async with servers(2) as (master, replica):
        link = RedisLink(master.url)
        assert await link.call(pack("SET", "key", 1), 2) == b"OK"
        await replica.do("REPLICAOF", "NO", "ONE")
        await master.follow(replica)
        with pytest.raises(CounterUnavailable, match="read only") as writing:
            await link.call(pack("SET", "key", 2), 2)
        with pytest.raises(CounterUnavailable, match="is a replica"):
            await link.call(pack("GET", "key"), 2)
        assert writing.value.reason == "unreachable"
        reader = RedisLink(replica.url)
        assert await reader.call(pack("GET", "key"), 2) == b"1"
        await replica.do("REPLICAOF", "127.0.0.1", master.port)  # a moment without any master

        async def noticed() -> bool:
            try:
                await reader.call(pack("GET", "key"), 2)
            except CounterUnavailable as error:
                return "is a replica" in error.detail
            return False

        await until(noticed, "the reader leaves", within_s=5)
        await reader.close()


async def test_a_replica_that_lags_is_behind_what_was_seen() -> None:
    """A promoted replica that lacks an event which this process has seen refuses it, whoever let it in."""
    org = org_in(0)
    async with (
        servers(2) as (master, replica),
        TcpProxy(master.url) as address,
        opened(address.url, timeout_s=0.5) as counter,
    ):
        await grant(counter, org)
        await in_step(master, replica)
        await replica.do("REPLICAOF", "NO", "ONE")
        await counter.admit(admission("late", org=org))
        await counter.settle(end("late", 100, org=org))
        await address.lead_to(replica.url)
        await insist(lambda: counter.load_script(0))
        with pytest.raises(CounterUnavailable, match="at event 1 of epoch 1") as behind:
            await counter.admit(admission(org=org))
        assert behind.value.reason == "fenced"
        assert (await counter.account(org)).held_nanos == 0


async def test_a_call_is_sent_on_its_own_connection_or_not_at_all() -> None:
    """What belongs to a connection that is gone fails, and has done nothing."""
    async with servers() as (server,):
        link = RedisLink(server.url)
        assert await link.call(pack("INCR", "n"), 2) == 1
        seen = link.generation
        await server.do("CLIENT", "KILL", "TYPE", "normal")
        for _ in range(2):
            with pytest.raises(CounterUnavailable, match="is gone") as gone:
                await link.call(pack("INCR", "n"), 2, generation=seen)
            assert gone.value.reason == "unreachable"
        assert await link.call(pack("INCR", "n"), 2) == 2
        assert link.generation == seen + 1
        await link.close()


async def test_a_user_who_may_not_ask_for_the_role_can_work() -> None:
    """Managed services withhold ROLE and INFO; the checks that need them are left out, and all else works."""
    async with servers() as (server,):
        rules = ("on", ">pw", "~pareta:*", "+@all", "-@admin", "-@dangerous")
        await server.do("ACL", "SETUSER", "app", *rules)
        async with opened(f"redis://app:pw@{server.place}") as counter:
            org = org_in(0)
            await grant(counter, org)
            assert isinstance(await counter.admit(admission("one", org=org)), Held)
            await asyncio.sleep(1.1)  # the role would be asked for again
            assert await counter.settle(end("one", 10, org=org)) == Settled(10, 0, "fresh")


async def test_a_promoted_replica_serves_nobody_before_it_was_let_in() -> None:
    """Whether or not it knows the script: Redis 6.2 hands that over with a full synchronization, and keeps it after."""
    org = org_in(0)
    async with (
        servers(2) as (first, second),
        TcpProxy(first.url) as address,
        opened(address.url, timeout_s=0.5) as counter,
    ):
        await grant(counter, org)
        await second.do("REPLICAOF", "NO", "ONE")
        await second.do("FLUSHALL")
        await second.follow(first)  # a full synchronization, after the script was loaded
        if (await second.info("server"))["redis_version"] < "7":
            assert await second.do("SCRIPT", "EXISTS", SCRIPT_SHA) == [True]
        master, replica = first, second
        for _ in range(2):  # there and back again: the second time, to a server that callers had been let in to before
            await in_step(master, replica)
            await replica.do("REPLICAOF", "NO", "ONE")
            await master.follow(replica)
            await address.lead_to(replica.url)
            for _ in range(2):
                with pytest.raises(CounterUnavailable) as refused:
                    await counter.admit(admission(org=org))
                assert refused.value.reason == "fenced"
            await counter.load_script(0)
            assert isinstance(await counter.admit(admission(org=org, fixed=1)), Held)
            master, replica = replica, master
        account = await counter.account(org)
        assert (account.held_nanos, account.available_nanos) == (2, GRANT - 2)
