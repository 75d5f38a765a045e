"""Importing a catalogue: what would change, and changing it, in one transaction.

Floor: control. An alias is given when a model first appears on a task's board, in the order of quality within its
family, and is never taken back: a model that is measured no more is taken off the board and keeps its alias. Tasks and
vendors' models that the files do not name are retired. A dry run does everything and commits nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import orjson

from gateway.control.catalog.reading import Catalog, Measured
from gateway.control.catalog.values import Task

if TYPE_CHECKING:
    from gateway.control.database import Connection

_TASK_COLUMNS = (
    "position",
    "title",
    "description",
    "category",
    "keywords",
    "default_scorer",
    "scorer_settings",
    "scoring_strategy",
    "has_blob_input",
    "input_fields",
    "expected_schema",
    "system_prompt",
    "prompt_scaffold",
    "metric",
    "cost_unit",
    "examples",
)
_Row = Mapping[str, Any]
_Rows = Mapping[str, _Row]


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: ``what`` (task, model, alias, frontier, measurement) of this id is ``added``, ``changed`` or
    ``retired``; ``fields`` are those that changed."""

    what: str
    id: str
    how: str
    fields: tuple[str, ...] = ()


async def import_catalog(conn: Connection, catalog: Catalog, *, dry_run: bool = False) -> list[Change]:
    """Make the database say what the files say; returns the differences.

    Raises:
        asyncpg.PostgresError: through `gateway.control.database.translated`; nothing was changed.
    """
    transaction = conn.transaction()
    await transaction.start()
    try:
        # Two imports at once would give the same rank twice.
        await conn.execute("LOCK TABLE control.task_alias IN SHARE ROW EXCLUSIVE MODE")
        before = await _snapshot(conn)
        await _write(conn, catalog)
        changes = _differences(before, await _snapshot(conn))
        if changes:
            await conn.execute(
                "INSERT INTO control.catalog_import (version, checksum, changes) VALUES ($1, $2, $3)",
                catalog.version,
                catalog.checksum,
                orjson.dumps([asdict(change) for change in changes]).decode(),
            )
    except BaseException:
        await transaction.rollback()
        raise
    if dry_run:
        await transaction.rollback()
    else:
        await transaction.commit()
    return changes


async def _write(conn: Connection, catalog: Catalog) -> None:
    await _write_tasks(conn, catalog.tasks)
    await conn.executemany(
        "INSERT INTO control.model (id, family, context_tokens, vision) VALUES ($1, $2, $3, $4)"
        " ON CONFLICT (id) DO UPDATE SET family = $2, context_tokens = $3, vision = $4",
        [(model.id, model.family, model.context_tokens, model.vision) for model in catalog.models],
    )
    await conn.executemany(
        "INSERT INTO control.frontier_model (id, position, vendor, vision, context_tokens, prompt_rate_nanos,"
        " completion_rate_nanos) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO UPDATE SET position = $2,"
        " vendor = $3, vision = $4, context_tokens = $5, prompt_rate_nanos = $6, completion_rate_nanos = $7,"
        " retired_at = NULL",
        [
            (
                vendor.id,
                position,
                vendor.vendor,
                vendor.vision,
                vendor.context_tokens,
                vendor.prompt_nanos_per_million,
                vendor.completion_nanos_per_million,
            )
            for position, vendor in enumerate(catalog.vendors)
        ],
    )
    await conn.execute(
        "UPDATE control.frontier_model SET retired_at = now() WHERE retired_at IS NULL AND NOT id = ANY($1::text[])",
        [vendor.id for vendor in catalog.vendors],
    )
    await conn.execute("DELETE FROM control.measurement")
    await conn.executemany(
        "INSERT INTO control.measurement (task_id, kind, subject, quality, quality_low, quality_high,"
        " cost_per_request_micros, items, provenance) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        [
            (
                one.task_id,
                one.kind,
                one.model,
                one.quality,
                one.quality_low,
                one.quality_high,
                one.cost_per_request_micros,
                one.items,
                orjson.dumps(one.provenance).decode(),
            )
            for one in catalog.measured
        ],
    )
    await _give_aliases(conn, catalog)


async def _write_tasks(conn: Connection, tasks: Sequence[Task]) -> None:
    def json(value: object) -> str | None:
        return None if value is None else orjson.dumps(value).decode()

    places = ", ".join(f"${number}" for number in range(2, len(_TASK_COLUMNS) + 2))
    updates = ", ".join(f"{name} = excluded.{name}" for name in _TASK_COLUMNS)
    await conn.executemany(
        f"INSERT INTO control.task (id, {', '.join(_TASK_COLUMNS)}) VALUES ($1, {places})"  # noqa: S608  names of ours
        f" ON CONFLICT (id) DO UPDATE SET {updates}, retired_at = NULL",
        [
            (
                task.id,
                position,
                task.title,
                task.description,
                task.category,
                list(task.keywords),
                task.default_scorer,
                json(task.scorer_settings),
                task.scoring_strategy,
                task.has_blob_input,
                json(task.input_fields),
                json(task.expected_schema),
                task.system_prompt,
                task.prompt_scaffold,
                task.metric,
                task.cost_unit,
                json(task.examples),
            )
            for position, task in enumerate(tasks)
        ],
    )
    await conn.execute(
        "UPDATE control.task SET retired_at = now() WHERE retired_at IS NULL AND NOT id = ANY($1::text[])",
        [task.id for task in tasks],
    )


async def _give_aliases(conn: Connection, catalog: Catalog) -> None:
    """Name the models that joined, and put on the boards those that were measured."""
    families = {model.id: model.family for model in catalog.models}
    given: dict[str, dict[str, str]] = {}
    for row in await conn.fetch("SELECT task_id, model_id, alias FROM control.task_alias"):
        given.setdefault(row["task_id"], {})[row["model_id"]] = row["alias"]
    measured = [one for one in catalog.measured if one.kind == "open"]
    for task_id, model_id, alias in new_aliases(measured, families, given):
        await conn.execute(
            "INSERT INTO control.task_alias (task_id, alias, model_id, cost_per_request_micros) VALUES ($1, $2, $3, 0)",
            task_id,
            alias,
            model_id,
        )
        given.setdefault(task_id, {})[model_id] = alias
    await conn.executemany(
        "UPDATE control.task_alias SET cost_per_request_micros = $3, listed = true"
        " WHERE task_id = $1 AND model_id = $2 AND (cost_per_request_micros <> $3 OR NOT listed)",
        [(one.task_id, one.model, one.cost_per_request_micros) for one in measured],
    )
    await conn.execute(
        "UPDATE control.task_alias a SET listed = false WHERE listed AND NOT EXISTS (SELECT 1"
        " FROM control.measurement m WHERE m.task_id = a.task_id AND m.kind = 'open' AND m.subject = a.model_id)"
    )
    await conn.executemany(
        "UPDATE control.task SET recommended_alias = $2 WHERE id = $1 AND recommended_alias IS DISTINCT FROM $2",
        [
            (
                task.id,
                given.get(task.id, {}).get(catalog.recommended[task.id]) if task.id in catalog.recommended else None,
            )
            for task in catalog.tasks
        ],
    )


def new_aliases(
    measured: Sequence[Measured], families: Mapping[str, str], given: Mapping[str, Mapping[str, str]]
) -> list[tuple[str, str, str]]:
    """Names for the models that have none on their task yet; pure.

    Args:
        measured: open models on their tasks.
        families: by real model id.
        given: the alias by real model id, by task; all that were ever given.

    Returns:
        Task, real model id and alias of each.
    """
    found: list[tuple[str, str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for task_id, aliases in given.items():
        for alias in aliases.values():
            family, _, rank = alias.rpartition("-")
            ranks[task_id, family] = max(ranks.get((task_id, family), 0), int(rank))
    for one in sorted(measured, key=lambda one: (one.task_id, -one.quality, one.cost_per_request_micros, one.model)):
        if one.model in given.get(one.task_id, {}):
            continue
        place = one.task_id, families[one.model]
        ranks[place] = ranks.get(place, 0) + 1
        found.append((one.task_id, one.model, f"{place[1]}-{ranks[place]}"))
    return found


async def _snapshot(conn: Connection) -> Mapping[str, _Rows]:
    queries = {
        "task": "SELECT t.*, id AS key FROM control.task t",
        "model": "SELECT m.*, id AS key FROM control.model m",
        "frontier": "SELECT f.*, id AS key FROM control.frontier_model f",
        "alias": "SELECT a.*, task_id || ' ' || alias AS key FROM control.task_alias a",
        "measurement": "SELECT m.*, task_id || ' ' || kind || ' ' || subject AS key FROM control.measurement m",
    }
    return {what: {row["key"]: dict(row) for row in await conn.fetch(query)} for what, query in queries.items()}


def _differences(before: Mapping[str, _Rows], after: Mapping[str, _Rows]) -> list[Change]:
    changes: list[Change] = []
    for what, now in after.items():
        then = before[what]
        for key in sorted({*then, *now}):
            old, new = then.get(key), now.get(key)
            if new is None:
                changes.append(Change(what, key, "removed"))
            elif old is None:
                changes.append(Change(what, key, "added"))
            else:
                fields = tuple(sorted(name for name in new if new[name] != old[name] and name != "retired_at"))
                was_retired, is_retired = (_is_gone(row) for row in (old, new))
                if was_retired != is_retired:
                    changes.append(Change(what, key, "retired" if is_retired else "restored", fields))
                elif fields:
                    changes.append(Change(what, key, "changed", fields))
    return changes


def _is_gone(row: _Row) -> bool:
    return row.get("retired_at") is not None or row.get("listed") is False
