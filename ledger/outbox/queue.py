"""The settlements that wait for Redis: in batches, those of one hold in their order.

Floor: ``ledger`` (pure).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ledger.outbox.values import Item


class DeliveryQueue:
    """A line for each hold, and turns for those whose first item may be sent."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Item]] = {}
        self._turns: deque[str] = deque()
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
        line = self._lines.get(hold_id)
        if line is None:
            self._lines[hold_id] = deque((item,))
            self._turns.append(hold_id)
        else:
            line.append(item)

    def take(self, at_most: int) -> list[Item]:
        """Items to send now. Each is then to be put ``back`` or ``done``; until then its hold's line stands."""
        return [self._lines[self._turns.popleft()][0] for _ in range(min(len(self._turns), at_most))]

    def back(self, items: Sequence[Item]) -> None:
        """These were not taken by anyone: they have another turn."""
        self._turns.extend(item.settlement.hold_id for item in items)

    def done(self, item: Item) -> None:
        """The item has left the queue."""
        hold_id = item.settlement.hold_id
        line = self._lines[hold_id]
        assert line[0] is item, "only the first of a line is ever sent"
        line.popleft()
        self._count -= 1
        if line:
            self._turns.append(hold_id)
        else:
            del self._lines[hold_id]
