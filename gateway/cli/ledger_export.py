"""ledger export: a period of the books as a file for an accountant.

Floor: cli.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import click

from gateway.cli.export_files import FORMATS, refuse_terminal, standard_output, whole_file
from gateway.cli.output import money, show_list, show_text
from gateway.cli.place import Place, operator
from gateway.control import organizations
from ledger.core.money import format_usd
from ledger.proof.export import SHEETS, ExportRun, Period, exporting

_STDOUT: Final = "-"


class _Bar(Protocol):
    def __call__(self, rows: int) -> None: ...


def day_or_moment(text: str) -> datetime:
    """A day (its beginning, UTC) or a moment in ISO 8601. For ``click.option(type=…)``."""
    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a day such as 2026-11-01 nor a time in ISO 8601.") from None
    return given.astimezone(UTC) if given.tzinfo else given.replace(tzinfo=UTC)


@click.command()
@click.option("--what", type=click.Choice(list(SHEETS)), default="transfers", show_default=True, help="What to export.")
@click.option("--from", "since", type=day_or_moment, metavar="DAY", help="First day (or moment), UTC, inclusive.")
@click.option("--to", "until", type=day_or_moment, metavar="DAY", help="The day (or moment) behind the last, UTC.")
@click.option("--org", "reference", metavar="ORG", help="Only this organization, by id or name.")
@click.option("--format", "format_name", type=click.Choice(list(FORMATS)), default="csv", show_default=True)
@click.option("--out", default=_STDOUT, metavar="FILE", help="Where to write; - is standard output.", show_default=True)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--columns", "show_columns", is_flag=True, help="List the columns and what they mean; export nothing.")
@operator
async def export(
    place: Place,
    /,
    what: str,
    since: datetime | None,
    until: datetime | None,
    reference: str | None,
    format_name: str,
    out: str,
    force: bool,
    show_columns: bool,
) -> None:
    """Write what was booked in a period as CSV or Parquet.

    A row belongs to the period in which its money was booked. Amounts stand there twice: in exact decimal US dollars
    and in whole nano-dollars. In CSV, text that a spreadsheet would run as a formula begins with an apostrophe.
    """
    if show_columns:
        _show_columns(place, what)
        return
    if since is None or until is None or since >= until:
        raise click.UsageError("Give the period: --from DAY and a later --to DAY, such as 2026-01-01 and 2026-02-01.")
    org_id = None
    if reference is not None:
        async with place.control() as conn:
            org_id = (await organizations.find(conn, reference)).id
    if out == _STDOUT:
        refuse_terminal(format_name)
    async with place.pool() as pool, exporting(pool, what, Period(since, until, org_id)) as run:
        with _target(out, force) as file:
            await _write(run, file, format_name, show_progress=sys.stderr.isatty() and not place.as_json)
    _summarize(
        place,
        {
            "what": what,
            "from": since,
            "to": until,
            "org_id": org_id,
            "format": format_name,
            "file": None if out == _STDOUT else out,
            "rows": run.rows,
            "sum_is": run.sheet.sum_is,
            **money("sum", run.sum_nanos),
        },
        on_stderr=out == _STDOUT,
    )
    if until > datetime.now(UTC):
        click.echo("note: the period is not over; a later export of it may have more rows.", err=True)


def _target(out: str, force: bool) -> AbstractContextManager[BinaryIO]:
    return standard_output() if out == _STDOUT else whole_file(Path(out), force=force)


async def _write(run: ExportRun, file: BinaryIO, format_name: str, *, show_progress: bool) -> None:
    writer = FORMATS[format_name](file, run.sheet.columns)
    with _progress(await run.count()) if show_progress else nullcontext(_no_bar) as bar:
        async for page in run.pages():
            writer.write(page)
            bar(len(page))
    writer.close()


def _summarize(place: Place, summary: dict[str, Any], *, on_stderr: bool) -> None:
    """One line: beside the file on standard output, or, when that is taken by the data, on standard error."""
    where = f" to {summary['file']}" if summary["file"] else ""
    amount = f"{format_usd(summary['sum_nanos'])} USD {summary['sum_is']}"
    rows = "1 row" if summary["rows"] == 1 else f"{summary['rows']:,} rows"
    text = f"Exported {rows} of {summary['what']}{where}: {amount}."
    if not on_stderr:
        show_text(place, summary, text)
    elif place.as_json:
        click.echo(json.dumps(summary, default=lambda moment: moment.isoformat()), err=True)
    else:
        click.echo(text, err=True)


def _show_columns(place: Place, what: str) -> None:
    rows = [
        {"column": column.name, "type": "decimal" if column.kind == "usd" else column.kind, "meaning": column.meaning}
        for column in SHEETS[what].columns
    ]
    show_list(place, rows, columns=("column", "type", "meaning"), title=f"Columns of {what}")


@contextmanager
def _progress(total: int) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Exporting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("rows", total=total)
        yield lambda rows: progress.advance(task, rows)


def _no_bar(rows: int) -> None:
    """Nobody watches."""
