"""evals: runs, watch.

Floor: cli. For operators: it sees the runs of all organizations, and no row of theirs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import click

from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator

LOOK_EVERY_S: Final = 0.5


@click.group()
def evals() -> None:
    """Eval runs of customers."""


@evals.group()
def runs() -> None:
    """Eval runs: how they go."""


@runs.command("list")
@click.option("--org", "org", metavar="ORG", help="Only of this organization.")
@click.option("--most", type=click.IntRange(1, 1000), default=50, show_default=True, help="So many, the newest.")
@operator
async def list_(place: Place, /, org: str | None, most: int) -> None:
    """List runs, the newest first."""
    from gateway.control import organizations
    from gateway.control.evals import runs as store

    async with place.control() as conn:
        org_id = None if org is None else (await organizations.find(conn, org)).id
        rows = []
        for run in await store.list_of(conn, org_id, most=most):
            done, wanted = await store.progress_of(conn, run.id)
            rows.append(
                {
                    "id": run.id,
                    "org": run.org_id,
                    "status": run.status.value,
                    "answers": f"{done}/{wanted}",
                    "held_micros": run.hold.held_micros,
                    "cost_micros": run.total_cost_micros,
                    "created_at": run.created_at,
                }
            )
    show_list(
        place,
        rows,
        columns=("id", "org", "status", "answers", "held_micros", "cost_micros", "created_at"),
        title="Eval runs",
        empty="There is no run.",
    )


@runs.command()
@click.argument("run_id", metavar="RUN")
@operator
async def watch(place: Place, /, run_id: str) -> None:
    """Follow a run until it has ended, then show what it says."""
    from gateway.control.database import NotFound
    from gateway.control.evals import runs as store
    from gateway.control.evals.results import in_order

    async with place.control() as conn:
        org_id = await conn.fetchval("SELECT org_id FROM control.eval_run WHERE id = $1", run_id)
        run = await store.find(conn, org_id, run_id) if org_id is not None else None
        if run is None:
            raise NotFound(f"There is no eval run {run_id!r}.")
        done, wanted = await store.progress_of(conn, run_id)
        shows = sys.stderr.isatty() and not place.as_json
        with _bar(wanted) if shows else nullcontext(_nothing) as tell:
            while run.status.value not in ("completed", "failed"):
                tell(done, run.status.value)
                await asyncio.sleep(LOOK_EVERY_S)
                done, _ = await store.progress_of(conn, run_id)
                run = await store.find(conn, run.org_id, run_id) or run
            tell(done, run.status.value)
        results: list[dict[str, Any]] = [
            {
                "model": one.name,
                "kind": one.kind,
                "quality": one.quality_mean,
                "low": one.quality_low,
                "high": one.quality_high,
                "mean_cost_micros": one.mean_cost_micros,
                "succeeded": one.succeeded,
                "failed": one.failed,
            }
            for one in in_order(await store.results_of(conn, run_id))
        ]
    show_record(
        place,
        {
            "run": run.id,
            "org": run.org_id,
            "status": run.status.value,
            "cost_micros": run.total_cost_micros,
            "error": run.error_detail,
            "results": results,
        },
        title=f"Eval run {run.id}",
        sections={
            "results": ("model", "kind", "quality", "low", "high", "mean_cost_micros", "succeeded", "failed"),
        },
    )


_Tell = Callable[[int, str], None]


def _nothing(done: int, status: str) -> None:
    """For a terminal that is none."""


@contextmanager
def _bar(wanted: int) -> Iterator[_Tell]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("queued", total=wanted)
        yield lambda done, status: progress.update(task, completed=done, description=status)
