"""``python -m benchmarks.catalog``: measures the demonstration catalogue and writes its boards.

The rows go through the whole platform, as a customer's would: eval sets, documents, eval runs, scorers, intervals and
costs. The models are the simulator's rule programs, and one of them plays a vendor. It takes about two minutes.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aiohttp
import click
from rich.console import Console
from rich.table import Table

from backends.simulator import process as simulators
from backends.simulator import rules
from backends.simulator.documents import plain_pdf
from benchmarks import stack as stacks
from benchmarks.catalog.rows import MAKERS, ROWS, SEED, Row, rows_of
from benchmarks.results import commit, machine
from gateway.control.catalog.folder import read_files, shipped
from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from gateway.control.deploys import store as deploys

FRONTIER: Final = "demo-frontier"
FRONTIER_RATES: Final = (3_000_000_000, 15_000_000_000)
"""Nano-USD a million tokens, in and out: of our own choosing, like all prices here."""
_PATIENCE_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Priced:
    """An open model of the demonstration, with the price of a request in micro-USD."""

    id: str
    family: str
    micros: int


OPEN: Final = (
    Priced("rules-large", "alder", 150),
    Priced("rules-medium", "birch", 60),
    Priced("rules-small", "cedar", 20),
)


class MeasuringFailed(RuntimeError):
    """The platform refused something; the text says what."""


@click.command()
@click.option("--rows", "count", default=ROWS, show_default=True, type=click.IntRange(2, 1000), help="Of each task.")
@click.option("--task", "names", multiple=True, type=click.Choice(list(MAKERS)), help="Only this; may be repeated.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="By default the shipped catalogue.")
def main(count: int, names: tuple[str, ...], out: Path | None) -> None:
    """Measure the demonstration catalogue."""
    folder = out or shipped()
    say = (lambda text: print(text, file=sys.stderr)) if sys.stderr.isatty() else (lambda _: None)
    flags = [flag for model in rules.MODELS for flag in ("--model", model)]
    with (
        simulators.running(*flags, "--ttft-ms", "0", "--itl-ms", "0") as engine,
        stacks.running(say=say, demo_vendor_url=engine.url) as stack,
    ):
        boards = asyncio.run(measure(stack, engine.url, names or tuple(MAKERS), count, say))
    write(folder, boards)
    show(boards)
    print(f"{len(boards)} boards in {folder}")


async def measure(
    stack: stacks.BenchStack, engine_url: str, names: Sequence[str], count: int, say: Any
) -> dict[str, dict[str, Any]]:
    """Boards by task.

    Raises:
        MeasuringFailed.
    """
    files = {name: data for name, data in read_files(shipped()).items() if name.startswith("tasks/")}
    files |= {name: json.dumps(value).encode() for name, value in catalogue_files().items()}
    for task_id in names:
        # Only so that the models have names: these numbers are replaced by what is measured.
        board = {"open": [_line(one.id, 0.0, one.micros) for one in OPEN], "frontier": [_line(FRONTIER, 0.0, 0)]}
        files[f"boards/{task_id}.json"] = json.dumps({**board, "recommended": None}).encode()
    async with session(stack.settings.database_url) as conn:
        await import_catalog(conn, read_catalog(files))
        for one in OPEN:
            await deploys.register(conn, one.id, "static", {"backends": [engine_url]}, max_output_tokens=None)
        aliases = {
            (row["task_id"], row["model_id"]): row["alias"]
            for row in await conn.fetch("SELECT task_id, model_id, alias FROM control.task_alias")
        }
    boards: dict[str, dict[str, Any]] = {}
    headers = {"Authorization": f"Bearer {stack.target.api_key}"}
    async with aiohttp.ClientSession(stack.target.base_url, headers=headers) as http:
        await _until_there(http)
        for task_id in names:
            say(f"measuring {task_id}")
            found = await _run(http, task_id, rows_of(task_id, count), [aliases[task_id, one.id] for one in OPEN])
            boards[task_id] = {
                "open": [_measured(found[aliases[task_id, one.id]], one.id, one.micros, count) for one in OPEN],
                "frontier": [_measured(found[FRONTIER], FRONTIER, found[FRONTIER]["mean_cost_micro_usd"], count)],
                "recommended": None,
            }
    return boards


async def _run(http: aiohttp.ClientSession, task_id: str, rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """One eval run over rows; the results by model."""
    form = aiohttp.FormData()
    form.add_field("task_id", task_id)
    form.add_field("name", "demonstration")
    lines = "\n".join(json.dumps(row.row) for row in rows).encode()
    form.add_field("items", lines, filename="items.jsonl", content_type="application/jsonl")
    made = await _ask(http, "POST", "/v1/eval-sets", data=form)
    set_id = made["eval_set"]["id"]
    for idx, row in enumerate(rows):
        if row.document:
            form = aiohttp.FormData()
            form.add_field("file", plain_pdf(row.document), filename="page.pdf", content_type="application/pdf")
            for name, value in (("idx", str(idx)), ("field_name", "document"), ("mime", "application/pdf")):
                form.add_field(name, value)
            await _ask(http, "POST", f"/v1/eval-sets/{set_id}/attach-blob", data=form)
    body = {"eval_set_id": set_id, "candidate_model_ids": [*names, FRONTIER]}
    run_id = (await _ask(http, "POST", "/v1/eval-runs", json=body))["run_id"]
    until_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until_s:
        said = await _ask(http, "GET", f"/v1/eval-runs/{run_id}")
        if said["run"]["status"] == "completed":
            failed = [one["model_id"] for one in said["results"] if one["error_count"]]
            if failed:
                raise MeasuringFailed(f"{task_id}: rows failed for {', '.join(failed)}")
            return {one["model_id"]: one for one in said["results"]}
        if said["run"]["status"] == "failed":
            raise MeasuringFailed(f"{task_id}: {said['run']['error_detail']}")
        await asyncio.sleep(0.2)
    raise MeasuringFailed(f"{task_id}: the run did not end")


async def _ask(http: aiohttp.ClientSession, method: str, path: str, **more: Any) -> Any:
    async with http.request(method, path, **more) as response:
        if response.status >= 300:
            raise MeasuringFailed(f"{method} {path}: {response.status} {await response.text()}")
        return await response.json()


async def _until_there(http: aiohttp.ClientSession) -> None:
    """Until the control process answers."""
    for _ in range(300):
        async with http.get("/v1/tasks") as response:
            if response.status == 200:
                return
        await asyncio.sleep(0.1)
    raise MeasuringFailed("The platform does not answer.")


def catalogue_files() -> dict[str, Any]:
    """The files beside tasks and boards."""
    return {
        "catalog.json": {"version": "demonstration-1"},
        "models.json": [{"id": one.id, "family": one.family, "context_tokens": 32_768, "vision": True} for one in OPEN],
        "frontier.json": [
            {
                "id": FRONTIER,
                "vendor": "demo",
                "vision": True,
                "context_tokens": 32_768,
                "prompt_nanos_per_million": FRONTIER_RATES[0],
                "completion_nanos_per_million": FRONTIER_RATES[1],
            }
        ],
    }


def write(folder: Path, boards: Mapping[str, Any]) -> None:
    """Write the boards, and the files beside them."""
    for name, value in (catalogue_files() | {f"boards/{task}.json": board for task, board in boards.items()}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=1) + "\n")


def show(boards: Mapping[str, Any]) -> None:
    """Print what was measured."""
    table = Table(title="Quality (95 % interval), micro-USD a request", title_justify="left")
    for column in ("task", *(one.id for one in OPEN), FRONTIER):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task_id, board in boards.items():
        cells = [
            f"{one['quality']:.2f} ({one['quality_low']:.2f}–{one['quality_high']:.2f}), "
            f"{one['cost_per_request_micros']}"
            for one in (*board["open"], *board["frontier"])
        ]
        table.add_row(task_id, *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _measured(result: Mapping[str, Any], model: str, micros: int, count: int) -> dict[str, Any]:
    return {
        "model": model,
        "quality": result["quality_mean"],
        "quality_low": result["quality_ci_low"],
        "quality_high": result["quality_ci_high"],
        "items": count,
        "cost_per_request_micros": micros,
        "provenance": {
            "measured_with": "python -m benchmarks.catalog",
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": commit(),
            "machine": machine()["processor"],
            "rows": f"{count} rows of our own making (benchmarks/catalog/rows.py, seed {SEED})",
            "engine": "a rule program of the simulator (backends/simulator/rules); no language model",
            "price": "of our own choosing",
        },
    }


def _line(model: str, quality: float, micros: int) -> dict[str, Any]:
    return {"model": model, "quality": quality, "quality_low": 0.0, "quality_high": 1.0, "items": 1,
            "cost_per_request_micros": micros, "provenance": {"measured_with": "nothing yet"}}  # fmt: skip


if __name__ == "__main__":
    main()
