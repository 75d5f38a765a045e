"""One run: load without pause, faults in random order, and every few minutes a halt in which everything is checked.

Two faults may be under way at once, as long as they break different parts. Each is struck at least once; then they go
on at random until the time is over. Everything random comes from the seed; when processes notice does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.books import check_books, check_redis, read_booked, read_money
from tests.faults.clients import send_raw
from tests.faults.fault import DidNotFire, Fault, Scene
from tests.faults.findings import Findings
from tests.faults.load import Load
from tests.faults.model import Disturbance, Model
from tests.faults.quiet import audit, journals_left, wait_quiet
from tests.faults.servers import CannotHappen
from tests.faults.witness import Witness
from tests.faults.world import World

LANES = 2
TRIES = 4
"""A fault that did not fire is tried so many times before it counts as one that never will."""

CHECK_EVERY_S = 180.0
RECOVERY_S = 60.0
PAUSE_S = (0.2, 2.0)


@dataclass(slots=True)
class Row:
    """How one fault fared."""

    fault: Fault
    tries: int = 0
    down_s: int = 0
    most_recovery_s: float = 0.0
    said: str = ""


@dataclass(slots=True)
class Run:
    """The whole run. ``tell`` hears a line of progress now and then."""

    world: World
    seed: int
    seconds: float
    faults: list[type[Fault]]
    tell: Callable[[str], None] = print
    rows: list[Row] = field(init=False)
    findings: Findings = field(default_factory=Findings)
    disturbances: list[Disturbance] = field(default_factory=list)
    _parts: set[str] = field(default_factory=set)
    _todo: list[Row] = field(default_factory=list)
    _under_way: set[str] = field(default_factory=set)
    _ends_s: float = 0.0

    def __post_init__(self) -> None:
        self.rows = [Row(fault()) for fault in self.faults]

    async def run(self) -> Findings:
        """Do it all; the findings are empty of violations if the money is right."""
        world, rng = self.world, random.Random(self.seed)
        load = Load(world.port, self.seed, world.register)
        witness = Witness(world.ear, world.simulators)
        scene = Scene(world, load, Model(), self.findings)
        await load.set_up()
        await asyncio.sleep(1.0)
        watching = asyncio.create_task(witness.watch())
        load.start()
        self._todo = [row for row in self.rows if not row.fault.why_not]
        rng.shuffle(self._todo)
        self._ends_s = time.monotonic() + self.seconds
        try:
            while True:
                until_s = time.monotonic() + CHECK_EVERY_S
                lanes = [
                    asyncio.create_task(self._lane(scene, random.Random(rng.random()), until_s)) for _ in range(LANES)
                ]
                while not all(lane.done() for lane in lanes):
                    await asyncio.sleep(1.0)
                    self._progress(load)
                for lane in lanes:
                    lane.result()
                await self._check(scene, witness)
                if self.findings.violations or (time.monotonic() >= self._ends_s and not self._todo):
                    break
                load.resume()
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            load.resume()
            await load.stop()
        self._judge_faults()
        return self.findings

    # -- faults ----------------------------------------------------------------------------------------------

    async def _lane(self, scene: Scene, rng: random.Random, until_s: float) -> None:
        """One fault after another, until it is time for a check."""
        while time.monotonic() < until_s and (self._todo or time.monotonic() < self._ends_s):
            await asyncio.sleep(rng.uniform(*PAUSE_S))
            row = self._next(rng)
            if row is None:
                continue
            self._parts |= row.fault.parts
            self._under_way.add(row.fault.name)
            try:
                await self._strike(scene, row, rng)
            finally:
                self._parts -= row.fault.parts
                self._under_way.discard(row.fault.name)

    def _next(self, rng: random.Random) -> Row | None:
        possible = [row for row in self._todo if not row.fault.parts & self._parts]
        if possible:
            self._todo.remove(possible[0])
            return possible[0]
        if self._todo or time.monotonic() >= self._ends_s:
            return None
        possible = [row for row in self.rows if not row.fault.parts & self._parts and not row.fault.why_not]
        return rng.choice(possible) if possible else None

    async def _strike(self, scene: Scene, row: Row, rng: random.Random) -> None:
        fault, begin_s = row.fault, time.time()
        row.tries += 1
        fired = fault.fired
        alone = not self._under_way - {fault.name}
        try:
            await fault.strike(scene, rng)
        except DidNotFire as reason:
            row.said = str(reason)
        except CannotHappen as reason:
            fault.why_not = str(reason)  # type: ignore[misc]  # of this machine, not of the class
        except Exception as error:
            row.said = f"{type(error).__name__}: {error}"
            (scene.world.folder / "trouble").open("a").write(f"{fault.name}\n{traceback.format_exc()}\n")
        try:
            await fault.heal(scene)
        finally:
            healed_s = time.monotonic()
            recovered = await self._recovered(scene)
            end_s = time.time()
            self.disturbances.append(
                Disturbance(
                    fault.name,
                    begin_s,
                    end_s,
                    loses=fault.loses,
                    clock_jumps=fault.clock_jumps,
                    silences=fault.silences,
                    unanswering_s=fault.unanswering_s,
                )
            )
        row.most_recovery_s = max(row.most_recovery_s, time.monotonic() - healed_s)
        row.down_s += sum(begin_s <= second <= end_s for second in scene.load.down_s)
        if fault.fired == fired and row.tries < TRIES and not fault.why_not:
            self._todo.append(row)
        if not recovered and alone and not self._under_way - {fault.name}:
            scene.findings.wrong("not quiet", f"no request was served {RECOVERY_S:g} s after {fault.name}", row.said)

    async def _recovered(self, scene: Scene) -> bool:
        """Until requests are served again, by every worker."""
        give_up_s = time.monotonic() + RECOVERY_S
        served = 0
        flat = scene.load.customer("flat")
        while served < 3:
            if time.monotonic() > give_up_s:
                return False
            attempt = await scene.load.note(probe := scene.load.plain(flat), send_raw(scene.world.port, probe))
            served = served + 1 if attempt.finished else 0
            if not served:
                await asyncio.sleep(0.25)
        return True

    # -- checks ----------------------------------------------------------------------------------------------

    async def _check(self, scene: Scene, witness: Witness) -> None:
        """Halt, heal, wait until quiet, try everyone once, and compare everything."""
        world, load, findings = scene.world, scene.load, self.findings
        self.tell("halt: waiting until quiet")
        await load.pause()
        await world.wait_serving()
        await world.restart_standby()
        if await wait_quiet(world, findings):
            await self._try_everyone(scene)
            await wait_quiet(world, findings)
        await witness.settle()
        attempts = load.take()
        async with world.sql() as conn:
            booked = await read_booked(conn, scene.model.known)
            deliveries = {tag: witness.of(tag) for tag in {a.tag for a in attempts}}
            findings.add(scene.model.check(attempts, deliveries, witness.holds, booked, self.disturbances))
            scene.model.check_money(world.register.customers, await read_money(conn), findings)
            await check_books(conn, findings)
            await check_redis(conn, world.redis.url, findings, shards=world.settings.shards)
        await audit(world, findings)
        for left in journals_left(world):
            findings.wrong("lost", f"settlements that nobody wanted: {left}", left.read_text()[:2000])
        if broken := world.broken_hooks():
            findings.wrong("suite", "a hook does not fit the product any more", broken)
        await witness.forget()
        self.tell(f"checked: {findings.counts['charges compared']} charges, {len(findings.violations)} violations")

    async def _try_everyone(self, scene: Scene) -> None:
        """Nothing may be locked away: who has credit is served, who has none is told so."""
        async with scene.world.sql() as conn:
            money = await read_money(conn)
        for customer in scene.world.register.customers:
            have = money[customer.org_id]
            attempt = await scene.load.note(probe := scene.load.plain(customer), send_raw(scene.world.port, probe))
            if customer.flat_nanos is None and customer.name == "poor":
                continue
            expected = 200 if have.left >= (customer.flat_nanos or 1_000_000) else 402
            if attempt.status != expected:
                self.findings.wrong(
                    "wrong 402" if attempt.status == 402 else "not quiet",
                    f"{customer.name} has {have.left} and got {attempt.status} instead of {expected}",
                    f"{attempt.told()} {have}",
                )

    def _judge_faults(self) -> None:
        for row in self.rows:
            if not row.fault.fired and not row.fault.why_not:
                self.findings.wrong("suite", f"the fault never fired: {row.fault.number} {row.fault.name}", row.said)

    def _progress(self, load: Load) -> None:
        left_s = max(0.0, self._ends_s - time.monotonic())
        fired = sum(row.fault.fired > 0 for row in self.rows)
        self.tell(
            f"{left_s:4.0f} s left, {load.counts['attempts']} requests, {fired} of {len(self.rows)} faults fired, "
            f"now: {', '.join(sorted(self._under_way)) or 'none'}"
        )
