"""Eval sets in Postgres.

Floor: control. Everything names the organization: another one's set is never found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from gateway.control.claims import CLAIM_KEPT, Claim, ClaimDiffers
from gateway.control.database import new_id
from gateway.control.evals.rows import EvalRow
from gateway.control.evals.values import EvalSet

if TYPE_CHECKING:
    from gateway.control.database import Connection

_SELECT = (
    "SELECT s.id, s.task_id, s.name, s.item_count, t.scoring_strategy, s.created_at"
    " FROM control.eval_set s JOIN control.task t ON t.id = s.task_id"
)


@dataclass(frozen=True, slots=True)
class Attached:
    """A document of a row, and where its bytes lie."""

    idx: int
    field_name: str
    mime: str
    size_bytes: int
    blob_id: str


async def create(
    conn: Connection, org_id: str, *, task_id: str, name: str, rows: Sequence[EvalRow], claim: Claim | None
) -> EvalSet:
    """Keep a set; the same claim twice keeps one.

    Raises:
        ClaimDiffers.
    """
    async with conn.transaction():
        if claim is not None:
            earlier = await _claimed(conn, org_id, claim)
            if earlier is not None:
                return earlier
        set_id = new_id("es")
        await conn.execute(
            "INSERT INTO control.eval_set (id, org_id, task_id, name, item_count, claim, fingerprint)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            set_id,
            org_id,
            task_id,
            name,
            len(rows),
            None if claim is None else claim.name,
            None if claim is None else claim.fingerprint,
        )
        await conn.executemany(
            "INSERT INTO control.eval_row (set_id, idx, input, expected, extra) VALUES ($1, $2, $3, $4, $5)",
            [(set_id, row.idx, _json(row.input), _json(row.expected), _json(row.extra)) for row in rows],
        )
    found = await find(conn, org_id, set_id)
    assert found is not None
    return found


async def find(conn: Connection, org_id: str, set_id: str) -> EvalSet | None:
    """One set that is not deleted."""
    row = await conn.fetchrow(f"{_SELECT} WHERE s.id = $1 AND s.org_id = $2 AND s.deleted_at IS NULL", set_id, org_id)
    return EvalSet(**dict(row)) if row is not None else None


async def list_of(conn: Connection, org_id: str) -> list[EvalSet]:
    """An organization's sets, the oldest first."""
    rows = await conn.fetch(
        f"{_SELECT} WHERE s.org_id = $1 AND s.deleted_at IS NULL ORDER BY s.created_at, s.id", org_id
    )
    return [EvalSet(**dict(row)) for row in rows]


async def count_of(conn: Connection, org_id: str) -> int:
    """How many sets an organization has."""
    return int(
        await conn.fetchval("SELECT count(*) FROM control.eval_set WHERE org_id = $1 AND deleted_at IS NULL", org_id)
    )


async def remove(conn: Connection, org_id: str, set_id: str) -> bool:
    """Remove a set; its runs and their results stay. Whether it was there."""
    return (
        await conn.fetchval(
            "UPDATE control.eval_set SET deleted_at = now(), claim = NULL"
            " WHERE id = $1 AND org_id = $2 AND deleted_at IS NULL RETURNING true",
            set_id,
            org_id,
        )
    ) is not None


async def rows_of(conn: Connection, set_id: str) -> list[EvalRow]:
    """The rows of a set, in their order."""
    rows = await conn.fetch(
        "SELECT idx, input, expected, extra FROM control.eval_row WHERE set_id = $1 ORDER BY idx", set_id
    )
    return [
        EvalRow(row["idx"], orjson.loads(row["input"]), orjson.loads(row["expected"]), orjson.loads(row["extra"]))
        for row in rows
    ]


async def documents_of(conn: Connection, set_id: str) -> dict[int, list[Attached]]:
    """The documents of a set, by row."""
    found: dict[int, list[Attached]] = {}
    for row in await conn.fetch(
        "SELECT idx, field_name, mime, size_bytes, blob_id FROM control.eval_document WHERE set_id = $1"
        " ORDER BY idx, field_name",
        set_id,
    ):
        found.setdefault(row["idx"], []).append(Attached(**dict(row)))
    return found


async def attach(conn: Connection, set_id: str, document: Attached) -> str | None:
    """Attach a document to its row, in place of an earlier one; the earlier one's blob, if there was one."""
    async with conn.transaction():
        earlier: str | None = await conn.fetchval(
            "SELECT blob_id FROM control.eval_document WHERE set_id = $1 AND idx = $2 AND field_name = $3 FOR UPDATE",
            set_id,
            document.idx,
            document.field_name,
        )
        await conn.execute(
            "INSERT INTO control.eval_document (set_id, idx, field_name, mime, size_bytes, blob_id)"
            " VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (set_id, idx, field_name)"
            " DO UPDATE SET mime = $4, size_bytes = $5, blob_id = $6, attached_at = now()",
            set_id,
            document.idx,
            document.field_name,
            document.mime,
            document.size_bytes,
            document.blob_id,
        )
    return earlier if earlier != document.blob_id else None


async def take_orphans(conn: Connection, *, most: int) -> list[str]:
    """Blobs of sets that were deleted a day ago and that no run needs any more; their rows are gone with this."""
    rows = await conn.fetch(
        "DELETE FROM control.eval_document d USING (SELECT d.set_id, d.idx, d.field_name FROM control.eval_document d"
        " JOIN control.eval_set s ON s.id = d.set_id WHERE s.deleted_at < now() - interval '1 day' AND NOT EXISTS"
        " (SELECT 1 FROM control.eval_run r WHERE r.set_id = s.id AND r.ended_at IS NULL) LIMIT $1) gone"
        " WHERE (d.set_id, d.idx, d.field_name) = (gone.set_id, gone.idx, gone.field_name) RETURNING d.blob_id",
        most,
    )
    return [row["blob_id"] for row in rows]


async def _claimed(conn: Connection, org_id: str, claim: Claim) -> EvalSet | None:
    # Two requests with one key at once: the second waits for the first, and finds what it made.
    lock = f"pareta eval set {org_id} {claim.name}"
    await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", lock)
    await conn.execute(
        "UPDATE control.eval_set SET claim = NULL WHERE org_id = $1 AND claim = $2"
        " AND created_at < now() - $3::interval",
        org_id,
        claim.name,
        CLAIM_KEPT,
    )
    row = await conn.fetchrow(
        "SELECT id, fingerprint FROM control.eval_set WHERE org_id = $1 AND claim = $2", org_id, claim.name
    )
    if row is None:
        return None
    if row["fingerprint"] != claim.fingerprint:
        raise ClaimDiffers
    return await find(conn, org_id, row["id"])


def _json(value: Any | Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()
