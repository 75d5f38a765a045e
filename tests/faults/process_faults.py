"""Faults of processes: workers and reconcilers that die at one exact step, or sleep until others took over."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

from tests.faults.clients import send_raw
from tests.faults.fault import DidNotFire, Fault, Scene, until
from tests.faults.redis_faults import cut_file, empty
from tests.faults.servers import limit_files
from tests.faults.world import EXPIRY_S, WORKERS, World, continue_process, stop_process

ARMED_S = 12.0
SWEEP_S = 3.0


class KilledAtStep(Fault):
    """kill -9 at one step of a request or of a batch; the failpoint is in ``hooks/sitecustomize.py``."""

    step = ""

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        await asyncio.sleep(rng.uniform(0, 0.5))
        folder = scene.world.folder
        fired_before = set(folder.glob(f"fired-{self.step}-*"))
        (folder / f"kill-{self.step}").touch()
        dead = lambda: bool(set(folder.glob(f"fired-{self.step}-*")) - fired_before)  # noqa: E731
        if not await until(dead, within_s=ARMED_S):
            (folder / f"kill-{self.step}").unlink(missing_ok=True)
            if not dead():
                raise DidNotFire(f"nobody came to the step {self.step}: {scene.world.broken_hooks()}")
        [taken] = set(folder.glob(f"fired-{self.step}-*")) - fired_before
        pid = int(taken.name.rpartition("-")[2])
        if not await until(lambda: not _lives(pid), within_s=5):
            raise DidNotFire(f"process {pid} did not die")
        self.happened(f"pid {pid} died")

    async def heal(self, scene: Scene) -> None:
        (scene.world.folder / f"kill-{self.step}").unlink(missing_ok=True)
        await scene.world.restart_standby()


def _lives(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def killed_workers() -> list[type[Fault]]:
    """1: one class for each step of a request."""
    steps = {
        "a": ("after-hold", "worker killed after HOLD"),
        "b": ("upstream-sent", "worker killed, request sent upstream"),
        "c": ("mid-stream", "worker killed in mid-stream"),
        "d": ("stream-end", "worker killed at the end of a stream"),
        "e": ("after-journal", "worker killed after its journal"),
        "f": ("after-settle", "worker killed after SETTLE"),
    }
    return [
        type(
            f"Killed{letter}",
            (KilledAtStep,),
            {"number": f"1{letter}", "name": name, "step": step, "parts": frozenset({"worker"})},
        )
        for letter, (step, name) in steps.items()
    ]


class KilledWithDebts(Fault):
    """1g: Redis is silent, answers end all the same because they are journaled, and then the worker is killed."""

    number, name, parts = "1g", "worker killed with settlements in its journal", frozenset({"worker", "redis"})
    silences = True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        world, rich = scene.world, scene.load.customer("rich")
        streams = [scene.load.plain(rich, stream=True, tokens=30, itl_ms=40) for _ in range(8)]
        running = [asyncio.create_task(scene.load.note(a, send_raw(world.port, a))) for a in streams]
        await asyncio.sleep(rng.uniform(0.6, 0.9))
        world.to_redis.freeze()
        frozen_s = time.time()
        await asyncio.gather(*running)
        ended = [a for a in streams if a.finished and a.ended_s > frozen_s]
        for slot in range(WORKERS):
            if pid := world.worker_pid(slot):
                os.kill(pid, signal.SIGKILL)
        world.to_redis.cut()  # what the dead had sent never arrives
        world.to_redis.mend()
        if not ended:
            raise DidNotFire("no answer ended while Redis was silent")
        self.happened(f"{len(ended)} answers ended without Redis", len(ended))

    async def heal(self, scene: Scene) -> None:
        scene.world.to_redis.mend()


class RestartedGateway(Fault):
    """1h: the supervisor is killed, or asked to end, and the whole gateway starts again on what is left."""

    number, name = "1h", "gateway restarted, its supervisor killed"
    parts = frozenset({"worker", "reconciler"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        serve = scene.world.serve
        assert serve is not None
        if rng.random() < 0.7:
            await serve.kill()
        else:
            await serve.stop(30)
        self.happened(f"exit status {serve.exit_status()}")
        await asyncio.sleep(rng.uniform(0.0, 1.0))

    async def heal(self, scene: Scene) -> None:
        await scene.world.restart_gateway()


def killed_reconcilers() -> list[type[Fault]]:
    """10: one class for each step of a batch."""
    steps = {"a": ("before-copy", "COPY"), "b": ("before-commit", "COMMIT"), "c": ("before-trim", "trim")}
    return [
        type(
            f"Reconciler{letter}",
            (KilledAtStep,),
            {
                "number": f"10{letter}",
                "name": f"reconciler killed before {name}",
                "step": step,
                "parts": frozenset({"reconciler"}),
            },
        )
        for letter, (step, name) in steps.items()
    ]


class KilledGuardian(KilledAtStep):
    """10d: kill -9 while a new epoch is being opened, between any two of its steps."""

    number, name, loses = "10d", "guardian killed while it opens an epoch", True
    parts, silences = frozenset({"redis", "reconciler"}), True

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        self.step = rng.choice(["guardian-fenced", "guardian-renewed", "guardian-opened"])
        losing = asyncio.create_task(self._lose(scene, rng))
        try:
            await super().strike(scene, rng)
        finally:
            await losing
        self.effect = f"{self.step}: {self.effect}"

    async def _lose(self, scene: Scene, rng: random.Random) -> None:
        await asyncio.sleep(0.8)
        if self.step == "guardian-fenced":  # there must be something left to be fenced
            await cut_file(scene.world.redis, rng)
        else:
            await empty(scene.world.redis, rng)

    async def heal(self, scene: Scene) -> None:
        await super().heal(scene)
        if not scene.world.redis.child.running:
            await scene.world.redis.start()


class PausedWorker(Fault):
    """8: a worker sleeps until its holds were reaped, then goes on and settles them late."""

    number, name, parts = "8", "worker asleep past its holds' expiry", frozenset({"worker"})

    def __init__(self) -> None:
        super().__init__()
        self._pid = 0

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        rich = scene.load.customer("rich")
        streams = [
            scene.load.plain(rich, stream=True, tokens=rng.randint(60, 90), itl_ms=100) for _ in range(2 * WORKERS)
        ]
        running = [asyncio.create_task(scene.load.note(a, send_raw(scene.world.port, a))) for a in streams]
        await asyncio.sleep(rng.uniform(0.8, 1.5))
        before = await _reaped(scene.world)
        self._pid = scene.world.worker_pid(rng.randrange(WORKERS))
        if not self._pid:
            raise DidNotFire("there was no worker to pause")
        stop_process(self._pid)
        await asyncio.sleep(EXPIRY_S + SWEEP_S)
        await until(lambda: _more_reaped(scene.world, before), within_s=5, every_s=0.3)
        continue_process(self._pid)
        await asyncio.gather(*running)
        reaped = await _reaped(scene.world) - before
        if not reaped:
            raise DidNotFire("no hold was reaped")
        self.happened(f"{reaped} holds reaped while it slept")

    async def heal(self, scene: Scene) -> None:
        if self._pid:
            continue_process(self._pid)


async def _reaped(world: World) -> int:
    async with world.sql() as conn:
        return int(await conn.fetchval("SELECT count(*) FROM ledger.usage_event WHERE kind = 'reap'"))


async def _more_reaped(world: World, before: int) -> bool:
    return await _reaped(world) > before


class FullJournal(Fault):
    """13b: a worker cannot write any more, neither its journal nor its log."""

    number, name, parts = "13b", "disk of a worker full", frozenset({"worker"})

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        # One that serves: a worker that starts on a full disk says so and ends, and is started again.
        slot = rng.randrange(WORKERS)
        pid = scene.world.worker_pid(slot)
        if not pid or not scene.world.is_ready(slot):
            raise DidNotFire("there was no worker that served")
        if not limit_files([pid], 0):
            raise DidNotFire("it had ended")
        self._pid = pid
        before = Path(f"/proc/{pid}/io").read_text()
        await asyncio.sleep(rng.uniform(1.5, 4.0))
        if not _lives(pid):
            scene.findings.wrong("suite", "a worker died of a full disk", f"pid {pid}")
        elif before == Path(f"/proc/{pid}/io").read_text():
            raise DidNotFire("it wrote nothing")
        limit_files([pid], None)
        self.happened(f"pid {pid} could not write")

    def __init__(self) -> None:
        super().__init__()
        self._pid = 0

    async def heal(self, scene: Scene) -> None:
        if self._pid:
            limit_files([self._pid], None)


class PausedReconciler(Fault):
    """9: the leader sleeps past its lease, another takes over, the first wakes in the middle of its work."""

    number, name, parts = "9", "two reconcilers, the first asleep", frozenset({"reconciler"})

    def __init__(self) -> None:
        super().__init__()
        self._pid = 0

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        holder, fence = await _leader(scene.world)
        if holder not in (scene.world.reconciler_pid(), scene.world.standby.pid if scene.world.standby else 0):
            raise DidNotFire(f"the leader, process {holder}, is not there")
        self._pid = holder
        stop_process(holder)

        async def taken_over() -> bool:
            return (await _leader(scene.world))[1] > fence

        if not await until(taken_over, within_s=25, every_s=0.3):
            raise DidNotFire("nobody took over")
        await asyncio.sleep(rng.uniform(0.2, 1.5))
        continue_process(holder)
        now = await _leader(scene.world)
        self.happened(f"fence {fence} → {now[1]} while pid {holder} slept")
        await asyncio.sleep(1.0)

    async def heal(self, scene: Scene) -> None:
        if self._pid:
            continue_process(self._pid)
        await scene.world.restart_standby()


async def _leader(world: World) -> tuple[int, int]:
    """The process that books shard 0, and its token."""
    async with world.sql() as conn:
        row = await conn.fetchrow("SELECT holder, fence FROM ledger.reconcile_checkpoint WHERE shard = 0")
    words = row["holder"].split() if row is not None else []
    return (int(words[1]) if len(words) > 1 else 0), (row["fence"] if row is not None else 0)
