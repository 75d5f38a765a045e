"""Escrow ahead of need: slices sized by recent spend, refilled before they run dry, returned when nobody needs them.

Floor: ``ledger`` edge; a chore of whoever books a shard, because he sees what is spent. What lies in Redis is what is
frozen for a while if Redis loses its memory, so it is kept to what the next half minute needs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

from ledger.books.database import Pool, acquired, transaction
from ledger.books.grants import deliver_grants, grant_slice
from ledger.core.money import MAX_GRANT_NANOS
from ledger.counter import CreditCounter, Level
from ledger.counter.values import LedgerEvent

SPEND_MEMORY_S = 10.0
"""Time constant of the average of what is spent."""

FORGET_AFTER_S = 120.0
_REFILL_BELOW = 0.5
_TOO_MUCH = 4.0
_KEEP = 2.0
_RETURNS_AT_ONCE = 200


@dataclass(frozen=True, slots=True)
class EscrowPolicy:
    """How much credit lies in Redis.

    Attributes:
        slice_nanos: the least that is granted at a time.
        horizon_s: an active organization has what it spends in so much time.
        idle_s: one that spent nothing for so long gets all of it back to Postgres.
    """

    slice_nanos: int = 100_000_000
    horizon_s: float = 30.0
    idle_s: float = 300.0

    def target_nanos(self, nanos_per_s: float) -> int:
        """What an organization that spends at this rate should have in Redis."""
        return min(MAX_GRANT_NANOS, max(self.slice_nanos, math.ceil(nanos_per_s * self.horizon_s)))

    def refill_nanos(self, level: Level, nanos_per_s: float) -> int:
        """What to grant now; 0 if there is enough."""
        target = self.target_nanos(nanos_per_s)
        return target - level.available_nanos if level.available_nanos < target * _REFILL_BELOW else 0

    def excess_keep_nanos(self, level: Level, nanos_per_s: float) -> int | None:
        """What to leave if far too much lies in Redis; None if it does not."""
        target = self.target_nanos(nanos_per_s) + level.held_nanos
        return math.ceil(target * _KEEP) if level.available_nanos > target * _TOO_MUCH else None


class SpendMeter:
    """How fast each organization has been spending, as an average that fades."""

    def __init__(self) -> None:
        self._rates: dict[str, tuple[float, float]] = {}

    def note(self, events: Iterable[LedgerEvent], now_s: float) -> None:
        """Take note of charges, whenever they happened: they were booked now."""
        spent: dict[str, int] = {}
        for event in events:
            if event.hold:
                spent[event.org] = spent.get(event.org, 0) + max(0, event.amount_nanos)
        for org_id, nanos in spent.items():
            self._rates[org_id] = (self.nanos_per_s(org_id, now_s) + nanos / SPEND_MEMORY_S, now_s)

    def nanos_per_s(self, org_id: str, now_s: float) -> float:
        """The present average."""
        rate, at_s = self._rates.get(org_id, (0.0, now_s))
        return rate * math.exp((at_s - now_s) / SPEND_MEMORY_S)

    def active(self, now_s: float) -> list[str]:
        """Organizations that spent lately; the others are forgotten."""
        self._rates = {org: rate for org, rate in self._rates.items() if now_s - rate[1] < FORGET_AFTER_S}
        return list(self._rates)


class EscrowKeeper:
    """Refills and returns the escrow of the shards that this process books.

    Args:
        leads: whether this process books a shard.
    """

    def __init__(self, pool: Pool, counter: CreditCounter, policy: EscrowPolicy) -> None:
        self._pool = pool
        self._counter = counter
        self._policy = policy
        self._spent = SpendMeter()
        self.refilled_nanos = 0
        self.returned_nanos = 0

    def note(self, events: Iterable[LedgerEvent]) -> None:
        """Take note of a batch that was booked."""
        self._spent.note(events, time.monotonic())

    async def refill(self) -> None:
        """Grant more to whoever will need it soon.

        Raises:
            LedgerUnavailable, CounterUnavailable: again later; whoever comes short meanwhile asks for himself.
        """
        now_s = time.monotonic()
        active = self._spent.active(now_s)
        granted = 0
        for org_id, level in (await self._counter.levels(active)).items() if active else ():
            rate = self._spent.nanos_per_s(org_id, now_s)
            want_nanos = self._policy.refill_nanos(level, rate)
            if want_nanos:
                granted += await self._grant(org_id, want_nanos)
            elif (keep_nanos := self._policy.excess_keep_nanos(level, rate)) is not None:
                self.returned_nanos += await self._counter.give_back(org_id, level.grant_seq, keep_nanos=keep_nanos)
        if granted:
            self.refilled_nanos += granted
            await deliver_grants(self._pool, self._counter)

    async def return_idle(self) -> None:
        """Give back the escrow of organizations that nothing was booked for in a while.

        Raises:
            LedgerUnavailable, CounterUnavailable: again later.
        """
        async with acquired(self._pool, "look for escrow that nobody uses") as conn:
            rows = await conn.fetch(
                """SELECT org_id FROM ledger.balance
                    WHERE escrow_nanos > 0 AND changed_at < now() - make_interval(secs => $1)
                    ORDER BY changed_at LIMIT $2""",
                self._policy.idle_s,
                _RETURNS_AT_ONCE,
            )
        active = set(self._spent.active(time.monotonic()))
        quiet = [row["org_id"] for row in rows if row["org_id"] not in active]
        for org_id, level in (await self._counter.levels(quiet)).items() if quiet else ():
            if level.available_nanos and not level.held_nanos:
                self.returned_nanos += await self._counter.give_back(org_id, level.grant_seq, keep_nanos=0)

    async def _grant(self, org_id: str, want_nanos: int) -> int:
        shard = self._counter.shard_of(org_id)
        async with transaction(self._pool, "grant credit ahead of need") as conn:
            grant = await grant_slice(
                conn, org_id, shard=shard, epoch=self._counter.epoch_of(shard), want_nanos=want_nanos
            )
        return 0 if grant is None else grant.amount_nanos
