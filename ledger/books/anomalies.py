"""What the books could not take as it stood, and who settled the matter.

Floor: edge. An anomaly is a difference in every audit until a person has looked at it and said what was done. Resolving
one moves no money; what it takes to put things right is booked like anything else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ledger.books.database import Pool, Record, acquired, transaction
from ledger.errors import LedgerConflict, LedgerRefused

MAX_NOTE_LETTERS: Final = 1000
MAX_NAME_LETTERS: Final = 100


@dataclass(frozen=True, slots=True)
class NotedAnomaly:
    """One row. ``seq`` None: it is not about one event. ``resolution``: the note and who wrote it."""

    id: int
    shard: int
    epoch: int
    seq: int | None
    stream_id: str
    kind: str
    detail: Mapping[str, Any]
    noticed_at: datetime
    resolved_at: datetime | None
    resolution: str | None


async def anomalies(pool: Pool, *, resolved: bool = False, limit: int = 1000) -> list[NotedAnomaly]:
    """The open ones, newest first; with ``resolved`` all of them.

    Raises:
        LedgerUnavailable.
    """
    async with acquired(pool, "read the anomalies") as conn:
        rows = await conn.fetch(
            "SELECT * FROM ledger.anomaly WHERE $1 OR resolved_at IS NULL ORDER BY id DESC LIMIT $2", resolved, limit
        )
    return [_anomaly(row) for row in rows]


async def resolve(pool: Pool, anomaly_id: int, *, note: str, by: str) -> NotedAnomaly:
    """Say that an anomaly was dealt with; once, and for good.

    Args:
        note: what it was and what was done, 1 to ``MAX_NOTE_LETTERS``.
        by: who says so, 1 to ``MAX_NAME_LETTERS``.

    Raises:
        LedgerRefused: there is no such anomaly, or the note is no note; LedgerConflict: somebody has resolved it.
        LedgerUnavailable: it may have been done; look.
    """
    note, by = note.strip(), by.strip()
    if not 0 < len(note) <= MAX_NOTE_LETTERS or not 0 < len(by) <= MAX_NAME_LETTERS or "\0" in note + by:
        raise LedgerRefused(
            f"To resolve an anomaly takes a note of 1 to {MAX_NOTE_LETTERS} letters and a name of 1 to "
            f"{MAX_NAME_LETTERS}."
        )
    async with transaction(pool, "resolve the anomaly") as conn:
        row = await conn.fetchrow(
            """UPDATE ledger.anomaly SET resolved_at = clock_timestamp(), resolution = $2
                WHERE id = $1 AND resolved_at IS NULL RETURNING *""",
            anomaly_id,
            f"{note} (by {by})",
        )
        if row is not None:
            return _anomaly(row)
        known = await conn.fetchrow("SELECT * FROM ledger.anomaly WHERE id = $1", anomaly_id)
    if known is None:
        raise LedgerRefused(f"There is no anomaly {anomaly_id}.")
    raise LedgerConflict(
        f"The anomaly {anomaly_id} was resolved at {known['resolved_at']:%Y-%m-%d %H:%M:%S} UTC: {known['resolution']}."
    )


def _anomaly(row: Record) -> NotedAnomaly:
    return NotedAnomaly(
        id=row["id"],
        shard=row["shard"],
        epoch=row["epoch"],
        seq=row["seq"],
        stream_id=row["stream_id"],
        kind=row["kind"],
        detail=json.loads(row["detail"]),
        noticed_at=row["noticed_at"],
        resolved_at=row["resolved_at"],
        resolution=row["resolution"],
    )
