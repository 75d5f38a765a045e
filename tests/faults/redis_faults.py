"""Faults of Redis: crashes, losses, silence, a full disk, a full memory, a wrong clock."""

from __future__ import annotations

import asyncio
import random
import shutil
import time

from redis.exceptions import RedisError

from ledger.core.ids import id_time_ms
from tests.faults import clocks
from tests.faults.clients import send_raw
from tests.faults.fault import DidNotFire, Fault, Scene, until
from tests.faults.servers import FaultyRedis, limit_files
from tests.faults.world import World, continue_process, stop_process

REDIS = frozenset({"redis"})


class RedisFault(Fault):
    """Heals by having a primary that answers behind its proxy, and a follower behind it."""

    parts = REDIS
    silences = True

    async def heal(self, scene: Scene) -> None:
        world = scene.world
        world.to_redis.mend()
        world.to_primary.mend()
        for server in (world.redis, world.follower):
            continue_process(server.pid)
            if not server.child.running:
                await server.start()


class KilledRedis(RedisFault):
    """2: kill -9 under load; it comes back with all that it had answered."""

    number, name = "2", "Redis killed (-9)"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        redis = scene.world.redis
        await redis.child.kill()
        self.happened(f"exit status {redis.child.exit_status()}")
        await asyncio.sleep(rng.uniform(0.1, 1.5))
        await redis.start()


class EmptyRedis(RedisFault):
    """3: FLUSHALL, or a restart without the append-only file."""

    number, name, loses = "3", "Redis emptied", True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        before = await scene.world.redis.seq()
        how = await empty(scene.world.redis, rng)
        if rng.random() < 0.3:  # again, before what was frozen is released
            await asyncio.sleep(rng.uniform(0.3, 4.0))
            how += ", and " + await empty(scene.world.redis, rng)
        if not before:
            raise DidNotFire("there was nothing to lose")
        self.happened(f"{how}: event {before} → 0")


async def empty(redis: FaultyRedis, rng: random.Random) -> str:
    """Take everything from it; returns how."""
    if rng.random() < 0.5:
        await redis.command("FLUSHALL")
        return "FLUSHALL"
    await redis.child.kill()
    redis.appended.unlink()
    await asyncio.sleep(rng.uniform(0.0, 0.5))
    await redis.start()
    return "restarted without its file"


async def cut_file(redis: FaultyRedis, rng: random.Random) -> None:
    """Kill it and take the end off its file."""
    await redis.child.kill()
    size_bytes = redis.appended.stat().st_size
    with redis.appended.open("r+b") as file:
        file.truncate(max(0, size_bytes - rng.randint(2_000, 40_000)))
    await redis.start()


class CutFile(RedisFault):
    """4: the append-only file loses its end, or is one from some seconds ago."""

    number, name, loses = "4", "Redis on a truncated file", True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        redis = scene.world.redis
        old = redis.folder / "old.aof"
        is_copy = rng.random() < 0.5
        if is_copy:
            shutil.copy(redis.appended, old)
            await asyncio.sleep(rng.uniform(0.5, 3.0))
        before = await redis.seq()
        if is_copy:
            await redis.child.kill()
            old.replace(redis.appended)
            await redis.start()
        else:
            await cut_file(redis, rng)
        after = await redis.seq()
        if after >= before:
            raise DidNotFire(f"event {before} → {after}")
        self.happened(f"{'an old file' if is_copy else 'cut'}: event {before} → {after}")


class LaggingFollower(RedisFault):
    """5: the primary dies, and the follower that is promoted has not heard of the last seconds."""

    number, name, loses = "5", "lagging replica promoted", True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world = scene.world
        if not await until(lambda: _follows(world), within_s=15, every_s=0.3):
            raise DidNotFire("the follower never caught up")
        world.to_primary.freeze()
        await asyncio.sleep(rng.uniform(0.7, 3.0))
        primary, follower = world.redis, world.follower
        before = await primary.seq()
        await primary.child.kill()
        await follower.command("REPLICAOF", "NO", "ONE")
        after = await follower.seq()
        follower.follows, primary.follows = None, world.to_primary.port
        world.redis, world.follower = follower, primary
        world.to_redis.aim(follower.url)
        world.to_primary.aim(follower.url)
        world.to_primary.mend()
        await primary.start()
        if after >= before:
            raise DidNotFire(f"event {before} → {after}")
        self.happened(f"event {before} → {after}")


class TwoPrimaries(RedisFault):
    """5b: a replica is promoted while the old primary lives: some processes talk to the one, some to the other."""

    number, name, loses = "5b", "two primaries at once", True
    parts = frozenset({"redis", "reconciler"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world = scene.world
        if not await until(lambda: _follows(world), within_s=15, every_s=0.3):
            raise DidNotFire("the follower never caught up")
        world.to_primary.freeze()
        await asyncio.sleep(rng.uniform(0.0, 1.0))
        old, new = world.redis, world.follower
        await new.command("REPLICAOF", "NO", "ONE")
        split = await old.seq()
        world.to_redis.aim(new.url, cut=False)
        broken, kept = world.to_redis.cut_some(rng)
        world.redis, world.follower = new, old
        await asyncio.sleep(rng.uniform(3.0, 6.0))
        went_on = await old.seq() - split
        await old.child.kill()
        new.follows, old.follows = None, world.to_primary.port
        world.to_redis.cut()
        world.to_primary.aim(new.url)
        world.to_primary.mend()
        await old.start()
        if not broken or not kept:
            raise DidNotFire(f"{broken} connections to the new one, {kept} to the old one")
        self.happened(f"{broken} connections moved, {kept} stayed; the old one counted {went_on} more events")


async def _follows(world: World) -> bool:
    try:
        return await world.redis.seq() - await world.follower.seq() < 20
    except (RedisError, OSError):
        return False


class SleepingRedis(RedisFault):
    """6: SIGSTOP for ten seconds while clients try again and again."""

    number, name = "6", "Redis asleep for 10 s"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        down_before = len(scene.load.down_s)
        stop_process(scene.world.redis.pid)
        stopped_s = time.time()
        await asyncio.sleep(10)
        woken_s = time.time()
        continue_process(scene.world.redis.pid)
        for attempt in scene.load.attempts:  # nobody is trusted so much that no hold is taken
            if attempt.finished and attempt.sent_s > stopped_s and attempt.ended_s < woken_s:
                scene.findings.wrong(
                    "overspent", "served while nobody could say whether there is credit", attempt.told()
                )
        if len(scene.load.down_s) == down_before:
            raise DidNotFire("nobody noticed")
        self.happened("10 s of silence, then 503")


class EatenAnswers(RedisFault):
    """7: what is asked arrives, what is answered does not."""

    number, name = "7", "replies of Redis dropped"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        proxy = scene.world.to_redis
        before = proxy.eaten
        proxy.eat()
        await asyncio.sleep(rng.uniform(0.3, 4.0))
        proxy.mend()
        if proxy.eaten == before:
            raise DidNotFire("nothing was answered")
        self.happened(f"{proxy.eaten - before} pieces of answers", proxy.eaten - before)


class LateCommands(RedisFault):
    """7b: what was asked arrives seconds later, when those who asked have given up and asked again elsewhere."""

    number, name = "7b", "commands to Redis arrive late"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        proxy = scene.world.to_redis
        before = proxy.delivered_late
        proxy.delay()
        await asyncio.sleep(rng.uniform(2.5, 7.0))
        proxy.mend()
        late = proxy.delivered_late - before
        if not late:
            raise DidNotFire("nobody gave up")
        self.happened(f"{late} pieces of commands", late)


class LateGuardian(RedisFault):
    """7c: the same while an epoch is being opened, so that what the guardian did is perhaps done once more, later."""

    number, name, loses = "7c", "commands of the guardian arrive late", True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        proxy, folder = scene.world.to_redis, scene.world.folder
        before = proxy.delivered_late
        step = rng.choice(["fence", "wipe", "open"])
        armed, stalled = folder / f"stall-guardian-{step}", folder / f"stalled-guardian-{step}"
        armed.touch()
        # Cut short and not emptied, so that there is something to wipe and to fence.
        await cut_file(scene.world.redis, rng)
        if not await until(stalled.exists, within_s=10, every_s=0.02):
            armed.unlink(missing_ok=True)
            raise DidNotFire("the guardian had nothing to do")
        stalled.unlink()
        proxy.delay()
        await asyncio.sleep(rng.uniform(4.0, 9.0))
        proxy.mend()
        late = proxy.delivered_late - before
        if not late:
            raise DidNotFire("nobody gave up")
        self.happened(f"{step} and others, {late} pieces of commands", late)


class FullDisk(RedisFault):
    """14: no byte more fits into its file. With ``appendfsync always`` Redis ends itself, and cannot come back."""

    number, name = "14", "disk of Redis full"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        redis = scene.world.redis
        limit_files([redis.pid], redis.appended.stat().st_size + rng.randint(0, 5_000))
        ended = await until(lambda: not redis.child.running, within_s=10)
        if not ended:
            limit_files([redis.pid], None)
            raise DidNotFire("it went on")
        self.happened(f"it ended itself, exit status {redis.child.exit_status()}")
        await asyncio.sleep(rng.uniform(0.1, 1.0))
        await redis.start()

    async def heal(self, scene: Scene) -> None:
        if scene.world.redis.child.running:
            limit_files([scene.world.redis.pid], None)
        await super().heal(scene)


class FullMemory(RedisFault):
    """15: maxmemory is reached; nothing is evicted, so writes are refused."""

    number, name = "15", "maxmemory of Redis reached"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        redis = scene.world.redis
        down_before = len(scene.load.down_s)
        await redis.command("CONFIG", "SET", "maxmemory", 1_000_000)
        await asyncio.sleep(rng.uniform(1.5, 4.0))
        await redis.command("CONFIG", "SET", "maxmemory", 0)
        if len(scene.load.down_s) == down_before:
            raise DidNotFire("nobody was refused")
        self.happened("writes refused")

    async def heal(self, scene: Scene) -> None:
        await super().heal(scene)
        await scene.world.redis.command("CONFIG", "SET", "maxmemory", 0)


class FlushedScripts(RedisFault):
    """22: SCRIPT FLUSH: nobody may work until the guardian has looked."""

    number, name = "22", "SCRIPT FLUSH"

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        redis = scene.world.redis
        before = await _scripts(redis)
        await redis.command("SCRIPT", "FLUSH")
        if not before:
            raise DidNotFire("there were no scripts")
        self.happened(f"{before} scripts forgotten")


async def _scripts(redis: FaultyRedis) -> int:
    info = await redis.command("INFO", "memory")
    text = info.decode() if isinstance(info, bytes) else str(info)
    if isinstance(info, dict):
        return int(info.get("number_of_cached_scripts", 0))
    return int(next((line.partition(":")[2] for line in text.split() if line.startswith("number_of_cached_scr")), 0))


class JumpingClock(Fault):
    """16: the clock of Redis, or of a worker, is suddenly ahead or behind, and later right again."""

    number, name, clock_jumps = "16", "clock jumps", True
    parts = frozenset({"redis", "worker", "reconciler", "postgres"})
    silences = True
    why_not = clocks.WHY_NOT

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world = scene.world
        victim = rng.choice(["redis", "worker-0", "worker-1", "gateway"])
        offset_s = rng.choice([-40, -15, 15, 40]) if victim == "redis" else rng.choice([-60, -15, 15, 40 * 86_400])
        clock = world.clocks[victim]
        clock.set(offset_s)
        seen_s = 0.0
        if victim == "redis":

            async def jumped() -> bool:
                nonlocal seen_s
                seen_s = (await world.redis.command("TIME"))[0] - time.time()
                return abs(seen_s - offset_s) < 3
        elif victim == "gateway":  # the reconcilers: seen in the ids of the credit that the leader grants

            async def jumped() -> bool:
                nonlocal seen_s
                async with world.sql() as conn:
                    offsets = await conn.fetch(
                        """SELECT extract(epoch FROM ledger.id_time(id) - created_at)::float8 AS s
                             FROM ledger.escrow_grant WHERE created_at > now() - interval '5 s'"""
                    )
                seen_s = max((row["s"] for row in offsets), key=abs, default=0.0)
                return abs(seen_s - offset_s) < 3
        else:

            async def jumped() -> bool:
                nonlocal seen_s
                probe = scene.load.plain(scene.load.customer("flat"))
                attempt = await scene.load.note(probe, send_raw(world.port, probe))
                seen_s = id_time_ms(attempt.request_id) / 1000 - time.time() if attempt.request_id else seen_s
                return abs(seen_s - offset_s) < 3

        if not await until(jumped, within_s=8, every_s=0.2):
            raise DidNotFire(f"the clock of {victim} shows {seen_s:+.0f} s instead of {offset_s:+d} s")
        await asyncio.sleep(rng.uniform(3.0, 5.0))
        self.happened(f"{victim} {offset_s:+d} s")

    async def heal(self, scene: Scene) -> None:
        for clock in scene.world.clocks.values():
            if clock.offset_s:
                clock.set(0)
        await asyncio.sleep(2.0)
