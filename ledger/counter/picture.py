"""All accounts in Redis at one known position of the event stream.

Floor: edge. Accounts cannot be read at one moment, but what the audit compares only changes with events. So: position,
accounts, position again; if nothing moved, the picture is as good as one moment's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ledger.core.ids import shard_of
from ledger.counter.values import AccountState, ShardMeta


class CounterReader(Protocol):
    """What is asked of the counter."""

    @property
    def shards(self) -> int:
        """How many shards there are."""

    def epoch_of(self, shard: int) -> int:
        """The epoch that a shard works under."""

    async def meta(self, shard: int) -> ShardMeta | None:
        """Where a shard stands."""

    async def accounts(self, shard: int = 0) -> dict[str, AccountState]:
        """All accounts of a shard."""


@dataclass(frozen=True, slots=True)
class RedisPicture:
    """Redis at the position that is booked. ``epochs``: of each shard.

    ``skipped`` says why there is no picture; ``moving``: trying again may help. ``lost`` says what Redis has lost.
    """

    epochs: tuple[int, ...] = ()
    accounts: Mapping[str, AccountState] = field(default_factory=dict)
    skipped: str = ""
    moving: bool = False
    lost: str = ""

    def epoch_of(self, org_id: str) -> int:
        """The epoch of an organization's account."""
        return self.epochs[shard_of(org_id, len(self.epochs))]


async def picture(counter: CounterReader, booked: Mapping[int, tuple[int, int]]) -> RedisPicture:
    """Read all accounts.

    Args:
        booked: by shard, the epoch and number of the last booked event, from the snapshot to compare with.

    Raises:
        CounterUnavailable.
    """
    before = [await counter.meta(shard) for shard in range(counter.shards)]
    for shard, meta in enumerate(before):
        ours = counter.epoch_of(shard)
        if meta is None or meta.epoch != ours:
            found = "has no counter" if meta is None else f"is at epoch {meta.epoch}"
            return RedisPicture(lost=f"shard {shard} of Redis {found}, the ledger is at epoch {ours}")
        epoch, seq = booked.get(shard, (0, 0))
        waiting = meta.seq - (seq if epoch == meta.epoch else 0)
        if waiting < 0:
            return RedisPicture(lost=f"Redis is {-waiting} events of shard {shard} behind the books")
        if waiting:
            return RedisPicture(skipped=f"{waiting} events of shard {shard} are not booked yet", moving=True)
    accounts: dict[str, AccountState] = {}
    for shard in range(counter.shards):
        accounts |= await counter.accounts(shard)
    after = [await counter.meta(shard) for shard in range(counter.shards)]
    if before != after:
        return RedisPicture(skipped="requests ended while Redis was read", moving=True)
    return RedisPicture(tuple(counter.epoch_of(shard) for shard in range(counter.shards)), accounts)
