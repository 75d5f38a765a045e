"""catalog: import, tasks, board.

Floor: cli. Where an operator looks at a board, real model ids are shown: this is not for customers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator


@click.group()
def catalog() -> None:
    """Tasks, models, their public names, and what was measured."""


@catalog.command("import")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False), required=False)
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@operator
async def import_(place: Place, /, folder: Path | None, dry_run: bool) -> None:
    """Make the database say what a catalogue's files say; without FOLDER those of the demonstration catalogue.

    Models that join a board get their public names now, and keep them for ever. What the files do not name any more is
    retired.
    """
    from gateway.control.catalog import folder as files
    from gateway.control.catalog.importing import import_catalog
    from gateway.control.catalog.reading import CatalogInvalid, read_catalog
    from gateway.control.database import Refused

    try:
        read = read_catalog(files.read_files(folder or files.shipped()))
    except CatalogInvalid as invalid:
        raise Refused("The catalogue cannot be imported:\n  " + "\n  ".join(invalid.problems)) from None
    async with place.control() as conn:
        changes = await import_catalog(conn, read, dry_run=dry_run)
    rows = [{"what": one.what, "id": one.id, "how": one.how, "fields": ", ".join(one.fields)} for one in changes]
    show_list(
        place,
        rows,
        columns=("what", "id", "how", "fields"),
        title=f"Catalogue {read.version}: {'would change' if dry_run else 'changed'}",
        empty="Nothing changes: the database says the same.",
    )


@catalog.command()
@operator
async def tasks(place: Place, /) -> None:
    """List the tasks."""
    from gateway.control.catalog import store

    async with place.control() as conn:
        found = await store.tasks(conn)
    rows = [
        {
            "id": task.id,
            "title": task.title,
            "scorer": task.default_scorer,
            "documents": task.has_blob_input,
            "examples": len(task.examples),
        }
        for task in found
    ]
    show_list(
        place,
        rows,
        columns=("id", "title", "scorer", "documents", "examples"),
        title="Tasks",
        empty="There is no task yet; `catalog import` brings some.",
    )


@catalog.command()
@click.argument("task_id", metavar="TASK")
@operator
async def board(place: Place, /, task_id: str) -> None:
    """Show a task's board, with the real models behind the names."""
    from gateway.control.catalog import store
    from gateway.control.database import NotFound

    async with place.control() as conn:
        if await store.task(conn, task_id) is None:
            raise NotFound(f"There is no task {task_id!r}.")
        found = await store.board(conn, task_id)
    models: list[dict[str, Any]] = [
        {
            "name": row.alias,
            "model": row.model_id,
            "quality": row.quality,
            "cost_per_request_micros": row.cost_per_request_micros,
            "recommended": row.alias == found.recommended,
        }
        for row in found.rows
    ]
    if found.frontier is not None:
        models.append(
            {
                "name": found.frontier.id,
                "model": "(vendor)",
                "quality": found.frontier.quality,
                "cost_per_request_micros": found.frontier.cost_per_request_micros,
                "recommended": False,
            }
        )
    show_record(
        place,
        {"task": task_id, "recommended": found.recommended, "models": models},
        title=f"Board of {task_id}",
        sections={"models": ("name", "model", "quality", "cost_per_request_micros", "recommended")},
    )
