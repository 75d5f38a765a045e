"""Real Redis servers in numbers for tests: replicas, sentinels and clusters, put together by hand.

All of them want a password. They forget everything when they are killed (no append-only file), as a test that needs
the disk has ``tests.services``. Start them from the test's own thread: the kernel ends them with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.stack.embedded_redis import find_redis
from gateway.stack.processes import Child, Spec, free_port, port_is_free, write_private
from tests.services import private_folder, remove

PASSWORD = "of the test servers"
QUOTED = "of%20the%20test%20servers"
SLOTS = 16_384
_START_S = 20.0


class TestServer:
    """One redis-server (or sentinel) process."""

    __test__ = False

    def __init__(self, port: int, folder: Path, child: Child, *, sentinel: bool) -> None:
        self.port = port
        self.folder = folder
        self.child = child
        self.client = Redis(port=port, password=PASSWORD, decode_responses=True, socket_timeout=5)
        self._sentinel = sentinel

    @property
    def url(self) -> str:
        return f"redis://:{QUOTED}@127.0.0.1:{self.port}"

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def do(self, *words: Any) -> Any:
        """Have it execute one command."""
        return await self.client.execute_command(*words)

    async def info(self, section: str) -> dict[str, Any]:
        return dict(await self.client.info(section))

    async def kill(self) -> None:
        """SIGKILL."""
        await self.child.kill()

    async def end(self) -> None:
        await self.client.aclose()
        await self.child.kill()
        remove(self.folder)

    async def follow(self, master: TestServer) -> None:
        """Become its replica, and wait until the data is here."""
        await self.do("REPLICAOF", "127.0.0.1", master.port)
        await until(self._in_step, "the replica follows its master")

    async def _in_step(self) -> bool:
        state = await self.info("replication")
        return state.get("master_link_status") == "up" and not state.get("master_sync_in_progress")


async def until(condition: Any, what: str, within_s: float = 15.0) -> None:
    """Wait until an async condition holds; servers that are not there yet or any more count as no."""
    try:
        async with asyncio.timeout(within_s):
            while True:
                try:
                    if await condition():
                        return
                except (RedisError, OSError):
                    pass
                await asyncio.sleep(0.03)
    except TimeoutError:
        raise AssertionError(f"not within {within_s} s: {what}") from None


async def start_server(*lines: str, sentinel: bool = False) -> TestServer:
    """Start one with these lines of configuration."""
    folder = private_folder("redis")
    port = free_port()
    while not port_is_free(port + 10_000):  # of the cluster's bus
        port = free_port()
    common = ["bind 127.0.0.1", f"port {port}", f'requirepass "{PASSWORD}"', "dir ./"]
    data = ['save ""', "appendonly no", f'masterauth "{PASSWORD}"', "repl-diskless-sync-delay 0"]
    data += ["repl-ping-replica-period 1"]
    write_private(folder / "redis.conf", "\n".join([*common, *([] if sentinel else data), *lines]) + "\n")
    command = [find_redis(), "./redis.conf", *(["--sentinel"] if sentinel else [])]
    child = Child(Spec("redis", command, folder / "lock", folder=folder, log=folder / "log"))
    server = TestServer(port, folder, child, sentinel=sentinel)

    async def answers() -> bool:
        assert child.running, (folder / "log").read_text()
        return bool(await server.client.ping())

    await until(answers, "a Redis starts", _START_S)
    return server


@asynccontextmanager
async def servers(count: int = 1) -> AsyncIterator[list[TestServer]]:
    """So many servers; the others are replicas of the first."""
    made: list[TestServer] = []
    try:
        for _ in range(count):
            made.append(await start_server())
        for replica in made[1:]:
            await replica.follow(made[0])
        yield made
    finally:
        for server in made:
            await server.end()


@dataclass(slots=True)
class Watched:
    """A master and its replica under the eyes of one sentinel, which knows them as ``credit``."""

    master: TestServer
    replica: TestServer
    sentinel: TestServer

    def url(self, service: str = "credit", *, before: Sequence[str] = ()) -> str:
        """Its URL; ``before``: other places that are named before the sentinel."""
        places = ",".join((*before, self.sentinel.place))
        return f"redis+sentinel://:{QUOTED}@{places}/{service}?sentinel_password={QUOTED}"

    async def failed_over(self) -> None:
        """Wait until the replica is the master, and the sentinel says so."""

        async def done() -> bool:
            said = await self.sentinel.do("SENTINEL", "get-master-addr-by-name", "credit")
            role = await self.replica.do("ROLE")
            return int(said[1]) == self.replica.port and role[0] == "master"

        await until(done, "the sentinel fails over")


@asynccontextmanager
async def watched() -> AsyncIterator[Watched]:
    """A master, a replica and a sentinel that has found both."""
    async with servers(2) as (master, replica):
        sentinel = await start_server(
            f"sentinel monitor credit 127.0.0.1 {master.port} 1",
            f'sentinel auth-pass credit "{PASSWORD}"',
            "sentinel down-after-milliseconds credit 400",
            "sentinel failover-timeout credit 3000",
            sentinel=True,
        )
        try:

            async def knows_both() -> bool:
                rows = [_fields(row) for row in await sentinel.do("SENTINEL", "replicas", "credit")]
                return any(row["flags"] == "slave" and row["master-link-status"] == "ok" for row in rows)

            await until(knows_both, "the sentinel finds the replica")
            yield Watched(master, replica, sentinel)
        finally:
            await sentinel.end()


@dataclass(slots=True)
class Cluster:
    """Three masters with a third of the slots each, and if wanted a replica of the first."""

    masters: list[TestServer]
    replica: TestServer | None = None

    @property
    def url(self) -> str:
        return self.url_of([server.place for server in self.masters])

    @staticmethod
    def url_of(places: Sequence[str]) -> str:
        return f"redis+cluster://:{QUOTED}@{','.join(places)}"

    @property
    def all(self) -> list[TestServer]:
        return [*self.masters, *([self.replica] if self.replica else [])]

    async def owner_of(self, slot: int) -> TestServer:
        """The master that says itself that it serves a slot."""
        for server in self.all:
            with_slots = [
                line.split() for line in (await server.do("CLUSTER", "NODES")).splitlines() if "myself" in line
            ]
            for part in with_slots[0][8:]:
                first, _, last = part.partition("-")
                if first.isdigit() and int(first) <= slot <= int(last or first):
                    return server
        raise AssertionError(f"nobody serves slot {slot}")

    async def wait_ok(self, nodes: Sequence[TestServer]) -> None:
        """Wait until all of these see every node and every slot."""

        async def agreed() -> bool:
            for server in nodes:
                info = await server.do("CLUSTER", "INFO")
                text = info if isinstance(info, str) else "\n".join(f"{k}:{v}" for k, v in info.items())
                if "cluster_state:ok" not in text or f"cluster_slots_ok:{SLOTS}" not in text:
                    return False
            return True

        await until(agreed, "the cluster is whole")

    async def open_slot(self, slot: int, source: TestServer, target: TestServer) -> None:
        """Begin to move a slot: from now on keys may be on either side."""
        await target.do("CLUSTER", "SETSLOT", slot, "IMPORTING", await _id(source))
        await source.do("CLUSTER", "SETSLOT", slot, "MIGRATING", await _id(target))

    async def move_keys(self, slot: int, source: TestServer, target: TestServer, *, most: int = 1_000_000) -> int:
        """Move up to so many keys of a slot, one at a time, as resharding tools do. Returns how many."""
        moved = 0
        while moved < most:
            keys = await source.do("CLUSTER", "GETKEYSINSLOT", slot, 1)
            if not keys:
                break
            await source.do("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "AUTH", PASSWORD, "KEYS", *keys)
            moved += 1
        return moved

    async def close_slot(self, slot: int, target: TestServer) -> None:
        """The slot is now the target's."""
        owner = await _id(target)
        for server in [target, *(other for other in self.masters if other is not target)]:
            await server.do("CLUSTER", "SETSLOT", slot, "NODE", owner)


@asynccontextmanager
async def cluster(*, replica: bool = False) -> AsyncIterator[Cluster]:
    """A cluster that is whole."""
    made: list[TestServer] = []
    try:
        for _ in range(4 if replica else 3):
            made.append(
                await start_server("cluster-enabled yes", "cluster-config-file nodes.conf", "cluster-node-timeout 1500")
            )
        masters = made[:3]
        for number, server in enumerate(masters):
            first, last = number * SLOTS // 3, (number + 1) * SLOTS // 3
            await server.do("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await server.do("CLUSTER", "ADDSLOTS", *range(first, last))
        for server in made[1:]:
            await server.do("CLUSTER", "MEET", "127.0.0.1", made[0].port)
        whole = Cluster(masters, made[3] if replica else None)
        await whole.wait_ok(made)
        if whole.replica is not None:
            await _replicate(whole.replica, masters[0])
        yield whole
    finally:
        for server in made:
            await server.end()


def _fields(row: Any) -> dict[str, str]:
    return row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True))


async def _replicate(replica: TestServer, master: TestServer) -> None:
    owner = await _id(master)

    async def accepted() -> bool:
        return bool(await replica.do("CLUSTER", "REPLICATE", owner))

    await until(accepted, "the replica knows its master")

    async def in_step() -> bool:
        return (await replica.info("replication")).get("master_link_status") == "up"

    await until(in_step, "the replica follows its master")


async def _id(server: TestServer) -> str:
    return str(await server.do("CLUSTER", "MYID"))
