"""Recovered settlements: what Postgres books itself, for holds that Redis does not know (any more).

Floor: edge. A settlement of a lost epoch waits in its worker's journal; a hold of a lost epoch whose worker fell silent
was carried here with its heartbeats. Both are booked under the same key as an event of Redis would be, so whichever
comes first is booked and the other is a repeat. The money is decided in ``ledger.core.recover``.

Of every organization in a call the balance is locked first, and only then the books are read: what was decided still
holds when it is written, and the reconciler, which locks the same balances, cannot come in between.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal

from ledger.books.booking import STAGED_COLUMNS, Row, Unbookable, row_of
from ledger.books.database import Connection, Pool, acquired
from ledger.books.partitions import END_MS, FIRST_MS, MonthKeeper, month_of, time_of_ms
from ledger.books.postings import Posting, lock_balances, post
from ledger.core.ids import id_time_ms, is_request_id
from ledger.core.recover import BookedHold, Ending, Entry, Purse, recover
from ledger.counter.values import LedgerEvent
from ledger.errors import LedgerUnavailable
from ledger.queries import query

ITEMS_AT_ONCE = 500
"""Settlements booked in one transaction."""

_COLUMNS = (*STAGED_COLUMNS, "shard")
_KIND = STAGED_COLUMNS.index("kind")
_REVISION = STAGED_COLUMNS.index("revision")
_AMOUNT = STAGED_COLUMNS.index("amount_nanos")
_SHORTFALL = STAGED_COLUMNS.index("shortfall_nanos")


@dataclass(frozen=True, slots=True)
class Recovered:
    """The end of a hold, for the books.

    ``amount_nanos`` is its whole price; of ``void`` it is ignored. ``epoch``: of the hold; 0 if nobody knows.
    """

    hold_id: str
    org_id: str
    shard: int
    epoch: int
    amount_nanos: int
    info: bytes
    kind: Ending
    held_nanos: int = 0


@dataclass(frozen=True, slots=True)
class RecoveredOutcome:
    """What the books have of the hold now, in sum.

    ``repeated``: they had it before. ``refused``: it has no place in the books; it was kept as an anomaly, and there is
    no use in sending it again.
    """

    verdict: Literal["booked", "repeated", "refused"]
    charged_nanos: int = 0
    shortfall_nanos: int = 0


@dataclass(frozen=True, slots=True)
class _Written:
    """An entry, and the item and row that it is of."""

    item: Recovered
    entry: Entry
    row: Row


async def book_recovered(pool: Pool, months: MonthKeeper, items: Sequence[Recovered]) -> list[RecoveredOutcome]:
    """Book settlements, each hold once, whoever else does it at the same time; safe to repeat.

    Returns:
        One outcome per item, in their order.

    Raises:
        LedgerUnavailable: repeat all of them; some may be booked.
    """
    outcomes: list[RecoveredOutcome] = []
    for start in range(0, len(items), ITEMS_AT_ONCE):
        some = items[start : start + ITEMS_AT_ONCE]
        async with acquired(pool, "book what was recovered") as conn:
            await months.ensure(conn, months_of(some))
            async with conn.transaction():
                outcomes += await book_locked(conn, some)
    return outcomes


async def booked_holds(pool: Pool, hold_ids: Sequence[str]) -> set[str]:
    """Which of these holds have their settlement in the books. A reap is none: the settlement corrects it.

    Raises:
        LedgerUnavailable.
    """
    known: list[str] = []
    times: list[datetime] = []
    # Every settlement of every worker passes here, so what is read from an id is read once.
    for hold_id in hold_ids:
        if is_request_id(hold_id) and FIRST_MS <= (time_ms := id_time_ms(hold_id)) < END_MS:
            known.append(hold_id)
            times.append(time_of_ms(time_ms))
    async with acquired(pool, "look for booked holds") as conn:
        rows = await conn.fetch(
            """SELECT DISTINCT u.hold_id FROM unnest($1::text[], $2::timestamptz[]) AS wanted (hold_id, id_time)
                 JOIN ledger.usage_event AS u ON u.hold_id = wanted.hold_id AND u.id_time = wanted.id_time
                WHERE u.kind <> 'reap'""",
            known,
            times,
        )
    return {row[0] for row in rows}


def months_of(items: Sequence[Recovered]) -> set[date]:
    """The months whose partitions these need."""
    return {month_of(time_of_ms(id_time_ms(item.hold_id))) for item in items if _is_of_our_time(item.hold_id)}


async def book_locked(conn: Connection, items: Sequence[Recovered]) -> list[RecoveredOutcome]:
    """Book settlements inside a transaction whose months exist.

    Raises:
        LedgerUnavailable: somebody else booked one of these holds for another organization; repeat all.
    """
    rows: dict[int, Row] = {}
    refusals: dict[int, str] = {}
    for place, item in enumerate(items):
        try:
            rows[place] = _row(item)
        except Unbookable as error:
            refusals[place] = str(error)
    purses = await _purses(conn, {items[place].org_id for place in rows})
    books = await _books(conn, [items[place].hold_id for place in rows])
    written: list[_Written] = []
    outcomes: list[RecoveredOutcome] = []
    for place, item in enumerate(items):
        if place in rows and item.org_id not in purses:
            refusals[place] = f"the organization {item.org_id} has no accounts"
        if place in refusals:
            outcomes.append(RecoveredOutcome("refused"))
            continue
        entry = recover(purses[item.org_id], books.get(item.hold_id), item.kind, item.amount_nanos)
        if entry is not None:
            written.append(_Written(item, entry, rows[place]))
            purses[item.org_id], books[item.hold_id] = entry.purse, entry.hold
        hold = books[item.hold_id]
        verdict: Literal["booked", "repeated"] = "repeated" if entry is None else "booked"
        outcomes.append(RecoveredOutcome(verdict, hold.charged_nanos, hold.shortfall_nanos))
    await _write(conn, written)
    await _set_aside(conn, [(items[place], reason) for place, reason in refusals.items()])
    await _drop_carried(conn, [item.hold_id for item in items])
    return outcomes


def _row(item: Recovered) -> Row:
    """The row as it would be of an event.

    Raises:
        Unbookable.
    """
    if item.amount_nanos < 0 or item.held_nanos < 0:
        raise Unbookable("an amount below zero")
    if not (0 <= item.epoch < 2**31 and 0 <= item.shard < 2**15):
        raise Unbookable("an epoch or a shard out of bounds")
    if not (item.org_id.isascii() and item.org_id.isprintable()):
        raise Unbookable("not the id of an organization")
    event = LedgerEvent(
        id="",
        seq=0,
        epoch=item.epoch,
        kind=item.kind,
        hold=item.hold_id,
        org=item.org_id,
        amount_nanos=item.amount_nanos,
        held_nanos=item.held_nanos,
        short_nanos=0,
        t_ms=time.time_ns() // 1_000_000,
        grant_seq=None,
        info=item.info,
        beat=None,
    )
    return row_of(event)


async def _purses(conn: Connection, org_ids: set[str]) -> dict[str, Purse]:
    balances = await lock_balances(conn, org_ids)
    return {org_id: Purse(available, frozen) for org_id, (available, frozen) in balances.items()}


async def _books(conn: Connection, hold_ids: Sequence[str]) -> dict[str, BookedHold]:
    """What the books have of these holds, over both revisions."""
    rows = await conn.fetch(
        """SELECT u.hold_id, u.revision, u.kind, u.amount_nanos, u.shortfall_nanos
             FROM unnest($1::text[], $2::timestamptz[]) AS wanted (hold_id, id_time)
             JOIN ledger.usage_event AS u ON u.hold_id = wanted.hold_id AND u.id_time = wanted.id_time
            ORDER BY u.hold_id, u.revision""",
        list(set(hold_ids)),
        [time_of_ms(id_time_ms(hold_id)) for hold_id in set(hold_ids)],
    )
    books: dict[str, BookedHold] = {}
    for row in rows:
        before = books.get(row["hold_id"])
        charged_nanos = row["amount_nanos"] + (before.charged_nanos if before is not None else 0)
        kind = before.kind if before is not None else row["kind"]
        books[row["hold_id"]] = BookedHold(kind, charged_nanos, row["shortfall_nanos"], row["revision"] == 1)
    return books


async def _write(conn: Connection, written: Sequence[_Written]) -> None:
    if not written:
        return
    await conn.execute(query("staged_event"))
    await conn.copy_records_to_table(
        "staged_event", schema_name="pg_temp", columns=_COLUMNS, records=[_record(line) for line in written]
    )
    if await conn.fetchval(query("apply_recovered")) != len(written):
        raise LedgerUnavailable("The ledger could not book what was recovered: somebody else did so meanwhile.")
    postings = [posting for line in written for posting in _postings(line)]
    await conn.executemany(
        """INSERT INTO ledger.escrow_freeze (id, org_id, shard, epoch, kind, amount_nanos, hold_id)
           VALUES ($1, $2, $3, $4, 'cover', $5, $6)""",
        [
            (
                _cover_id(line),
                line.item.org_id,
                line.item.shard,
                line.item.epoch,
                line.entry.cover_nanos,
                line.item.hold_id,
            )
            for line in written
            if line.entry.cover_nanos
        ],
    )
    await post(conn, postings)


def _record(line: _Written) -> Row:
    row = list(line.row)
    row[_REVISION] = line.entry.revision
    row[_KIND] = "late" if line.entry.revision else line.item.kind
    row[_AMOUNT] = line.entry.amount_nanos
    row[_SHORTFALL] = line.entry.hold.shortfall_nanos
    return (*row, line.item.shard)


def _cover_id(line: _Written) -> str:
    return ("covl_" if line.entry.revision else "cov_") + line.item.hold_id[-26:]


def _postings(line: _Written) -> list[Posting]:
    entry, item = line.entry, line.item
    letters, late = item.hold_id[-26:], entry.revision == 1
    postings = []
    if entry.cover_nanos:
        cover = _cover_id(line)
        cover_transfer = ("txcl_" if late else "txc_") + letters
        postings.append(Posting(cover_transfer, "freeze", item.org_id, "available", "frozen", entry.cover_nanos, cover))
    transfer = ("txl_" if late else "tx_") + letters
    if entry.amount_nanos > 0:
        kind: Literal["late_charge", "charge"] = "late_charge" if late else "charge"
        postings.append(Posting(transfer, kind, item.org_id, "frozen", "revenue", entry.amount_nanos, item.hold_id))
    elif entry.amount_nanos < 0:
        postings.append(
            Posting(transfer, "late_refund", item.org_id, "revenue", "available", -entry.amount_nanos, item.hold_id)
        )
    return postings


async def _set_aside(conn: Connection, refused: Sequence[tuple[Recovered, str]]) -> None:
    """Keep what has no place in the books, once per hold, where every audit shows it until somebody resolves it."""
    await conn.executemany(
        """INSERT INTO ledger.anomaly (shard, epoch, stream_id, kind, detail)
           VALUES ($1, $2, $3, 'unrecoverable', $4) ON CONFLICT (stream_id) WHERE kind = 'unrecoverable' DO NOTHING""",
        [
            (
                item.shard if 0 <= item.shard < 2**15 else -1,
                item.epoch if 0 <= item.epoch < 2**31 else -1,
                _plain(item.hold_id),
                json.dumps(_detail(item, reason)),
            )
            for item, reason in refused
        ],
    )


def _detail(item: Recovered, reason: str) -> dict[str, Any]:
    return {
        "reason": reason,
        "kind": item.kind,
        "hold": _plain(item.hold_id),
        "org": _plain(item.org_id),
        "amount_nanos": item.amount_nanos,
        "info": _plain(item.info.decode("utf-8", "backslashreplace")),
    }


def _plain(text: str) -> str:
    """Text that Postgres can keep."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


async def _drop_carried(conn: Connection, hold_ids: Sequence[str]) -> None:
    """These holds are over. Locked in order, because heartbeats lock them too."""
    held = await conn.fetch(
        "SELECT hold_id FROM ledger.carried_hold WHERE hold_id = ANY($1::text[]) ORDER BY hold_id FOR UPDATE",
        [hold_id for hold_id in hold_ids if is_request_id(hold_id)],
    )
    if held:
        await conn.execute(
            "DELETE FROM ledger.carried_hold WHERE hold_id = ANY($1::text[])", [row["hold_id"] for row in held]
        )


def _is_of_our_time(hold_id: str) -> bool:
    return is_request_id(hold_id) and FIRST_MS <= id_time_ms(hold_id) < END_MS
