"""One transaction per batch: stage, insert what is new, move money for exactly that, move the checkpoint.

Floor: edge. Holds the SQL of the reconciler and the fence: every transaction names the fencing token of its term and
finds no checkpoint row under any other, so a reconciler that was paused past its term cannot write.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from ledger.booking import STAGED_COLUMNS, Anomaly, GrantSeen, Plan, Position
from ledger.database import PooledConnection, translated
from ledger.errors import Fenced, LedgerError
from ledger.partitions import MonthKeeper
from ledger.queries import query

BATCH_TIMEOUT_S = 60.0


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
    """What a batch came to. ``duplicates``: events of holds that were in the books already."""

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
            await self._lock_checkpoint(plan.start)
            booked, charged_nanos, duplicates = await self._insert(plan)
            mismatches = await self._confirm(plan.grants, plan.end)
            anomalies = [*plan.anomalies, *duplicates, *mismatches]
            await self._record(anomalies)
            await self._move_checkpoint(plan.end)
        return Booked(booked + len(plan.grants), charged_nanos, len(duplicates), len(anomalies))

    async def _lock_checkpoint(self, start: Position) -> None:
        row = await self._conn.fetchrow(
            """SELECT epoch, seq, stream_id FROM ledger.reconcile_checkpoint
                WHERE shard = $1 AND fence = $2 FOR UPDATE""",
            self._term.shard,
            self._term.fence,
        )
        if row is None:
            raise Fenced(f"Another reconciler books shard {self._term.shard} now.")
        at = Position(row["epoch"], row["seq"], row["stream_id"])
        if at != start:
            raise Fenced(f"The checkpoint of shard {self._term.shard} stands at {at}, not at {start}.")

    async def _insert(self, plan: Plan) -> tuple[int, int, list[Anomaly]]:
        if not plan.rows:
            return 0, 0, []
        row = await self._conn.fetchrow(query("apply_batch"), self._term.shard, timeout=BATCH_TIMEOUT_S)
        assert row is not None
        duplicates = await self._duplicates(plan.end) if row["booked"] != len(plan.rows) else []
        return row["booked"], row["charged_nanos"], duplicates

    async def _duplicates(self, end: Position) -> list[Anomaly]:
        rows = await self._conn.fetch(query("duplicates"), self._term.shard)
        return [
            Anomaly(
                "duplicate",
                row["epoch"],
                row["seq"],
                end.stream_id,
                {
                    "hold": row["hold_id"],
                    "kind": row["kind"],
                    "org": row["org_id"],
                    "amount_nanos": row["amount_nanos"],
                },
            )
            for row in rows
        ]

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
            """INSERT INTO ledger.anomaly (shard, epoch, seq, stream_id, kind, detail)
               VALUES ($1, $2, $3, $4, $5, $6)""",
            [
                (
                    self._term.shard,
                    anomaly.epoch,
                    anomaly.seq,
                    anomaly.stream_id,
                    anomaly.kind,
                    json.dumps(anomaly.detail),
                )
                for anomaly in anomalies
            ],
        )

    async def _move_checkpoint(self, end: Position) -> None:
        await self._conn.execute(
            """UPDATE ledger.reconcile_checkpoint
                  SET epoch = $2, seq = $3, stream_id = $4, updated_at = clock_timestamp()
                WHERE shard = $1""",
            self._term.shard,
            end.epoch,
            end.seq,
            end.stream_id,
        )
