"""Drift: the difference between what Redis may still spend and what Postgres has set aside for it.

Floor: edge. After both are quiet it is zero, account by account: ``available + held`` in Redis = escrow in Postgres
less the grants that Redis has not applied. The two can only be compared at the same point of the event stream, so the
shard's sequence number is read before and after; a comparison during which an event passed says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ledger.books.database import Pool, acquired
from ledger.counter.values import AccountState, ShardMeta


class CounterAccounts(Protocol):
    """What is asked of the counter."""

    async def account(self, org_id: str) -> AccountState:
        """An organization's account."""

    async def meta(self, shard: int) -> ShardMeta | None:
        """Where a shard stands."""


@dataclass(frozen=True, slots=True)
class Escrow:
    """What Postgres has set aside for Redis: ``expected_nanos`` should still be there."""

    org_id: str
    expected_nanos: int


async def escrows(pool: Pool, *, after_org: str = "", limit: int = 100) -> list[Escrow]:
    """Organizations in the order of their ids, from after one of them."""
    async with acquired(pool, "read the escrow") as conn:
        rows = await conn.fetch(
            """SELECT b.org_id, b.escrow_nanos - coalesce((SELECT sum(amount_nanos) FROM ledger.escrow_grant g
                       WHERE g.org_id = b.org_id AND g.state = 'pending'), 0)::bigint AS expected_nanos
                 FROM ledger.balance b WHERE b.org_id > $1 ORDER BY b.org_id LIMIT $2""",
            after_org,
            limit,
        )
    return [Escrow(row["org_id"], row["expected_nanos"]) for row in rows]


async def booked_seq(pool: Pool, shard: int) -> tuple[int, int]:
    """Epoch and number of the last event that is booked; (0, 0) if none."""
    async with acquired(pool, "read the checkpoint") as conn:
        row = await conn.fetchrow("SELECT epoch, seq FROM ledger.reconcile_checkpoint WHERE shard = $1", shard)
    return (0, 0) if row is None else (row["epoch"], row["seq"])


async def is_quiet(pool: Pool, counter: CounterAccounts, shard: int) -> ShardMeta | None:
    """The shard's position if everything in Redis is booked, else None."""
    meta = await counter.meta(shard)
    if meta is None:
        return None
    epoch, seq = await booked_seq(pool, shard)
    booked_all = (epoch, seq) == (meta.epoch, meta.seq) or (meta.seq == 0 and epoch < meta.epoch)
    return meta if booked_all else None


def differences(expected: Mapping[str, int], found: Mapping[str, AccountState]) -> dict[str, int]:
    """By organization: what Redis has beyond what it should have (negative: less)."""
    return {
        org_id: found[org_id].available_nanos + found[org_id].held_nanos - nanos
        for org_id, nanos in expected.items()
        if org_id in found and found[org_id].available_nanos + found[org_id].held_nanos != nanos
    }


class DriftWatch:
    """Walks over the accounts of all shards, a page at a time, and remembers what differed."""

    def __init__(self, pool: Pool, counter: CounterAccounts, shards: int) -> None:
        self._pool = pool
        self._counter = counter
        self._shards = shards
        self._after_org = ""
        self._found: dict[str, int] = {}

    @property
    def drift_nanos(self) -> int:
        """The sum of all differences found in the last walk, without their signs."""
        return sum(abs(nanos) for nanos in self._found.values())

    @property
    def by_org(self) -> Mapping[str, int]:
        """The differences found, by organization."""
        return self._found

    async def step(self, *, limit: int = 100) -> bool:
        """Compare one page; returns whether it could be compared (nothing moved meanwhile)."""
        before = [await is_quiet(self._pool, self._counter, shard) for shard in range(self._shards)]
        if None in before:
            return False
        page = await escrows(self._pool, after_org=self._after_org, limit=limit)
        found = {escrow.org_id: await self._counter.account(escrow.org_id) for escrow in page}
        after = [await is_quiet(self._pool, self._counter, shard) for shard in range(self._shards)]
        if before != after:
            return False
        differing = differences({escrow.org_id: escrow.expected_nanos for escrow in page}, found)
        for escrow in page:
            self._found.pop(escrow.org_id, None)
        self._found |= differing
        self._after_org = page[-1].org_id if len(page) == limit else ""
        return True
