"""A run as tables in a terminal: every peer in every scenario, the ratios, and the floors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.peers.catalog import LEFT_OUT, NGINX, SGLANG
from benchmarks.peers.figures import WAITING, Cell, Figure, Run, cpu_us, per_core
from benchmarks.peers.floors import FLOORS, Verdict
from benchmarks.peers.peer import Peer
from benchmarks.peers.scenarios import Scenario
from benchmarks.results import Spread

NONE = "–"


def print_run(
    console: Console, run: Run, peers: Sequence[Peer], scenarios: Sequence[Scenario], versions: Mapping[str, str]
) -> None:
    """Everything that a run brought, losses included."""
    for scenario in scenarios:
        console.print(scenario_table(run, scenario, peers))
    console.print("Peers", style="bold")
    for peer in peers:
        if peer.name in run.absent:
            console.print(f"  {peer.label} is missing: {run.absent[peer.name]}", markup=False)
        else:
            version = f" {versions[peer.name]}" if versions.get(peer.name) else ""
            console.print(f"  {peer.label}{version}: {peer.note}", markup=False)
    for (name, scenario_name), reason in run.gaps.items():
        console.print(f"  {name} has no figures for {scenario_name}: {reason}", markup=False)
    for name, reason in LEFT_OUT.items():
        console.print(f"  {name} is missing: {reason}", markup=False)
    console.print("Conditions", style="bold")
    for line in conditions(run):
        console.print(f"  {line}", markup=False)
    console.print("Floors", style="bold")
    for floor in FLOORS:
        verdict = floor.judge(run)
        console.print(f"  {verdict.text}", style=_STYLES[verdict.is_met], markup=False)


_STYLES = {True: "green", False: "red", None: "yellow"}


def conditions(run: Run) -> list[str]:
    """What besides the peers may have shaped the figures, at its worst."""
    generators = [max(cell.measurement.generator_shares, default=0.0) for cell in run.cells]
    waiting = [cell.measurement.cpu_share(WAITING) for cell in run.cells if WAITING in cell.measurement.groups]
    shared = [cell.all_share - (cell.proxy_share or 0.0) for cell in run.cells]
    return [
        f"the load generator used up to {max(generators, default=0):.0%} of a core, and with engine and databases up "
        f"to {max(shared, default=0):.0%}: near all of their cores it is they who set the rate; the cost a unit stands",
        f"peers whose turn it was not used up to {max(waiting, default=0):.0%} of a core",
    ]


def verdicts(run: Run) -> list[Verdict]:
    """All floors, judged."""
    return [floor.judge(run) for floor in FLOORS]


def scenario_table(run: Run, scenario: Scenario, peers: Sequence[Peer]) -> Table:
    """One scenario: a row for each peer, medians over the rounds; the ratios are of rates a core."""
    unit = scenario.unit.value
    waits_for = scenario.waits_for
    table = Table(
        "peer",
        f"{unit}s/s",
        f"µs CPU a {unit}",
        f"{unit}s a core",
        "× nginx",
        "× SGLang",
        "core used",
        "all CPU",
        f"{waits_for} p50 / p99, ms",
        "added p50 / p99, ms",
        "RSS, MiB",
        "errors",
        title=scenario.label + (f" ({scenario.due_per_s:,.0f} due a second)" if scenario.due_per_s else ""),
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for peer in peers:
        table.add_row(*_row(run, scenario, peer))
    return table


def _row(run: Run, scenario: Scenario, peer: Peer) -> list[str]:
    name = scenario.name
    cells = run.of(peer.name, name)
    if not cells:
        return [peer.label, *[NONE] * 10, "missing" if peer.name in run.absent else "not measured"]

    def shown(figure: Figure, text: str) -> str:
        return _plain(run.spread(peer.name, name, figure), text)

    def against(other: str) -> str:
        return _plain(run.ratio(name, per_core, peer.name, other), ".3g")

    added = [run.added_ms(name, peer.name, percent) for percent in (50, 99)]
    return [
        peer.label,
        _with_range(run.spread(peer.name, name, lambda cell: cell.rate_per_s), ",.0f"),
        _with_range(run.spread(peer.name, name, cpu_us), ",.1f"),
        shown(per_core, ",.0f"),
        against(NGINX),
        against(SGLANG),
        shown(lambda cell: cell.proxy_share, ".0%"),
        shown(lambda cell: cell.all_share, ".0%"),
        f"{shown(_wait(50), '.2f')} / {shown(_wait(99), '.2f')}",
        " / ".join(_plain(spread, "+.2f") for spread in added),
        shown(lambda cell: cell.rss_mib, ",.0f"),
        f"{sum(cell.errors for cell in cells):,}",
    ]


def _wait(percent: float) -> Figure:
    def figure(cell: Cell) -> float:
        return cell.wait_ms(percent)

    return figure


def _plain(spread: Spread | None, text: str) -> str:
    return NONE if spread is None else format(spread.median, text)


def _with_range(spread: Spread | None, text: str) -> str:
    if spread is None:
        return NONE
    return f"{spread.median:{text}} ({spread.low:{text}}–{spread.high:{text}})"
