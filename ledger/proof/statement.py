"""Statements: what an organization had, paid in, bought and has left in one month.

Floor: edge. Everything is read in one snapshot, and the parts come from different tables on purpose: the opening
balance from the transfers before the month, payments from ``top_up``, charges from ``usage_event``, the closing balance
from what is recorded now less the transfers since. That opening + payments - charges = closing is therefore a proof,
not arithmetic; a statement that fails it says so.

A month is a month in UTC by the time of booking (``posted_at``), as in ``ledger.proof.export``: a request that ended at
midnight may stand in the next month, but a month that is over never changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from typing import Final

from ledger.books.booking import METER_COLUMNS
from ledger.books.database import Pool, PooledConnection, Record, acquired
from ledger.books.partitions import months_ahead
from ledger.books.prices import card_of
from ledger.core.meters import Meter
from ledger.core.pricing import UNITS_PER_RATE, PriceCard, rate_of
from ledger.errors import UnknownAccount
from ledger.queries import query

QUERY_TIMEOUT_S: Final = 600.0
_COLUMNS: Final = {**METER_COLUMNS, Meter.REQUEST: "priced_requests"}


@dataclass(frozen=True, slots=True)
class Payment:
    """Money paid in."""

    id: str
    booked_at: datetime
    amount_nanos: int
    idempotency_key: str
    note: str


@dataclass(frozen=True, slots=True)
class MeterLine:
    """What one meter counted, and what that costs by the price cards, rounded down once."""

    meter: Meter
    units: int
    list_nanos: int


@dataclass(frozen=True, slots=True)
class Purchase:
    """Everything bought from one endpoint under one alias.

    The lines, plus ``rounding_nanos`` (each request is rounded up to a nano), less ``discount_nanos``, less
    ``shortfall_nanos`` (what the credit did not cover) is ``amount_nanos``.
    """

    endpoint_id: str | None
    alias: str | None
    requests: int
    lines: tuple[MeterLine, ...]
    rounding_nanos: int
    discount_nanos: int
    shortfall_nanos: int
    amount_nanos: int


@dataclass(frozen=True, slots=True)
class Corrections:
    """Settlements that came after their hold had been reaped; part of the charges."""

    count: int = 0
    raised_nanos: int = 0
    refunded_nanos: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """One organization and month, in nano-USD. ``over``: whether the month is, so that nothing can be added."""

    org_id: str
    since: datetime
    until: datetime
    over: bool
    opening_nanos: int
    payments: tuple[Payment, ...]
    purchases: tuple[Purchase, ...]
    corrections: Corrections
    short_requests: int
    closing_nanos: int
    available_nanos: int
    escrow_nanos: int
    frozen_nanos: int

    @property
    def paid_in_nanos(self) -> int:
        """All payments of the month."""
        return sum(payment.amount_nanos for payment in self.payments)

    @property
    def charged_nanos(self) -> int:
        """All charges of the month, corrections included."""
        return sum(purchase.amount_nanos for purchase in self.purchases)

    @property
    def shortfall_nanos(self) -> int:
        """What the platform bore because the credit did not cover it."""
        return sum(purchase.shortfall_nanos for purchase in self.purchases)

    @property
    def off_by_nanos(self) -> int:
        """0 if opening + payments - charges = closing; anything else is a fault in the books."""
        return self.opening_nanos + self.paid_in_nanos - self.charged_nanos - self.closing_nanos


async def statement(pool: Pool, org_id: str, month: date) -> Statement:
    """Draw up a month.

    Args:
        month: any day of it.

    Raises:
        UnknownAccount; LedgerUnavailable.
    """
    first = datetime(month.year, month.month, 1, tzinfo=UTC)
    next_month = months_ahead(first, 1)[1]
    span = (first, datetime(next_month.year, next_month.month, 1, tzinfo=UTC))
    async with (
        acquired(pool, "draw up the statement") as conn,
        conn.transaction(isolation="repeatable_read", readonly=True),
    ):
        totals = await conn.fetchrow(query("statement_totals"), org_id, *span, timeout=QUERY_TIMEOUT_S)
        if totals is None:
            raise UnknownAccount(f"There is no account of {org_id}.")
        paid = await conn.fetch(query("export_top_ups"), *span, org_id, timeout=QUERY_TIMEOUT_S)
        bought = await conn.fetch(_bought_sql(), *span, org_id, timeout=QUERY_TIMEOUT_S)
        cards = await _cards(conn, bought)
        over: bool = await conn.fetchval("SELECT clock_timestamp() >= $1", span[1])
    left_nanos = totals["available_nanos"] + totals["escrow_nanos"] + totals["frozen_nanos"]
    return Statement(
        org_id=org_id,
        since=span[0],
        until=span[1],
        over=over,
        opening_nanos=int(totals["before_nanos"]),
        payments=tuple(
            Payment(row["top_up_id"], row["booked_at"], row["amount_nanos"], row["idempotency_key"], row["note"])
            for row in paid
        ),
        purchases=tuple(_purchases(bought, cards)),
        corrections=Corrections(
            count=sum(row["corrections"] for row in bought),
            raised_nanos=sum(row["raised_nanos"] for row in bought),
            refunded_nanos=sum(row["refunded_nanos"] for row in bought),
        ),
        short_requests=sum(row["short_requests"] for row in bought),
        closing_nanos=left_nanos - int(totals["after_nanos"]),
        available_nanos=totals["available_nanos"],
        escrow_nanos=totals["escrow_nanos"],
        frozen_nanos=totals["frozen_nanos"],
    )


def _bought_sql() -> str:
    return f"WITH usage AS ({query('export_usage_rows')})\n{query('statement_bought')}"


async def _cards(conn: PooledConnection, bought: Iterable[Record]) -> dict[str, PriceCard]:
    ids = sorted({row["price_card_id"] for row in bought if row["price_card_id"] is not None})
    rows = await conn.fetch("SELECT * FROM ledger.price_card WHERE id = ANY($1)", ids)
    return {row["id"]: card_of(row) for row in rows}


@dataclass(slots=True)
class _Gathered:
    """A purchase in the making. ``millionths``: of a nano-USD, by meter, so that it is rounded once."""

    requests: int = 0
    units: dict[Meter, int] = field(default_factory=dict)
    millionths: dict[Meter, int] = field(default_factory=dict)
    off_list_nanos: int = 0
    shortfall_nanos: int = 0
    amount_nanos: int = 0

    def add(self, row: Record, card: PriceCard | None) -> None:
        """Take in what was bought at one price."""
        self.requests += row["requests"]
        self.amount_nanos += row["amount_nanos"]
        self.shortfall_nanos += row["shortfall_nanos"]
        millionths = 0
        for meter, column in _COLUMNS.items():
            units = row[column]
            cost = 0 if card is None else rate_of(card, meter) * units * _per_unit(meter)
            self.units[meter] = self.units.get(meter, 0) + units
            self.millionths[meter] = self.millionths.get(meter, 0) + cost
            millionths += cost
        if row["discount_bps"]:
            self.off_list_nanos += millionths // UNITS_PER_RATE - row["amount_nanos"] - row["shortfall_nanos"]

    def finish(self, endpoint_id: str | None, alias: str | None) -> Purchase:
        """The purchase; whatever the list prices and the discount do not explain is rounding."""
        lines = tuple(
            MeterLine(meter, units, self.millionths[meter] // UNITS_PER_RATE)
            for meter, units in self.units.items()
            if units
        )
        list_nanos = sum(line.list_nanos for line in lines)
        full_nanos = self.amount_nanos + self.shortfall_nanos
        return Purchase(
            endpoint_id=endpoint_id,
            alias=alias,
            requests=self.requests,
            lines=lines,
            rounding_nanos=full_nanos + self.off_list_nanos - list_nanos,
            discount_nanos=self.off_list_nanos,
            shortfall_nanos=self.shortfall_nanos,
            amount_nanos=self.amount_nanos,
        )


def _purchases(bought: Sequence[Record], cards: Mapping[str, PriceCard]) -> Iterable[Purchase]:
    gathered: dict[tuple[str | None, str | None], _Gathered] = {}
    for row in bought:
        name = (row["endpoint_id"], row["alias"])
        gathered.setdefault(name, _Gathered()).add(row, cards.get(row["price_card_id"] or ""))
    for (endpoint_id, alias), purchase in gathered.items():
        if purchase.requests or purchase.amount_nanos or purchase.shortfall_nanos or any(purchase.units.values()):
            yield purchase.finish(endpoint_id, alias)


def _per_unit(meter: Meter) -> int:
    """Token-like rates are per million units, that of a request is per request."""
    return UNITS_PER_RATE if meter is Meter.REQUEST else 1
