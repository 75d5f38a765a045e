"""What a fault is: something that is done to the world, undone, and proven to have happened."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import ClassVar

from tests.faults.findings import Findings
from tests.faults.load import Load
from tests.faults.model import Model
from tests.faults.world import World


@dataclass(slots=True)
class Scene:
    """What a fault may use. ``findings`` takes what the fault itself finds wrong."""

    world: World
    load: Load
    model: Model
    findings: Findings


class Fault:
    """One way to break things. Subclasses say what is done; ``fired`` counts effects that were seen, never attempts.

    ``number`` is that of the design's list. ``parts`` are what must be whole before and is broken meanwhile; faults
    that share one never run at once.
    """

    number: ClassVar[str] = ""
    name: ClassVar[str] = ""
    parts: ClassVar[frozenset[str]] = frozenset()
    loses: ClassVar[bool] = False
    clock_jumps: ClassVar[bool] = False
    silences: ClassVar[bool] = False
    """Whether heartbeats may not reach Redis meanwhile."""
    why_not: ClassVar[str] = ""
    """Why this machine cannot have it; empty where it can."""

    def __init__(self) -> None:
        self.fired = 0
        self.effect = ""
        self.unanswering_s = (0.0, 0.0)
        """From when to when Postgres surely answered nobody, if it did not."""

    async def strike(self, scene: Scene, rng: random.Random) -> None:
        """Break it, and see that it is broken."""
        raise NotImplementedError

    async def heal(self, scene: Scene) -> None:
        """Make everything whole that is not the product's own work. Also called when :meth:`strike` failed."""

    def happened(self, effect: str, times: int = 1) -> None:
        """The effect was seen."""
        self.fired += times
        self.effect = effect


class DidNotFire(Exception):
    """The effect was not seen this time; the fault is tried again later."""


async def until(condition: Callable[[], bool | Awaitable[bool]], *, within_s: float, every_s: float = 0.05) -> bool:
    """Wait for something; false when the time is over first."""
    give_up_s = time.monotonic() + within_s
    while True:
        answer = condition()
        if await answer if not isinstance(answer, bool) else answer:
            return True
        if time.monotonic() > give_up_s:
            return False
        await asyncio.sleep(every_s)
