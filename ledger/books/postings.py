"""Postings: money moved between an organization's accounts, transfer and balance in one statement.

Floor: edge. What is posted here is decided elsewhere; this only sees to it that no transfer is written without its
balances, and no balance changed without its transfer. The usual charge of a batch has a statement of its own
(``queries/apply_batch.sql``), which follows the same rule.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Literal

from ledger.books.database import Connection
from ledger.core.ids import REQUEST_PREFIX, REQUEST_RANDOM_BYTES, request_id
from ledger.queries import query

POST_TIMEOUT_S = 60.0

Kind = Literal["return", "freeze", "release", "charge", "late_charge", "late_refund"]
Account = Literal["available", "escrow", "frozen", "revenue"]


@dataclass(frozen=True, slots=True)
class Posting:
    """One transfer. ``id`` and ``event_id`` end in the same 26 letters, whose time is the month of the row."""

    id: str
    kind: Kind
    org_id: str
    debit: Account
    credit: Account
    amount_nanos: int
    event_id: str


async def lock_balances(conn: Connection, org_ids: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Lock balances until the end of the transaction, always in the same order, so that nobody waits in a circle.

    Returns:
        By organization what is available and what is frozen; organizations without accounts are missing.
    """
    rows = await conn.fetch(
        """SELECT org_id, available_nanos, frozen_nanos FROM ledger.balance
            WHERE org_id = ANY($1::text[]) ORDER BY org_id FOR NO KEY UPDATE""",
        sorted(set(org_ids)),
        timeout=POST_TIMEOUT_S,
    )
    return {row["org_id"]: (row["available_nanos"], row["frozen_nanos"]) for row in rows}


async def post(conn: Connection, postings: Sequence[Posting]) -> None:
    """Write transfers and move the balances. Inside a transaction that has locked the balances.

    Raises:
        asyncpg.IntegrityConstraintViolationError: a transfer exists, an account does not, or a balance is too low.
    """
    if postings:
        columns = zip(*(astuple(posting) for posting in postings), strict=True)
        await conn.execute(query("post"), *(list(column) for column in columns), timeout=POST_TIMEOUT_S)


def derived_id(prefix: str, time_ms: int, *parts: object) -> str:
    """An id that everybody who knows the same parts would give: ``prefix``, the time, and 80 bits of their hash."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return prefix + request_id(time_ms, digest[:REQUEST_RANDOM_BYTES]).removeprefix(REQUEST_PREFIX)
