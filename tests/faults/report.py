"""What a run is summed up to, for a terminal and for the README."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.faults.runner import Run

SHOWN = 4
"""Violations of a kind; all of them are in the folder."""


def show(run: Run, console: Console) -> None:
    """The table of faults, the sums, and what was wrong."""
    table = Table(title=f"seed {run.seed}", title_justify="left")
    for column, side in (("", "left"), ("fault", "left"), ("fired", "right"), ("503 s", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]
    table.add_column("recovered in s", justify="right")
    table.add_column("last effect", overflow="fold")
    for row in run.rows:
        fault = row.fault
        if fault.why_not:
            table.add_row(fault.number, fault.name, "skipped", "", "", fault.why_not)
            continue
        effect = fault.effect or f"[red]{row.said}[/red]"
        table.add_row(fault.number, fault.name, str(fault.fired), str(row.down_s), f"{row.most_recovery_s:.1f}", effect)
    console.print(table)
    findings = run.findings
    console.print("requests tried:", findings.counts["requests"], dict(findings.statuses.most_common()))
    console.print("counted:", {name: n for name, n in sorted(findings.counts.items()) if name != "requests"})
    if (trouble := run.world.folder / "trouble").exists():
        console.print(f"strikes that failed by themselves:\n{trouble.read_text()[-4000:]}", markup=False)
    deltas, told = findings.worst_unbilled
    if deltas:
        console.print(f"most unbilled deltas of one request: {deltas}\n{told}", markup=False)
    kinds = ("lost", "twice", "overspent", "mischarged", "wrong 402", "books", "not quiet", "suite")
    verdict = ", ".join(f"{findings.of(kind)} {kind}" for kind in kinds)
    console.print(f"[bold {'red' if findings.violations else 'green'}]{verdict}[/] (seed {run.seed})")
    shown: Counter[str] = Counter()
    for violation in findings.violations:
        shown[violation.kind] += 1
        if shown[violation.kind] > SHOWN:
            continue
        console.print(f"[red]{violation.kind}[/red]: {violation.subject}\n{violation.evidence}", markup=True)


def keep(run: Run, folder: Path) -> Path:
    """Everything that was wrong, in a file beside the logs."""
    path = folder / "violations.txt"
    lines = [f"seed {run.seed}"]
    lines += [f"{d.from_s:.3f} {d.to_s:.3f} {d.name}" for d in run.disturbances]
    lines.append(f"most unbilled deltas: {run.findings.worst_unbilled[0]}\n{run.findings.worst_unbilled[1]}")
    lines += [f"\n{v.kind}: {v.subject}\n{v.evidence}" for v in run.findings.violations]
    path.write_text("\n".join(lines) + "\n")
    return path
