"""How commands answer: JSON for programs, tables for people.

Floor: cli. Every answer is one value made of plain types; the table is only another look at it. Nothing is shortened
when the output is not a terminal, so that ids can be cut out with ordinary tools.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from gateway.core.state import Limits
from ledger.core.money import format_usd

if TYPE_CHECKING:
    from rich.console import Console

_UNBOUNDED_COLUMNS = 10_000


class Answering(Protocol):
    """What this module wants to know of a ``Place``."""

    @property
    def as_json(self) -> bool:
        """Whether the answer is for a program."""


def show_record(
    place: Answering, record: Mapping[str, Any], *, title: str, extra: Sequence[tuple[str, Sequence[Any]]] = ()
) -> None:
    """One thing: a JSON object, or lines of name and value.

    Args:
        record: what is shown.
        title: stands above the lines.
        extra: names and rows of tables that follow; their rows are in ``record`` too, under that name.
    """
    if place.as_json:
        _print_json(record)
        return
    from rich.table import Table

    console = _console()
    tables = {name for name, _ in extra}
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in record.items():
        if name not in tables:
            table.add_row(name, _cell(value))
    console.print(table)
    for name, rows in extra:
        if rows:
            console.print(_table([_plain(row) for row in rows], columns=tuple(_plain(rows[0])), title=name))


def show_list(
    place: Answering, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], title: str, empty: str = "None."
) -> None:
    """Many things: a JSON array, or a table of some columns."""
    if place.as_json:
        _print_json(rows)
    elif not rows:
        print(empty)
    else:
        _console().print(_table(rows, columns=columns, title=title))


def show_text(place: Answering, record: Mapping[str, Any], text: str) -> None:
    """A JSON object, or a sentence."""
    if place.as_json:
        _print_json(record)
    else:
        print(text)


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


def _table(rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str], title: str) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column.endswith(("_nanos", "_usd")) else "left")
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _console() -> Console:
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, width=_UNBOUNDED_COLUMNS)


def _cell(value: Any) -> str:
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


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))
