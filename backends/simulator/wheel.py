"""One timer for all streams: due work lies in slots of a millisecond, and the loop is asked once per slot.

Thousands of streams with a token every few milliseconds would otherwise cost a task or a loop timer each.
Putting a stream back costs one list append; the heap only holds slot numbers.
"""

import asyncio
import heapq
import math
from typing import Protocol

TICK_S = 0.001


class Timed(Protocol):
    """Something that wants to be woken at a time."""

    def wake(self, now_s: float) -> None:
        """Do what is due. Must check for itself whether it is still wanted."""


class Wheel:
    """Wakes things at their time, in the event loop, in order of their slots."""

    __slots__ = ("_armed_for", "_handle", "_loop", "_order", "_slots")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, list[Timed]] = {}
        self._order: list[int] = []
        self._armed_for: int | None = None
        self._handle: asyncio.Handle | None = None

    def now_s(self) -> float:
        """The wheel's clock: the loop's, in seconds."""
        return self._loop.time()

    def at(self, due_s: float, timed: Timed) -> None:
        """Wake `timed` at `due_s` or up to one tick later; a time in the past means the next pass."""
        slot = math.ceil(due_s / TICK_S - 1e-6)
        waiting = self._slots.get(slot)
        if waiting is not None:
            waiting.append(timed)
            return
        self._slots[slot] = [timed]
        heapq.heappush(self._order, slot)
        if self._armed_for is None or slot < self._armed_for:
            self._arm(slot)

    def _arm(self, slot: int) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed_for = slot
        delay_s = slot * TICK_S - self._loop.time()
        self._handle = self._loop.call_later(delay_s, self._turn) if delay_s > 0 else self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Wake what is due now. What asks to be woken in the past again waits for the next pass of the loop."""
        self._handle = None
        # Holding the mark at "now" keeps `at` from arming while this pass still hands out work.
        self._armed_for = -1
        now_s = self._loop.time()
        current = int(now_s / TICK_S + 1e-6)
        due: list[Timed] = []
        while self._order and self._order[0] <= current:
            due += self._slots.pop(heapq.heappop(self._order))
        for timed in due:
            try:
                timed.wake(now_s)
            except Exception as error:  # one broken stream must not stop the clock of the others
                self._loop.call_exception_handler({"message": f"{timed!r} failed when woken", "exception": error})
        self._armed_for = None
        if self._order:
            self._arm(self._order[0])
