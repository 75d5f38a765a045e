"""What others saw: the simulators (what was delivered), and the workers' eyewitness (which request got which hold)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from backends.simulator.process import SimulatorProcess
from tests.faults.ear import Ear
from tests.system.wire import ask

POLL_S = 2.0
_ENDED = ("finished", "cancelled", "failed")


@dataclass(frozen=True, slots=True)
class Delivery:
    """One request as an engine knows it."""

    state: str
    fault: str | None
    stream: bool
    prompt: int
    completion: int

    @property
    def served(self) -> bool:
        return self.state in ("finished", "cancelled")


@dataclass(slots=True)
class Witness:
    """Collects until somebody takes it."""

    ear: Ear
    simulators: list[SimulatorProcess]
    deliveries: dict[str, dict[tuple[int, int], Delivery]] = field(default_factory=dict)
    holds: dict[str, list[str]] = field(default_factory=dict)
    """By the client's name of a try."""

    async def watch(self) -> None:
        """Look again and again, until cancelled: the engines remember a few thousand requests only."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.look(limit=600)

    async def look(self, *, limit: int = 5000) -> None:
        for number, simulator in enumerate(self.simulators):
            answer = await ask(simulator.port, "GET", f"/sim/requests?limit={limit}")
            for record in answer.json["requests"]:
                tag = record["body"].get("tag")
                if tag:
                    self.deliveries.setdefault(tag, {})[number, record["number"]] = Delivery(
                        record["state"],
                        record["fault"],
                        record["stream"],
                        record["prompt_tokens"],
                        record["completion_tokens"],
                    )

    async def settle(self) -> None:
        """Look a last time, when everything has ended."""
        async with asyncio.timeout(30):
            while True:
                await self.look()
                every = [d for found in self.deliveries.values() for d in found.values()]
                if all(delivery.state in _ENDED for delivery in every):
                    break
                await asyncio.sleep(0.3)
        for name, holds in self.ear.take().items():
            self.holds.setdefault(name, []).extend(holds)

    async def forget(self) -> None:
        """What was checked is not needed any more."""
        self.deliveries, self.holds = {}, {}
        for simulator in self.simulators:
            await ask(simulator.port, "DELETE", "/sim/requests")

    def of(self, tag: str) -> list[Delivery]:
        """All that engines did for one piece of work."""
        return list(self.deliveries.get(tag, {}).values())

    def faults(self) -> Iterable[str]:
        """The faults that engines showed."""
        return (d.fault for found in self.deliveries.values() for d in found.values() if d.fault)
