"""The gateway beside other proxies: the same mock engine, the same loads, the same core, in one run.

``python -m benchmarks.peers`` installs what is missing into ``.bench-peers`` (nothing outside it), starts everything,
measures for about a quarter of an hour and prints tables, ratios and the floors. ``--peer nginx --peer gateway`` and
``--scenario small`` narrow it down.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks.load import Progress as LoadProgress
from benchmarks.peers import report
from benchmarks.peers.catalog import all_peers
from benchmarks.peers.scenarios import SCENARIOS
from benchmarks.peers.side_by_side import Plan, Watcher, install, side_by_side
from benchmarks.peers.table import print_run
from benchmarks.processes import choose_cores

INSTALLED = Path(__file__).parents[2] / ".bench-peers"
_PEERS = {peer.name: peer for peer in all_peers()}
_SCENARIOS = {scenario.name: scenario for scenario in SCENARIOS}


@click.command(help=__doc__)
@click.option("--peer", "peers", multiple=True, type=click.Choice(list(_PEERS)), help="Only these.")
@click.option("--scenario", "scenarios", multiple=True, type=click.Choice(list(_SCENARIOS)), help="Only these.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.5), help="Of each measurement.")
@click.option("--slow-seconds", default=2.5, show_default=True, type=click.FloatRange(0.5), help="For slow peers.")
@click.option("--installed", default=INSTALLED, type=click.Path(path_type=Path), help="Where peers are installed.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of results; by default one below results/.")
@click.option("--install-only", is_flag=True, help="Install, and say what cannot be had.")
def main(
    peers: tuple[str, ...],
    scenarios: tuple[str, ...],
    rounds: int,
    seconds: float,
    slow_seconds: float,
    installed: Path,
    out: Path | None,
    install_only: bool,
) -> None:
    """Run and print."""
    console = Console()
    plan = Plan(
        [peer for name, peer in _PEERS.items() if not peers or name in peers],
        [scenario for name, scenario in _SCENARIOS.items() if not scenarios or name in scenarios],
        rounds,
        seconds,
        slow_seconds,
    )
    if install_only:
        for name, reason in install(plan.peers, installed.absolute(), Watcher(say=console.print)).items():
            console.print(f"{name}: {reason}", markup=False)
        return
    cores = choose_cores(1)
    if cores.are_shared:
        console.print("There is one core only: everything shares it, and wall-clock figures say little.", style="red")
    with _progress(console) as bar:
        whole, one = bar.add_task("starting", total=plan.steps), bar.add_task("", total=1.0, visible=False)

        def load(progress: LoadProgress) -> None:
            done = min(progress.elapsed_s, progress.total_s)
            bar.update(one, description=f"  {progress.phase}", total=progress.total_s, completed=done, visible=True)

        def say(text: str) -> None:
            bar.update(whole, description=text)
            if not console.is_terminal:  # a bar is drawn only on one
                console.print(text, markup=False)

        watcher = Watcher(
            say=say,
            step=lambda: bar.advance(whole),
            progress=load,
        )
        run, versions = side_by_side(plan, installed.absolute(), cores, watcher)
    print_run(console, run, plan.peers, plan.scenarios, versions)
    folder = out or report.default_folder()
    console.print(f"{', '.join(report.write(folder, run, plan, cores, versions))} in {folder}", markup=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


if __name__ == "__main__":
    main()
