"""The audit: recomputes everything that can be recomputed, and lists every difference.

Floor: edge. All of Postgres is read in one repeatable-read snapshot. Redis is compared at exactly that position of the
event stream, so the audit first waits (for a bounded time) until everything is booked; where traffic does not pause,
the comparison with Redis is reported as skipped, never as a difference, and never as agreement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from ledger.books.booking import quantities_of
from ledger.books.database import Pool, PooledConnection, Record, acquired
from ledger.books.discounts import discount_of
from ledger.books.epochs import never_used
from ledger.books.prices import card_of
from ledger.core.pricing import Discount, PriceCard, charge_nanos
from ledger.counter.picture import CounterReader, RedisPicture, picture
from ledger.counter.values import AccountState, CounterUnavailable
from ledger.proof.block_values import Head
from ledger.proof.blocks import ChainReport, verify_chain
from ledger.queries import query

MOST_LISTED: Final = 100
"""Differences listed per check; all of them are counted."""

QUERY_TIMEOUT_S: Final = 3600.0
LATE_DISCOUNT_MS: Final = 300_000
"""How long after its end a discount may still have been given: by a worker that was cut off from the news."""

_PREFETCH: Final = 2000
_RETRY_S: Final = 0.1

SQL_CHECKS: Final[Mapping[str, str]] = {
    "balances": "Every balance is the sum of its transfers, and what came in is what is left plus revenue",
    "transfers": "Every transfer moves money between accounts that its kind allows",
    "events": "Every top-up, grant, return, freeze, release and charge has its transfer, and every transfer its cause",
    "grants": "The grants of each organization are numbered without gap",
    "epochs": "Of every epoch, what was granted is what came back, was charged, was frozen or is left",
    "sequence": "Every event of Redis is booked once, without gap",
    "anomalies": "Nothing was set aside that nobody has resolved",
}
CHAIN: Final = "No transfer of a closed audit block was changed, added or deleted since"
CHARGES: Final = "Every charge is its usage times its price card, less the discount that was in force"
REDIS: Final = "Redis holds what Postgres granted less what was charged, and each account adds up"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be; amounts are in nano-USD."""

    check: str
    subject: str
    expected: str | None
    found: str | None
    note: str


@dataclass(slots=True)
class Check:
    """One promise and how it fared. ``skipped``: why it could not be looked at; empty if it was."""

    name: str
    promise: str
    differences: list[Difference] = field(default_factory=list)
    count: int = 0
    skipped: str = ""

    def differ(self, subject: str, *, expected: object, found: object, note: str) -> None:
        """Count a difference, and list it if there are not too many."""
        self.count += 1
        if len(self.differences) < MOST_LISTED:
            texts = [None if value is None else str(value) for value in (expected, found)]
            self.differences.append(Difference(self.name, subject, texts[0], texts[1], note))


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was looked at, and what differed."""

    checks: tuple[Check, ...]
    organizations: int
    top_ups: int
    grants: int
    transfers: int
    usage_events: int
    paid_in_nanos: int
    charged_nanos: int
    shortfall_nanos: int
    redis_accounts: int
    seconds: float
    recovered_events: int = 0
    frozen_nanos: int = 0
    chain: ChainReport | None = None

    @property
    def differences(self) -> list[Difference]:
        """The listed differences of all checks."""
        return [difference for check in self.checks for difference in check.differences]

    @property
    def difference_count(self) -> int:
        """All differences, also those that are too many to list."""
        return sum(check.count for check in self.checks)

    @property
    def skipped(self) -> list[str]:
        """What could not be looked at, and why."""
        return [f"{check.promise}: {check.skipped}" for check in self.checks if check.skipped]

    @property
    def clean(self) -> bool:
        """No difference anywhere. See ``skipped`` for what this does not cover."""
        return self.difference_count == 0


async def audit(
    pool: Pool, counter: CounterReader | None, *, quiet_timeout_s: float = 10.0, expect_head: Head | None = None
) -> AuditReport:
    """Recompute the books.

    Args:
        counter: to compare with Redis; None leaves it out.
        quiet_timeout_s: how long to wait for a moment in which everything in Redis is booked.
        expect_head: an audit block that was noted elsewhere and must still be in the chain.

    Raises:
        LedgerUnavailable. A Redis that cannot be asked only makes its check skipped.
    """
    begin_s = time.monotonic()
    async with _snapshot(pool, counter, begin_s + quiet_timeout_s) as (conn, redis):
        checks = [await _sql_check(conn, name, promise) for name, promise in SQL_CHECKS.items()]
        checks.append(await _check_charges(conn))
        chain = await verify_chain(conn, expect=expect_head)
        checks.append(_check_chain(chain))
        checks.append(await _check_redis(conn, redis))
        row = await conn.fetchrow(query("audit_totals"), timeout=QUERY_TIMEOUT_S)
    assert row is not None
    return AuditReport(
        checks=tuple(checks),
        organizations=row["organizations"],
        top_ups=row["top_ups"],
        grants=row["grants"],
        transfers=row["transfers"],
        usage_events=row["usage_events"],
        paid_in_nanos=int(row["paid_in_nanos"]),
        charged_nanos=int(row["charged_nanos"]),
        shortfall_nanos=int(row["shortfall_nanos"]),
        redis_accounts=len(redis.accounts),
        seconds=time.monotonic() - begin_s,
        recovered_events=row["recovered_events"],
        frozen_nanos=int(row["frozen_nanos"]),
        chain=chain,
    )


@asynccontextmanager
async def _snapshot(
    pool: Pool, counter: CounterReader | None, until_s: float
) -> AsyncIterator[tuple[PooledConnection, RedisPicture]]:
    """A snapshot of Postgres, and Redis at the same position (or why not)."""
    while True:
        async with acquired(pool, "audit") as conn, conn.transaction(isolation="repeatable_read", readonly=True):
            redis = await _picture(conn, counter)
            if not redis.moving or time.monotonic() >= until_s:
                yield conn, redis
                return
        await asyncio.sleep(_RETRY_S)


async def _picture(conn: PooledConnection, counter: CounterReader | None) -> RedisPicture:
    rows = await conn.fetch("SELECT shard, epoch, seq FROM ledger.reconcile_checkpoint")
    if counter is None:
        return RedisPicture(skipped="Redis was not asked")
    try:
        return await picture(counter, {row["shard"]: (row["epoch"], row["seq"]) for row in rows})
    except CounterUnavailable as error:
        return RedisPicture(skipped=str(error))


async def _sql_check(conn: PooledConnection, name: str, promise: str) -> Check:
    check = Check(name, promise)
    async for row in conn.cursor(query(f"audit_{name}"), prefetch=_PREFETCH, timeout=QUERY_TIMEOUT_S):
        check.differ(row["subject"], expected=row["expected"], found=row["found"], note=row["note"])
    return check


def _check_chain(chain: ChainReport) -> Check:
    check = Check("chain", CHAIN)
    for found in chain.differences:
        check.differ(f"block {found.number}", expected=found.expected, found=found.found, note=found.note)
    return check


async def _check_charges(conn: PooledConnection) -> Check:
    check = Check("charges", CHARGES)
    cards = {row["id"]: card_of(row) for row in await conn.fetch("SELECT * FROM ledger.price_card")}
    discounts: dict[str, list[Discount]] = {}
    for row in await conn.fetch("SELECT * FROM ledger.discount"):
        discounts.setdefault(row["org_id"], []).append(discount_of(row))
    async for row in conn.cursor(query("audit_usage"), prefetch=_PREFETCH, timeout=QUERY_TIMEOUT_S):
        _check_charge(check, row, cards)
        if row["discount_bps"]:
            _check_discount(check, row, discounts.get(row["org_id"], ()))
    return check


def _check_charge(check: Check, row: Record, cards: Mapping[str, PriceCard]) -> None:
    charged_nanos = row["amount_nanos"] + row["shortfall_nanos"]
    if row["kind"] == "orphan":
        check.differ(row["hold_id"], expected="the event that it corrects", found=None, note="a correction of nothing")
    if charged_nanos == 0 and row["kind"] == "void" and not row["corrected"]:
        return  # what failed is not charged, whatever it used
    quantities = quantities_of(row)
    card = cards.get(row["price_card_id"] or "")
    if card is None:
        if charged_nanos or quantities:
            check.differ(row["hold_id"], expected="a price card", found=row["price_card_id"], note="no such price card")
        return
    if card.endpoint_id != row["endpoint_id"]:
        check.differ(
            row["hold_id"], expected=card.endpoint_id, found=row["endpoint_id"], note="price card of another endpoint"
        )
    expected_nanos = charge_nanos(card, quantities, discount_bps=row["discount_bps"])
    if expected_nanos != charged_nanos:
        check.differ(
            row["hold_id"],
            expected=expected_nanos,
            found=charged_nanos,
            note="charge plus shortfall is not usage times price",
        )


def _check_discount(check: Check, row: Record, discounts: Iterable[Discount]) -> None:
    """A discount that was given must have been the organization's, and in force when the request began."""
    started_ms = round(row["started_at"].timestamp() * 1000)
    for given in discounts:
        is_for_it = given.bps == row["discount_bps"] and given.endpoint_id in (None, row["endpoint_id"])
        end_ms = started_ms if given.effective_to_ms is None else given.effective_to_ms + LATE_DISCOUNT_MS
        if is_for_it and given.effective_from_ms <= started_ms <= end_ms:
            return
    check.differ(
        row["hold_id"],
        expected="a discount in force when the request began",
        found=f"{row['discount_bps']} basis points",
        note="no such discount",
    )


async def _check_redis(conn: PooledConnection, redis: RedisPicture) -> Check:
    check = Check("redis", REDIS, skipped=redis.skipped)
    if redis.skipped:
        return check
    if redis.lost:
        if not await never_used(conn):
            check.differ(
                "Redis", expected="the credit that was granted", found=redis.lost, note="Redis has lost credit"
            )
        return check
    expected: dict[str, Record] = {}
    for epoch in sorted(set(redis.epochs)):
        rows = await conn.fetch(query("audit_escrow"), epoch, timeout=QUERY_TIMEOUT_S)
        expected |= {row["org_id"]: row for row in rows if redis.epoch_of(row["org_id"]) == epoch}
    for org_id in sorted(expected.keys() | redis.accounts.keys()):
        _check_account(check, org_id, expected.get(org_id), redis.accounts.get(org_id))
    return check


def _check_account(check: Check, org_id: str, booked: Record | None, found: AccountState | None) -> None:
    if found is None:
        assert booked is not None
        found = AccountState(0, 0, 0, 0, 0, 0)
    used_nanos = found.available_nanos + found.held_nanos + found.spent_nanos + found.returned_nanos
    if found.granted_nanos != used_nanos or min(found.available_nanos, found.held_nanos, found.returned_nanos) < 0:
        check.differ(
            org_id,
            expected=found.granted_nanos,
            found=used_nanos,
            note="granted is not available + held + spent + returned",
        )
    if booked is None:
        check.differ(org_id, expected=None, found=found.granted_nanos, note="an account that the ledger does not know")
        return
    for what, expected, actual in (
        ("available + held", booked["spendable_nanos"], found.available_nanos + found.held_nanos),
        ("granted", booked["granted_nanos"], found.granted_nanos),
        ("spent", booked["spent_nanos"], found.spent_nanos),
        ("returned", booked["returned_nanos"], found.returned_nanos),
        ("grant number", booked["grant_seq"], found.grant_seq),
    ):
        if expected != actual:
            check.differ(org_id, expected=expected, found=actual, note=f"{what} in Redis differs from the books")
