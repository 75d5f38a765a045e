"""How commands answer: JSON for programs, tables for people.

Floor: cli. Every answer is one value made of plain types; the table is only another look at it. Nothing is shortened
when the output is not a terminal, so that ids can be cut out with ordinary tools.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from gateway.core.state import Limits
from ledger.core.money import format_usd

if TYPE_CHECKING:
    from rich.table import Table

_UNBOUNDED_COLUMNS = 10_000


class Answering(Protocol):
    """What this module wants to know of a ``Place``."""

    @property
    def as_json(self) -> bool:
        """Whether the answer is for a program."""


def show_record(
    place: Answering, record: Mapping[str, Any], *, title: str, sections: Mapping[str, Sequence[str]] | None = None
) -> None:
    """One thing: a JSON object, or lines of name and value.

    Args:
        record: what is shown.
        title: stands above the lines.
        sections: names in the record that get a table of their own, and the columns of those that hold many rows.
    """
    if place.as_json:
        _print_json(record)
        return
    sections = sections or {}
    tables = [_lines({name: value for name, value in record.items() if name not in sections}, title=title)]
    for name, columns in sections.items():
        content = record[name]
        if isinstance(content, Mapping):
            tables.append(_lines(content, title=name))
        elif content:
            tables.append(_table(content, columns=columns, title=name))
    _print_tables(*tables)


def show_list(
    place: Answering, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], title: str, empty: str = "None."
) -> None:
    """Many things: a JSON array, or a table of some columns."""
    if place.as_json:
        _print_json(rows)
    elif not rows:
        _write(f"{empty}\n")
    else:
        _print_tables(_table(rows, columns=columns, title=title))


def show_text(place: Answering, record: Mapping[str, Any], text: str) -> None:
    """A JSON object, or a sentence."""
    if place.as_json:
        _print_json(record)
    else:
        _write(f"{text}\n")


def money(name: str, nanos: int) -> dict[str, Any]:
    """An amount twice: exact in nano-USD, and in dollars for people."""
    return {f"{name}_nanos": nanos, f"{name}_usd": format_usd(nanos)}


def limits_of(limits: Limits) -> dict[str, int | None]:
    """Limits as part of a record."""
    return {
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "concurrent": limits.concurrent,
    }


def _lines(record: Mapping[str, Any], *, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in _for_people(record).items():
        table.add_row(name, _cell(value))
    return table


def _table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        shown = _for_people(row)
        table.add_row(*(_cell(shown.get(column)) for column in columns))
    return table


def _for_people(record: Mapping[str, Any]) -> dict[str, Any]:
    """Amounts that stand twice in a record (see :func:`money`) become one cell."""
    shown: dict[str, Any] = {}
    for name, value in record.items():
        stem, _, unit = name.rpartition("_")
        if unit == "nanos" and isinstance(dollars := record.get(f"{stem}_usd"), str):
            shown[stem] = f"{dollars} USD ({value} nano)"
        elif unit != "usd" or not isinstance(record.get(f"{stem}_nanos"), int):
            shown[name] = value
    return shown


def _print_tables(*tables: Table) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else _UNBOUNDED_COLUMNS)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    _write(captured.get())


def _print_json(value: Any) -> None:
    _write(json.dumps(_plain(value), indent=2, ensure_ascii=False) + "\n")


def _write(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has seen enough, which is no failure of the command
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cell(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"
    match _plain(value):
        case None | "":
            return "-"
        case bool() as flag:
            return "yes" if flag else "no"
        case dict() as fields:
            return ", ".join(f"{name}={_cell(field)}" for name, field in fields.items()) or "-"
        case list() as items:
            return "\n".join(_cell(item) for item in items) or "-"
        case other:
            return str(other)


def _plain(value: Any) -> Any:
    """The value in types that JSON has; times are ISO 8601 with their zone."""
    match value:
        case datetime():
            return value.isoformat()
        case Enum():
            return value.value
        case Mapping():
            return {str(name): _plain(field) for name, field in value.items()}
        case str() | int() | float() | None:
            return value
        case Sequence() | set() | frozenset():
            return [_plain(item) for item in value]
        case _:
            return str(value)
