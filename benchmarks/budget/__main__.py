"""Count the calls of the hot path, and hold them against their budgets (``budget.json``).

Exits with 1 if a case costs more than its budget and a tolerance. With ``--write REASON`` what was found becomes the
budget of this version of Python, where it differs.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import click
from rich.console import Console
from rich.table import Table

from benchmarks.budget import budgets, callgrind
from benchmarks.budget.cases import CASES, Case
from benchmarks.budget.rounds import Counts, counted
from benchmarks.peers.peer import PeerFailed

_NAMED = 60
_CASES = {case.name: case for case in CASES}


@click.command(help=__doc__)
@click.option("--case", "names", type=click.Choice(list(_CASES)), multiple=True, help="Only this one; several times.")
@click.option("--write", "reason", metavar="REASON", help="Take what is found for the budget, and say why.")
@click.option("--where", type=click.Choice(list(_CASES)), help="Name the functions that make up a case, and no more.")
@click.option(
    "--instructions", "with_instructions", is_flag=True, help="Count instructions by callgrind as well: minutes."
)
def main(names: Sequence[str], reason: str | None, where: str | None, with_instructions: bool) -> None:
    """Count, print, and judge."""
    if reason is not None and not reason.strip():
        raise click.UsageError("A budget is changed for a reason.")
    if with_instructions and not callgrind.is_here():
        raise click.UsageError("Instructions are counted by valgrind, which is not installed.")
    cases = [case for case in CASES if not names or case.name in names]
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        with counted() as worker:
            if where is not None:
                _print_functions(console, worker.names(_CASES[where]))
                return
            found = {case.name: worker.count(case) for case in cases}
        instructions = callgrind.instructions(cases) if with_instructions else {}
    except PeerFailed as error:
        raise click.ClickException(str(error)) from None
    if reason is not None:
        changed = budgets.write(found, instructions, reason=reason.strip(), cases=_CASES, file=budgets.FILE)
        console.print(
            f"New budgets for Python {budgets.version()}: {', '.join(changed) or 'none, all are as they were'}."
        )
    known = budgets.read()
    python = budgets.version()
    if known and python not in known:
        console.print(
            f"Python {python} has no budgets of its own: the largest of {', '.join(known)} hold, more loosely."
        )
    console.print(_table(cases, found, instructions, known.get(python, {})))
    over = [
        said
        for case in cases
        if (said := budgets.exceeded(case, found[case.name], budgets.allowed(case, known, python)))
    ]
    for said in over:
        console.print(said, style="red")
    if over:
        console.print(budgets.HOW_TO_CHANGE)
        sys.exit(1)


def _table(
    cases: Sequence[Case], found: Mapping[str, Counts], instructions: Mapping[str, int], known: budgets.Budgets
) -> Table:
    table = Table("case", "unit", "calls", "C calls", "on other threads", title="per unit, its budget in parentheses")
    for name in table.columns[2:]:
        name.justify = "right"
    if instructions:
        table.add_column("instructions", justify="right")
    table.add_column("budget since", overflow="fold")
    for case in cases:
        budget = known.get(case.name)
        counts, beside = found[case.name], budget.counts if budget else None
        row = [case.name, case.unit]
        row.append(_figure(counts.loop, beside.loop if beside else None))
        row.append(_figure(counts.loop_c, beside.loop_c if beside else None))
        row.append(_figure(counts.others + counts.others_c, beside.others + beside.others_c if beside else None))
        if instructions:
            row.append(_figure(instructions[case.name], budget.instructions if budget else None))
        table.add_row(*row, f"{budget.date}: {budget.reason}" if budget else "")
    return table


def _figure(found: float, budget: float | None) -> str:
    return f"{found:,.1f}" + (f" ({budget:,.1f})" if budget is not None else "")


def _print_functions(console: Console, found: Mapping[str, float]) -> None:
    table = Table("calls per unit", "function; builtins in parentheses")
    shown = sorted(found.items(), key=lambda one: -one[1])[:_NAMED]
    for name, count in shown:
        if count > 0:
            table.add_row(f"{count:.2f}", name)
    console.print(table)


if __name__ == "__main__":
    main()
