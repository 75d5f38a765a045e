"""The keys that a worker remembers: bounded, by least recent use, with the ids known to be nobody's beside them.

Floor: edges, without I/O and without a clock (times are passed in). It must not know Postgres.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.core.state import Key


@dataclass(frozen=True, slots=True)
class Remembered:
    """A key, the version of its rows that was read, and when that read began (monotonic seconds)."""

    key: Key
    version: str
    read_at_s: float


class KeyCache:
    """At most ``size`` keys and ``absent_size`` ids of which nothing is stored.

    An absent id is believed for ``absent_ttl_s`` seconds. That an id's code is right was checked before: such ids are
    those of keys that were deleted, so few, and their number is in nobody's hand.
    """

    def __init__(self, *, size: int, absent_size: int = 10_000, absent_ttl_s: float = 60.0) -> None:
        self._size = size
        self._absent_size = absent_size
        self._absent_ttl_s = absent_ttl_s
        self._keys: OrderedDict[str, Remembered] = OrderedDict()
        self._of_org: dict[str, set[str]] = {}
        self._absent: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def absent_count(self) -> int:
        """How many ids are remembered as nobody's."""
        return len(self._absent)

    def get(self, key_id: str) -> Remembered | None:
        """What is remembered, and that it was used now."""
        found = self._keys.get(key_id)
        if found is not None:
            self._keys.move_to_end(key_id)
        return found

    def put(self, remembered: Remembered) -> None:
        """Remember a key; the least recently used one goes when the room is full."""
        key = remembered.key
        self.evict(key.id)
        if len(self._keys) >= self._size:
            self.evict(next(iter(self._keys)))
        self._keys[key.id] = remembered
        self._of_org.setdefault(key.org_id, set()).add(key.id)

    def put_absent(self, key_id: str, now_s: float) -> None:
        """Remember that no key has this id."""
        self.evict(key_id)
        if len(self._absent) >= self._absent_size:
            self._absent.popitem(last=False)
        self._absent[key_id] = now_s

    def is_absent(self, key_id: str, now_s: float) -> bool:
        """Whether the id was nobody's a short while ago."""
        since_s = self._absent.get(key_id)
        if since_s is None:
            return False
        if now_s - since_s > self._absent_ttl_s:
            del self._absent[key_id]
            return False
        return True

    def evict(self, key_id: str) -> None:
        """Forget everything about an id."""
        self._absent.pop(key_id, None)
        found = self._keys.pop(key_id, None)
        if found is not None:
            ids = self._of_org[found.key.org_id]
            ids.discard(key_id)
            if not ids:
                del self._of_org[found.key.org_id]

    def evict_org(self, org_id: str) -> None:
        """Forget all keys of an organization."""
        for key_id in tuple(self._of_org.get(org_id, ())):
            self.evict(key_id)

    def versions(self, chunk: int) -> Iterator[tuple[list[str], list[str]]]:
        """Ids and versions of everything remembered now, in chunks; what comes later is not in it."""
        ids = list(self._keys)
        for start in range(0, len(ids), chunk):
            present = [self._keys[key_id] for key_id in ids[start : start + chunk] if key_id in self._keys]
            yield [found.key.id for found in present], [found.version for found in present]
