"""``python -m tests.faults``: break everything, and prove that the money is right."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time

import click
from rich.console import Console

from tests.faults.catalog import chosen
from tests.faults.report import keep, show
from tests.faults.runner import Run
from tests.faults.world import running_world


@click.command()
@click.option("--seconds", default=180.0, show_default=True, help="How long to strike, each fault at least once.")
@click.option("--seed", type=int, default=0, help="Repeat a run; without one, a new seed is drawn and printed.")
@click.option("--only", default="", metavar="1a,2,…", help="Only these faults, by number; `none` for no fault at all.")
@click.option("--shards", default=0, help="Credit shards; without, the seed decides between one and three.")
@click.option("--keep-folder", is_flag=True, help="Keep logs and data also when all went well.")
def main(seconds: float, seed: int, only: str, shards: int, keep_folder: bool) -> None:
    """Run the fault suite. Exit status 1: a promise was broken; the folder with the evidence is named."""
    sys.exit(asyncio.run(run(seconds, seed or time.time_ns() % 2**32, only, shards, keep_folder)))


async def run(seconds: float, seed: int, only: str, shards: int, keep_folder: bool) -> int:
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False, record=True)
    shards = shards or random.Random(seed).choice([1, 3])
    console.print(f"seed {seed}, shards {shards}")
    faults = [] if only == "none" else chosen(only)
    with console.status("starting") as status:
        async with running_world(shards=shards) as world:
            if not console.is_terminal:
                console.print(f"folder {world.folder}")

            def tell(text: str) -> None:
                status.update(text)
                (world.folder / "progress").write_text(text + "\n")

            running = Run(world, seed, seconds, faults, tell=tell)
            await running.run()
    show(running, console)
    (world.folder / "report.txt").write_text(console.export_text())
    evidence = keep(running, world.folder)
    if running.findings.violations:
        console.print(f"The evidence is in {evidence}; logs lie beside it.")
        return 1
    if not keep_folder:
        shutil.rmtree(world.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    main()
