"""Where the ledger stands: who books, how far, what was lost and frozen, and what needs a person.

Floor: edge. The books are read first and Redis after them, so events that are not booked yet are never counted too low.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from ledger.books.database import Pool, Record, acquired
from ledger.books.epochs import EpochStory, GuardianEvent, current_epochs, epoch_stories, guardian_events
from ledger.books.terms import LEASE_S
from ledger.counter.values import CounterUnavailable
from ledger.queries import query

QUERY_TIMEOUT_S: Final = 120.0
SILENT_TOO_LONG_S: Final = 2 * LEASE_S
"""A term that was renewed so long ago has no living holder."""

GRANTS_TOO_LONG: Final = timedelta(minutes=5)
RELEASE_TOO_LONG: Final = timedelta(minutes=5)
UNSEALED_TOO_LONG: Final = timedelta(days=1)


class Look(Protocol):
    """What a shard of Redis is like; see ``ledger.counter.door.ShardLook``."""

    @property
    def epoch(self) -> int | None:
        """Its epoch; None: it has no counter, 0: it is fenced."""

    @property
    def seq(self) -> int:
        """The number of its last event."""

    @property
    def script_known(self) -> bool:
        """Whether it knows our script, so that callers are served."""


Looker = Callable[[int], Awaitable[Look]]


@dataclass(frozen=True, slots=True)
class RedisShard:
    """One shard as Redis shows it. ``trouble``: why it could not be asked; then the rest says nothing."""

    epoch: int | None = None
    seq: int = 0
    script_known: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard in the books. ``silent_s``: since its holder last renewed the term; None: nobody ever held it.

    ``lag_events``: in Redis and not booked; None: not known.
    """

    shard: int
    epoch: int
    holder: str
    fence: int
    silent_s: float | None
    booked_epoch: int
    booked_seq: int
    witnessed_seq: int | None
    redis: RedisShard | None
    lag_events: int | None

    @property
    def led(self) -> bool:
        """Whether somebody books it."""
        return self.silent_s is not None and self.silent_s <= SILENT_TOO_LONG_S


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over everybody. ``unsealed``: transfers that are in no audit block yet."""

    organizations: int
    available_nanos: int
    escrow_nanos: int
    frozen_nanos: int
    pending_grants: int
    pending_grant_nanos: int
    pending_since: datetime | None
    carried_holds: int
    carried_expired: int
    carried_held_nanos: int
    carried_accrued_nanos: int
    anomalies: int
    block_number: int | None
    block_hash: str | None
    block_until: datetime | None
    unsealed_transfers: int
    unsealed_since: datetime | None
    now: datetime


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """Everything at a glance. ``lost``: epochs whose loss was answered, newest first; ``attention``: for a person."""

    shards: tuple[ShardState, ...]
    totals: Totals
    lost: tuple[EpochStory, ...]
    events: tuple[GuardianEvent, ...]
    attention: tuple[str, ...]

    @property
    def unreachable(self) -> bool:
        """Whether Redis was asked and did not answer."""
        return any(shard.redis is not None and shard.redis.trouble for shard in self.shards)


async def status(pool: Pool, shards: int, *, look: Looker | None, events: int = 20) -> LedgerStatus:
    """Look at the books and, if it can be asked, at Redis.

    Args:
        shards: how many there are.
        look: asks one shard of Redis; None leaves it out.
        events: how many of the guardian's last events.

    Raises:
        LedgerUnavailable. A Redis that can't be asked is part of the answer.
    """
    async with acquired(pool, "read the status") as conn:
        epochs = await current_epochs(conn, shards)
        rows = await conn.fetch(query("status_shards"), range(shards), epochs, timeout=QUERY_TIMEOUT_S)
        summed = await conn.fetchrow(query("status_totals"), timeout=QUERY_TIMEOUT_S)
        beyond = await conn.fetch(
            "SELECT shard FROM ledger.reconcile_checkpoint WHERE shard >= $1 AND seq > 0 ORDER BY shard", shards
        )
    assert summed is not None
    redis = await asyncio.gather(*[_ask(look, shard) for shard in range(shards)])
    states = tuple(_shard(row, seen) for row, seen in zip(rows, redis, strict=True))
    totals = _totals(summed)
    lost = tuple(story for story in await epoch_stories(pool) if story.closes is not None)
    seen_events = tuple(await guardian_events(pool, limit=max(events, 10 * shards)))
    attention = [
        *_about_shards(states, seen_events, [row["shard"] for row in beyond]),
        *_about_money(totals, lost),
    ]
    return LedgerStatus(states, totals, lost, seen_events[:events], tuple(attention))


async def _ask(look: Looker | None, shard: int) -> RedisShard | None:
    if look is None:
        return None
    try:
        found = await look(shard)
    except CounterUnavailable as error:
        return RedisShard(trouble=error.detail)
    return RedisShard(found.epoch, found.seq, found.script_known)


def _shard(row: Record, redis: RedisShard | None) -> ShardState:
    booked_epoch, booked_seq = row["booked_epoch"] or 0, row["booked_seq"] or 0
    lag = None
    if redis is not None and not redis.trouble and redis.epoch == row["epoch"]:
        lag = max(0, redis.seq - (booked_seq if booked_epoch == redis.epoch else 0))
    return ShardState(
        shard=row["shard"],
        epoch=row["epoch"],
        holder=row["holder"] or "",
        fence=row["fence"] or 0,
        silent_s=row["silent_s"],
        booked_epoch=booked_epoch,
        booked_seq=booked_seq,
        witnessed_seq=row["witnessed_seq"],
        redis=redis,
        lag_events=lag,
    )


def _totals(row: Record) -> Totals:
    values: dict[str, Any] = {name: int(value) if name.endswith("_nanos") else value for name, value in row.items()}
    return Totals(**values)


def _about_shards(
    states: Sequence[ShardState], events: Sequence[GuardianEvent], beyond: Sequence[int]
) -> Sequence[str]:
    found = []
    for state in states:
        if state.silent_s is None:
            found.append(f"Nobody has ever booked shard {state.shard}: start a reconciler.")
        elif not state.led:
            found.append(
                f"Nobody books shard {state.shard} since {state.silent_s:.0f} s: see whether the reconciler runs."
            )
        latest = next((event for event in events if event.shard == state.shard), None)
        if latest is not None and latest.kind == "refused":
            why = latest.detail.get("reason", "it does not belong to these books.")
            found.append(f"The guardian keeps shard {state.shard} of Redis closed: {why}")
    if beyond:
        numbers = ", ".join(map(str, beyond))
        found.append(
            f"The books know shard {numbers}, but only {len(states)} are configured: check the setting shards."
        )
    return found


def _about_money(totals: Totals, lost: Sequence[EpochStory]) -> Sequence[str]:
    found = []
    if totals.anomalies:
        found.append(f"Anomalies that nobody has resolved: {totals.anomalies}. See ledger anomalies.")
    for story in lost:
        if _is_overdue(story, totals):
            found.append(
                f"Frozen credit of epoch {story.closes} was due for release at {story.release_after:%Y-%m-%d %H:%M}Z: "
                "see whether the reconciler runs."
            )
    if totals.pending_since is not None and totals.now > totals.pending_since + GRANTS_TOO_LONG:
        found.append(f"{totals.pending_grants} grants wait for Redis since {totals.pending_since:%Y-%m-%d %H:%M:%S}Z.")
    if totals.unsealed_since is not None and totals.now > totals.unsealed_since + UNSEALED_TOO_LONG:
        found.append("Transfers of more than a day ago are in no audit block: see whether the reconciler runs.")
    return found


def _is_overdue(story: EpochStory, totals: Totals) -> bool:
    """Whether credit is frozen for longer than it was to be, and no stream that goes on explains it."""
    if story.released_at is not None or story.release_after is None or totals.carried_holds:
        return False
    return totals.now > story.release_after + RELEASE_TOO_LONG
