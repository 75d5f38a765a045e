"""The ledger in Postgres, as the rest of the house sees it: one object over one pool.

Floor: edge. Everything here is a call into the module that holds the idea (accounts, prices, grants, receipts); this
is the one door, so that callers need not know which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from ledger.books import accounts, discounts, epochs, grants, prices, receipts, recovery
from ledger.books.accounts import Balance, Credit, TopUp
from ledger.books.database import Pool, open_pool
from ledger.books.epochs import EpochMismatch, EpochStory, GuardianEvent
from ledger.books.grants import Delivery, Grant, GrantTaker
from ledger.books.partitions import MonthKeeper
from ledger.books.receipts import Receipt
from ledger.books.recovery import CarriedBeat, Recovered, RecoveredOutcome
from ledger.core.meters import Meter
from ledger.core.pricing import Discount, PriceCard

__all__ = [
    "Balance",
    "CarriedBeat",
    "Credit",
    "Delivery",
    "EpochMismatch",
    "EpochStory",
    "Grant",
    "GuardianEvent",
    "Ledger",
    "Receipt",
    "Recovered",
    "RecoveredOutcome",
    "TopUp",
    "open_pool",
]


class Ledger:
    """Accounts, prices, grants and receipts. Every method raises ``LedgerUnavailable`` when Postgres can't be asked."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._months = MonthKeeper()

    async def open_accounts(self, org_id: str) -> Balance:
        """Open an organization's accounts, once; again it only reads them."""
        return await accounts.open_accounts(self._pool, org_id)

    async def top_up(self, org_id: str, amount_nanos: int, idempotency_key: str, note: str = "") -> TopUp:
        """Book a payment once per key, and grant it. See ``accounts.top_up``; send it with ``deliver_grants``."""
        return await accounts.top_up(
            self._pool,
            self._months,
            org_id=org_id,
            amount_nanos=amount_nanos,
            idempotency_key=idempotency_key,
            note=note,
        )

    async def top_ups(self, org_id: str, *, limit: int = 100) -> list[TopUp]:
        """The latest payments of an organization, newest first."""
        return await accounts.top_ups(self._pool, org_id, limit=limit)

    async def balance(self, org_id: str) -> Balance:
        """What is left, as far as it is booked. Raises ``UnknownAccount``."""
        return await accounts.balance(self._pool, org_id)

    async def credit(self, org_id: str) -> Credit:
        """Paid in, left and charged, from one snapshot. Raises ``UnknownAccount``."""
        return await accounts.credit(self._pool, org_id)

    async def epochs(self, shards: int) -> list[int]:
        """The counter's epoch in each shard; opens the first one when there is none."""
        return await epochs.current_epochs(self._pool, shards)

    async def epoch_stories(self, *, limit: int = 100) -> list[EpochStory]:
        """The latest epochs, and what became of those that they closed, newest first."""
        return await epochs.epoch_stories(self._pool, limit=limit)

    async def guardian_events(self, *, limit: int = 50) -> list[GuardianEvent]:
        """What the guardian saw and did last, newest first."""
        return await epochs.guardian_events(self._pool, limit=limit)

    async def witness(self, shard: int, epoch: int, seq: int) -> None:
        """Record that this event of Redis exists."""
        await epochs.witness(self._pool, shard, epoch, seq)

    async def book_recovered(self, items: Sequence[Recovered]) -> list[RecoveredOutcome]:
        """Book the ends of holds that Redis does not know, each once. See ``recovered.book_recovered``."""
        return await recovery.book_recovered(self._pool, self._months, items)

    async def booked_holds(self, hold_ids: Sequence[str]) -> set[str]:
        """Which of these holds have their settlement in the books."""
        return await recovery.booked_holds(self._pool, hold_ids)

    async def carry_holds(self, beats: Sequence[CarriedBeat]) -> None:
        """Keep holds of lost epochs whose streams go on."""
        await recovery.carry_holds(self._pool, beats)

    async def pending_grants(self, org_id: str | None = None) -> list[Grant]:
        """Grants that Redis has not confirmed, in sending order."""
        return await grants.pending_grants(self._pool, org_id)

    async def mark_granted(self, delivered: Sequence[Grant]) -> None:
        """Record that Redis has confirmed these."""
        await grants.mark_granted(self._pool, delivered)

    async def deliver_grants(self, counter: GrantTaker, org_id: str | None = None) -> Delivery:
        """Send what is pending to Redis; safe to repeat."""
        return await grants.deliver_grants(self._pool, counter, org_id)

    async def set_price(
        self, endpoint_id: str, rates: Mapping[Meter, int], effective_from: datetime | None = None
    ) -> PriceCard:
        """Give an endpoint a price from a moment on. See ``prices.set_price``."""
        return await prices.set_price(self._pool, endpoint_id=endpoint_id, rates=rates, effective_from=effective_from)

    async def price_cards(self, endpoint_id: str) -> list[PriceCard]:
        """Every card an endpoint ever had, oldest first."""
        return await prices.price_cards(self._pool, endpoint_id)

    async def current_cards(
        self, at: datetime | None = None, *, endpoint_id: str | None = None
    ) -> dict[str, tuple[PriceCard, ...]]:
        """Present and future cards by endpoint, each oldest first."""
        return await prices.current_cards(self._pool, at, endpoint_id=endpoint_id)

    async def set_discount(
        self, org_id: str, bps: int, *, endpoint_id: str | None = None, effective_from: datetime | None = None
    ) -> Discount:
        """Give an organization a discount from a moment on. See ``discounts.set_discount``."""
        return await discounts.set_discount(
            self._pool, org_id=org_id, bps=bps, endpoint_id=endpoint_id, effective_from=effective_from
        )

    async def end_discount(
        self, org_id: str, *, endpoint_id: str | None = None, effective_to: datetime | None = None
    ) -> Discount:
        """Close the discount that is open. See ``discounts.end_discount``."""
        return await discounts.end_discount(
            self._pool, org_id=org_id, endpoint_id=endpoint_id, effective_to=effective_to
        )

    async def discounts(self, org_id: str) -> list[Discount]:
        """Every discount an organization ever had."""
        return await discounts.discounts(self._pool, org_id)

    async def receipt(self, request_id: str, *, wait_s: float = 0.0) -> Receipt | None:
        """What one request held, used and cost; None if the books have none within ``wait_s``."""
        return await receipts.receipt(self._pool, request_id, wait_s=wait_s)

    async def receipts(
        self, org_id: str, *, since: datetime, until: datetime, limit: int = 1000, after: str = ""
    ) -> list[Receipt]:
        """An organization's receipts, oldest first; page on with ``after`` (the last request id)."""
        return await receipts.receipts(self._pool, org_id, since=since, until=until, limit=limit, after=after)
