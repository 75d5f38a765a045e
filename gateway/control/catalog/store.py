"""The catalogue in Postgres, as the routes read it.

Floor: control.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import orjson

from gateway.control.catalog.values import Baseline, Board, BoardRow, FrontierModel, Named, Task, VendorPrices

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection

_TASK = (
    "SELECT id, title, description, category, keywords, default_scorer, scorer_settings, scoring_strategy,"
    " has_blob_input, input_fields, expected_schema, system_prompt, prompt_scaffold, metric, cost_unit, examples"
    " FROM control.task WHERE retired_at IS NULL"
)


async def tasks(conn: Connection) -> list[Task]:
    """All tasks, in the order of the catalogue."""
    return [_task(row) for row in await conn.fetch(f"{_TASK} ORDER BY position, id")]


async def task(conn: Connection, task_id: str) -> Task | None:
    """One task; ``None`` if there is none of this id."""
    row = await conn.fetchrow(f"{_TASK} AND id = $1", task_id)
    return _task(row) if row is not None else None


async def version(conn: Connection) -> int:
    """A number that grows with every import that changed something."""
    return int(await conn.fetchval("SELECT coalesce(max(id), 0) FROM control.catalog_import"))


async def board(conn: Connection, task_id: str) -> Board:
    """What was measured on a task; empty for one that is not there."""
    rows = await conn.fetch(
        "SELECT a.alias, a.model_id, m.quality, a.cost_per_request_micros, o.context_tokens,"
        " a.alias = t.recommended_alias AS is_pick"
        " FROM control.task_alias a JOIN control.task t ON t.id = a.task_id JOIN control.model o ON o.id = a.model_id"
        " JOIN control.measurement m ON m.task_id = a.task_id AND m.kind = 'open' AND m.subject = a.model_id"
        " WHERE a.task_id = $1 AND a.listed ORDER BY m.quality DESC, a.cost_per_request_micros, a.alias",
        task_id,
    )
    frontier = await conn.fetchrow(
        "SELECT f.id, m.quality, m.cost_per_request_micros, f.context_tokens"
        " FROM control.measurement m JOIN control.frontier_model f ON f.id = m.subject"
        " WHERE m.task_id = $1 AND m.kind = 'frontier' AND f.retired_at IS NULL"
        " ORDER BY m.quality DESC, m.cost_per_request_micros, f.id LIMIT 1",
        task_id,
    )
    picked = [row["alias"] for row in rows if row["is_pick"]] or [row["alias"] for row in rows[:1]]
    return Board(
        rows=tuple(
            BoardRow(
                alias=row["alias"],
                model_id=row["model_id"],
                quality=row["quality"],
                cost_per_request_micros=row["cost_per_request_micros"],
                context_tokens=row["context_tokens"],
            )
            for row in rows
        ),
        frontier=Baseline(**dict(frontier)) if frontier is not None else None,
        recommended=picked[0] if picked else None,
    )


async def model_named(conn: Connection, task_id: str, name: str | None) -> Named | None:
    """The open model that an alias of a task, or a real id on its board, stands for; without a name the recommended."""
    found = await board(conn, task_id)
    if name is None:
        name = found.recommended
    for row in found.rows:
        if name in (row.alias, row.model_id):
            return Named(row.alias, row.model_id)
    return None


async def roster(conn: Connection, task_id: str | None) -> list[FrontierModel]:
    """The vendors' models; for a task those that can take its input, and which of them were measured on it."""
    rows = await conn.fetch(
        "SELECT f.id, f.vendor, f.vision, EXISTS (SELECT 1 FROM control.measurement m WHERE m.task_id = $1"
        " AND m.kind = 'frontier' AND m.subject = f.id) AS benchmarked"
        " FROM control.frontier_model f WHERE f.retired_at IS NULL"
        " AND (f.vision OR NOT coalesce((SELECT has_blob_input FROM control.task WHERE id = $1), false))"
        " ORDER BY f.position, f.id",
        task_id,
    )
    return [FrontierModel(**dict(row)) for row in rows]


async def vendor_models(conn: Connection, *, needs_vision: bool) -> list[VendorPrices]:
    """The vendors' models that can be asked, with their list prices."""
    rows = await conn.fetch(
        "SELECT id, vendor, prompt_rate_nanos, completion_rate_nanos FROM control.frontier_model"
        " WHERE retired_at IS NULL AND (vision OR NOT $1) ORDER BY position, id",
        needs_vision,
    )
    return [VendorPrices(**dict(row)) for row in rows]


def _task(row: asyncpg.Record) -> Task:
    fields = dict(row)
    for name in ("scorer_settings", "input_fields", "expected_schema", "examples"):
        fields[name] = orjson.loads(fields[name]) if fields[name] is not None else None
    fields["keywords"] = tuple(fields["keywords"])
    return Task(**fields)
