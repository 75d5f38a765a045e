"""The settlements that wait for Redis: in batches, those of one hold in their order.

Floor: ``ledger`` (pure).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ledger.outbox.values import Item


class DeliveryQueue:
    """Turns for items that may be sent, and for each hold that has one, a line of those that must wait behind it."""

    def __init__(self) -> None:
        # A hold has hardly ever more than one settlement, so a line is only made for a second one.
        self._lines: dict[str, deque[Item] | None] = {}
        self._turns: deque[Item] = deque()
        self._count = 0

    def __len__(self) -> int:
        """All items, also those that were taken and are not done."""
        return self._count

    @property
    def ready(self) -> bool:
        """Whether an item may be taken."""
        return bool(self._turns)

    def add(self, item: Item) -> None:
        """Put an item at the end of its hold's line."""
        self._count += 1
        hold_id = item.settlement.hold_id
        lines = self._lines
        if hold_id not in lines:
            lines[hold_id] = None
            self._turns.append(item)
            return
        line = lines[hold_id]
        if line is None:
            line = lines[hold_id] = deque()
        line.append(item)

    def take(self, at_most: int) -> list[Item]:
        """Items to send now. Each is then to be put ``back`` or ``done``; until then its hold's line stands."""
        turns = self._turns
        if len(turns) <= at_most:
            taken = list(turns)
            turns.clear()
            return taken
        return [turns.popleft() for _ in range(at_most)]

    def back(self, items: Sequence[Item]) -> None:
        """These were not taken by anyone: they have another turn."""
        self._turns.extend(items)

    def done(self, item: Item) -> None:
        """The item, which was taken, has left the queue."""
        hold_id = item.settlement.hold_id
        self._count -= 1
        line = self._lines.pop(hold_id)
        if line:
            following = line.popleft()
            self._lines[hold_id] = line or None
            self._turns.append(following)
