"""When to ask the books about what was delivered, and when to deliver it again; pure, times are given.

Floor: ``ledger`` (pure). Kept small: there may be hundreds of thousands, about 250 bytes each.

A settlement is first asked for ``ask_after_s`` after its delivery, and then less and less often. What is still not in
the books ``redeliver_after_s`` after its delivery, and Postgres has just said so, is delivered again; each time the
next pause is twice as long, up to ``MOST_PAUSE_S``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.counter.values import Settlement
from ledger.outbox.values import Shelf

MOST_PAUSE_S = 300.0
_STEPS = (1, 1, 2, 4, 8, 15, 30)
"""Pauses between two questions, in units of ``ask_after_s``; the last one repeats."""


@dataclass(slots=True, eq=False)
class Unbooked:
    """One settlement that Redis has confirmed. ``settlement``: only if the disk does not have it (number 0)."""

    hold_id: str
    shelf: Shelf
    number: int
    times_delivered: int
    settlement: Settlement | None
    again_at_s: float = 0.0
    due_at_s: float = 0.0
    asked: int = 0


class BookedWatch:
    """Keeps what was delivered and not booked, in the order in which it is to be asked for."""

    def __init__(self, *, ask_after_s: float, redeliver_after_s: float) -> None:
        self._ask_after_s = ask_after_s
        self._redeliver_after_s = redeliver_after_s
        # One queue for each pause: what is put in later is due later, so nothing needs sorting.
        self._queues: list[deque[Unbooked]] = [deque() for _ in _STEPS]
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, items: Sequence[Unbooked], now_s: float) -> None:
        """Redis has just confirmed them, or did so some time ago and they were only now read back."""
        due_at_s = now_s + _STEPS[0] * self._ask_after_s
        for unbooked in items:
            pause_s = self._redeliver_after_s
            if unbooked.times_delivered > 1:
                pause_s *= 2 ** min(unbooked.times_delivered - 1, 30)
                pause_s = min(pause_s, max(MOST_PAUSE_S, self._redeliver_after_s))
            unbooked.again_at_s = now_s + pause_s
            unbooked.asked = 0
            unbooked.due_at_s = due_at_s
        self._count += len(items)
        self._queues[0].extend(items)

    def due(self, now_s: float, at_most: int) -> list[Unbooked]:
        """Take out what is to be asked for now. Put each ``back`` unless it is booked or delivered again."""
        found: list[Unbooked] = []
        for queue in self._queues:
            while queue and queue[0].due_at_s <= now_s and len(found) < at_most:
                found.append(queue.popleft())
        self._count -= len(found)
        return found

    def back(self, items: Sequence[Unbooked], now_s: float) -> None:
        """These are not booked yet, or nobody could be asked."""
        self._count += len(items)
        for unbooked in items:
            unbooked.asked = min(unbooked.asked + 1, len(_STEPS) - 1)
            self._schedule(unbooked, now_s)

    def hurry(self, now_s: float) -> None:
        """Ask for everything at once, and deliver again what is not booked: Redis may have lost it."""
        for queue in self._queues:
            for unbooked in queue:
                unbooked.due_at_s = min(unbooked.due_at_s, now_s)
                unbooked.again_at_s = min(unbooked.again_at_s, now_s)

    def _schedule(self, unbooked: Unbooked, now_s: float) -> None:
        step = unbooked.asked
        left_s = unbooked.again_at_s - now_s
        while step and left_s > 0 and _STEPS[step] * self._ask_after_s > left_s + self._ask_after_s:
            step -= 1  # it is asked for as soon as it may be delivered again
        unbooked.due_at_s = now_s + _STEPS[step] * self._ask_after_s
        self._queues[step].append(unbooked)
