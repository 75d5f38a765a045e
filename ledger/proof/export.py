"""Exports: a period of the books as rows with stable columns, for an accountant.

Floor: edge. Everything comes from one repeatable-read snapshot through a server-side cursor, so millions of rows need
little memory and agree with each other. A row belongs to the period in which its money was *booked* (the transfer's
``posted_at``): what was exported of a period that is over does not change any more, and usage adds up to the transfers.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from ledger.books.database import Pool, PooledConnection, Record, acquired, translated
from ledger.queries import query

ColumnKind = Literal["text", "time", "integer", "flag", "usd"]
QUERY_TIMEOUT_S: Final = 3600.0
_ROWS_AT_ONCE: Final = 2000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of an export. Of kind ``usd`` it is the integer column ``<stem>_nanos`` beside it, in dollars."""

    name: str
    kind: ColumnKind
    meaning: str

    @property
    def source(self) -> str:
        """The name of its value in a row of the query."""
        return f"{self.name.removesuffix('_usd')}_nanos" if self.kind == "usd" else self.name


@dataclass(frozen=True, slots=True)
class Sheet:
    """One kind of export. ``summed``: the column of nano-USD that the summary adds up, and what the sum is."""

    sql: str
    columns: tuple[Column, ...]
    summed: str
    sum_is: str


@dataclass(frozen=True, slots=True)
class Period:
    """``[since, until)`` by the time of booking; ``org_id`` None means everybody."""

    since: datetime
    until: datetime
    org_id: str | None = None


def _amount(stem: str, meaning: str) -> tuple[Column, Column]:
    return (
        Column(f"{stem}_usd", "usd", f"{meaning}, US dollars, exact"),
        Column(f"{stem}_nanos", "integer", f"{meaning}, nano-USD"),
    )


_USAGE_ORDER: Final = "SELECT * FROM ({}) AS usage ORDER BY booked_at, request_id, revision"

SHEETS: Final[Mapping[str, Sheet]] = {
    "transfers": Sheet(
        query("export_transfers"),
        (
            Column("posted_at", "time", "when it was booked"),
            Column("transfer_id", "text", "unique"),
            Column("kind", "text", "top_up, grant, return, freeze, release, charge, late_charge or late_refund"),
            Column("org_id", "text", "whose money"),
            Column(
                "debit_account", "text", "kind of the account that gives: external, available, escrow, frozen, revenue"
            ),
            Column("credit_account", "text", "kind of the account that gets"),
            Column("debit_account_id", "integer", "as in the sheet accounts"),
            Column("credit_account_id", "integer", "as in the sheet accounts"),
            *_amount("amount", "always positive"),
            Column("event_id", "text", "its cause, such as a request or a top-up"),
        ),
        "amount_nanos",
        "moved",
    ),
    "usage": Sheet(
        _USAGE_ORDER.format(query("export_usage_rows")),
        (
            Column("booked_at", "time", "when it was booked; of what cost nothing: when it ended"),
            Column("request_id", "text", "x-request-id of the answer"),
            Column("revision", "integer", "0, or 1 for a correction: all numbers are then differences"),
            Column("kind", "text", "how it ended: settle, void (free), reap (nobody reported), late (correction)"),
            Column("org_id", "text", "who pays"),
            Column("key_id", "text", "the API key"),
            Column("endpoint_id", "text", "the endpoint"),
            Column("alias", "text", "the model's public name"),
            Column("route", "text", "the API route"),
            Column("outcome", "text", "how it went, such as finished or failed"),
            Column("status", "integer", "HTTP status"),
            Column("usage_source", "text", "reported, counted or estimated"),
            Column("prompt_tokens", "integer", "without cached ones"),
            Column("cached_prompt_tokens", "integer", "prompt tokens from a cache"),
            Column("completion_tokens", "integer", "without reasoning ones"),
            Column("reasoning_tokens", "integer", "tokens of hidden reasoning"),
            Column("requests", "integer", "1 for a request that counts as one"),
            Column("images", "integer", "images"),
            Column("audio_seconds", "integer", "seconds of audio"),
            Column("eval_micros", "integer", "micro-USD of an eval run's answers"),
            Column("price_card_id", "text", "the price card that was in force"),
            Column("discount_bps", "integer", "discount in hundredths of a percent"),
            *_amount("amount", "charged; negative for a refund"),
            *_amount("shortfall", "cost that the credit did not cover, borne by the platform"),
            Column("started_at", "time", "when the request came"),
            Column("ended_at", "time", "when it ended"),
            Column("transfer_id", "text", "its transfer; empty if it cost nothing"),
            Column("recovered", "flag", "whether it was booked after Redis had lost it"),
        ),
        "amount_nanos",
        "charged",
    ),
    "top-ups": Sheet(
        query("export_top_ups"),
        (
            Column("booked_at", "time", "when it was booked"),
            Column("top_up_id", "text", "unique"),
            Column("org_id", "text", "who paid"),
            *_amount("amount", "paid in"),
            Column("idempotency_key", "text", "the payer's name for the payment"),
            Column("note", "text", "the operator's note"),
            Column("transfer_id", "text", "its transfer"),
        ),
        "amount_nanos",
        "paid in",
    ),
    "accounts": Sheet(
        query("export_accounts"),
        (
            Column("account_id", "integer", "unique"),
            Column("kind", "text", "external, available, escrow, frozen or revenue"),
            Column("org_id", "text", "whose; empty for the platform's"),
            Column("normal_side", "text", "debit or credit: where its balance stands"),
            *_amount("opening", "balance at the beginning"),
            *_amount("debits", "debits of the period"),
            *_amount("credits", "credits of the period"),
            *_amount("closing", "balance at the end"),
        ),
        "debits_nanos",
        "debited",
    ),
}
"""What can be exported. Names, order and meaning of columns stay; new ones come at the end."""


class ExportRun:
    """One export, inside its snapshot. ``rows`` and ``sum_nanos`` grow while it is read."""

    def __init__(self, conn: PooledConnection, sheet: Sheet, period: Period) -> None:
        self.sheet = sheet
        self.rows = 0
        self.sum_nanos = 0
        self._conn = conn
        self._arguments = (period.since, period.until, period.org_id)

    async def count(self) -> int:
        """How many rows there will be; takes about as long as reading them."""
        sql = f"SELECT count(*) FROM ({self.sheet.sql}) AS sheet"  # noqa: S608
        with translated("export"):
            return int(await self._conn.fetchval(sql, *self._arguments, timeout=QUERY_TIMEOUT_S))

    async def pages(self) -> AsyncIterator[Sequence[Sequence[Any]]]:
        """Rows in the order of the columns, some thousand at once; ``usd`` columns still in nano-USD."""
        sources = [column.source for column in self.sheet.columns]
        # Translated here, not only by `exporting`: what the reader does between two pages fails on its own account.
        with translated("export"):
            cursor = await self._conn.cursor(self.sheet.sql, *self._arguments, timeout=QUERY_TIMEOUT_S)
        while True:
            with translated("export"):
                page = await cursor.fetch(_ROWS_AT_ONCE, timeout=QUERY_TIMEOUT_S)
            if not page:
                return
            self.rows += len(page)
            self.sum_nanos += sum(row[self.sheet.summed] for row in page)
            yield [_values(row, sources) for row in page]


@asynccontextmanager
async def exporting(pool: Pool, what: str, period: Period) -> AsyncIterator[ExportRun]:
    """Open the snapshot of an export.

    Args:
        what: a name in ``SHEETS``.

    Raises:
        LedgerUnavailable, also while it is read.
    """
    async with acquired(pool, "export") as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        yield ExportRun(conn, SHEETS[what], period)


def _values(row: Record, sources: Sequence[str]) -> Sequence[Any]:
    return [row[source] for source in sources]
