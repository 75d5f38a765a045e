"""One transaction per batch: stage, insert what is new, move money for exactly that, move the checkpoint.

Floor: edge. Holds the SQL of the reconciler and the fence: every transaction names the fencing token of its term and
finds no checkpoint row under any other, so a reconciler that was paused past its term cannot write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from ledger.books.booking import STAGED_COLUMNS, Anomaly, GrantSeen, Plan, Position, ReturnSeen
from ledger.books.database import Connection, PooledConnection, Record, translated
from ledger.books.partitions import MonthKeeper, time_of_ms
from ledger.books.postings import Posting, derived_id, lock_balances, post
from ledger.core.ids import id_time_ms
from ledger.errors import Fenced, LedgerError
from ledger.queries import query

BATCH_TIMEOUT_S = 60.0
_ORG_COLUMN = STAGED_COLUMNS.index("org_id")
_RECOVERED_BEFORE = "recovery had booked this hold before; only its place in the sequence is kept"


class EventRefused(LedgerError):
    """An event of the batch contradicts the books; nothing of the batch was booked, and a repeat will not help."""


@dataclass(frozen=True, slots=True)
class Term:
    """The right to book one shard, until somebody else takes it: ``fence`` is the token."""

    shard: int
    fence: int
    start: Position


@dataclass(frozen=True, slots=True)
class Booked:
    """What a batch came to. ``duplicates``: of holds that were in the books already. ``anomalies``: open ones."""

    events: int
    charged_nanos: int
    duplicates: int
    anomalies: int


class BatchWriter:
    """Books plans of one term over one connection."""

    def __init__(self, conn: PooledConnection, term: Term, months: MonthKeeper) -> None:
        self._conn = conn
        self._term = term
        self._months = months

    async def prepare(self) -> None:
        """Make the staging table of this session."""
        with translated("prepare the staging table"):
            await self._conn.execute(query("staged_event"))

    async def book(self, plan: Plan) -> Booked:
        """Book a plan entirely or not at all.

        Raises:
            EventRefused: an event in the plan contradicts the books. Fenced: the term is over.
            LedgerUnavailable: the outcome is unknown; read the checkpoint again.
        """
        with translated("book a batch"):
            await self._months.ensure(self._conn, plan.months)
            try:
                return await self._transaction(plan)
            except (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError) as error:
                raise EventRefused(f"{type(error).__name__}: {error}") from error

    async def _transaction(self, plan: Plan) -> Booked:
        async with self._conn.transaction():
            # Staged before the checkpoint is locked: should this process be paused inside the copy, it blocks nobody.
            if plan.rows:
                await self._conn.copy_records_to_table(
                    "staged_event",
                    schema_name="pg_temp",
                    columns=STAGED_COLUMNS,
                    records=plan.rows,
                    timeout=BATCH_TIMEOUT_S,
                )
            at = await lock_checkpoint(self._conn, self._term)
            if at != plan.start:
                raise Fenced(f"The checkpoint of shard {self._term.shard} stands at {at}, not at {plan.start}.")
            orgs = {row[_ORG_COLUMN] for row in plan.rows} | {seen.org_id for seen in plan.returns}
            await lock_balances(self._conn, orgs)
            booked, charged_nanos, duplicates = await self._insert(plan)
            mismatches = await self._confirm(plan.grants, plan.end)
            await self._take_back(plan.returns)
            anomalies = [*plan.anomalies, *duplicates, *mismatches]
            await self._record(anomalies)
            await self._move_checkpoint(plan.end)
        unresolved = sum(anomaly.resolution is None for anomaly in anomalies)
        return Booked(booked + len(plan.grants) + len(plan.returns), charged_nanos, len(duplicates), unresolved)

    async def _insert(self, plan: Plan) -> tuple[int, int, list[Anomaly]]:
        if not plan.rows:
            return 0, 0, []
        row = await self._conn.fetchrow(query("apply_batch"), self._term.shard, timeout=BATCH_TIMEOUT_S)
        assert row is not None
        duplicates = await self._duplicates(plan.end) if row["booked"] != len(plan.rows) else []
        return row["booked"], row["charged_nanos"], duplicates

    async def _duplicates(self, end: Position) -> list[Anomaly]:
        """What the books had already. It is a contradiction, unless recovery was faster than the event.

        Then Redis has spent escrow on what was charged from elsewhere: the books return it, as if Redis had.
        """
        anomalies = []
        for row in await self._conn.fetch(query("duplicates"), self._term.shard):
            if row["recovered"] and row["amount_nanos"] > 0:
                await self._take_back([_spent(row)], hold_id=row["hold_id"])
                continue
            harmless = row["recovered"] and row["amount_nanos"] == 0
            anomalies.append(_duplicate(row, end, resolution=_RECOVERED_BEFORE if harmless else None))
        return anomalies

    async def _take_back(self, returns: Sequence[ReturnSeen], *, hold_id: str | None = None) -> None:
        """Move what Redis gave back from escrow to available, once per event."""
        if not returns:
            return
        shard = self._term.shard
        fresh = await self._conn.fetch(
            query("apply_returns"),
            [derived_id("ret_", seen.t_ms, shard, seen.epoch, seen.seq) for seen in returns],
            [seen.org_id for seen in returns],
            [seen.epoch for seen in returns],
            shard,
            [seen.seq for seen in returns],
            [seen.amount_nanos for seen in returns],
            [hold_id] * len(returns),
            [time_of_ms(seen.t_ms) for seen in returns],
        )
        await post(self._conn, [_return(row) for row in fresh])

    async def _confirm(self, grants: Sequence[GrantSeen], end: Position) -> list[Anomaly]:
        """Mark grants as applied; what Redis applied and Postgres never granted is money from nowhere."""
        if not grants:
            return []
        confirmed = await self._conn.fetch(
            query("confirm_grants"),
            self._term.shard,
            [grant.org_id for grant in grants],
            [grant.epoch for grant in grants],
            [grant.grant_seq for grant in grants],
            [grant.amount_nanos for grant in grants],
            [grant.seq for grant in grants],
        )
        known = {row["seq"] for row in confirmed}
        return [
            Anomaly(
                "grant_unknown",
                grant.epoch,
                grant.seq,
                end.stream_id,
                {"org": grant.org_id, "grant_seq": grant.grant_seq, "amount_nanos": grant.amount_nanos},
            )
            for grant in grants
            if grant.seq not in known
        ]

    async def _record(self, anomalies: Sequence[Anomaly]) -> None:
        if not anomalies:
            return
        await self._conn.executemany(
            """INSERT INTO ledger.anomaly (shard, epoch, seq, stream_id, kind, detail, resolution, resolved_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, CASE WHEN $7::text IS NOT NULL THEN now() END)""",
            [
                (
                    self._term.shard,
                    anomaly.epoch,
                    anomaly.seq,
                    anomaly.stream_id,
                    anomaly.kind,
                    json.dumps(anomaly.detail),
                    anomaly.resolution,
                )
                for anomaly in anomalies
            ],
        )

    async def _move_checkpoint(self, end: Position) -> None:
        await self._conn.execute(
            """UPDATE ledger.reconcile_checkpoint
                  SET epoch = $2, seq = $3, stream_id = $4, last_event = $5, updated_at = clock_timestamp()
                WHERE shard = $1""",
            self._term.shard,
            end.epoch,
            end.seq,
            end.stream_id,
            end.last_event,
        )


async def lock_checkpoint(conn: Connection, term: Term) -> Position:
    """Lock the checkpoint of a term until the transaction ends, and say where it stands.

    Raises:
        Fenced: the term is over.
    """
    row = await conn.fetchrow(
        """SELECT epoch, seq, stream_id, last_event FROM ledger.reconcile_checkpoint
            WHERE shard = $1 AND fence = $2 FOR UPDATE""",
        term.shard,
        term.fence,
    )
    if row is None:
        raise Fenced(f"Another reconciler books shard {term.shard} now.")
    return Position(row["epoch"], row["seq"], row["stream_id"], row["last_event"])


def _spent(row: Record) -> ReturnSeen:
    """As a return of the time of its hold: that month exists."""
    return ReturnSeen(row["org_id"], row["epoch"], row["seq"], row["amount_nanos"], id_time_ms(row["hold_id"]))


def _return(row: Record) -> Posting:
    return Posting(
        id="tx_" + row["id"][-26:],
        kind="return",
        org_id=row["org_id"],
        debit="escrow",
        credit="available",
        amount_nanos=row["amount_nanos"],
        event_id=row["id"],
    )


def _duplicate(row: Record, end: Position, *, resolution: str | None) -> Anomaly:
    about = {"hold": row["hold_id"], "kind": row["kind"], "org": row["org_id"], "amount_nanos": row["amount_nanos"]}
    return Anomaly("duplicate", row["epoch"], row["seq"], end.stream_id, about, resolution)
