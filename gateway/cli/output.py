"""How commands answer: JSON for programs, tables for people.

Floor: cli. Every answer is one value made of plain types; the table is only another look at it. Nothing is shortened
when the output is not a terminal, so that ids can be cut out with ordinary tools.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from gateway.core.state import Limits
from ledger.core.money import format_usd

if TYPE_CHECKING:
    from rich.console import Console
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
    console = _console()
    console.print(_lines({name: value for name, value in record.items() if name not in sections}, title=title))
    for name, columns in sections.items():
        content = record[name]
        if isinstance(content, Mapping):
            console.print(_lines(content, title=name))
        elif content:
            console.print(_table(content, columns=columns, title=name))


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


def _lines(record: Mapping[str, Any], *, title: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
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
        stem = name.removesuffix("_nanos")
        if name.endswith("_usd") and f"{name.removesuffix('_usd')}_nanos" in record:
            continue
        if stem != name and f"{stem}_usd" in record:
            shown[stem] = "-" if value is None else f"{record[f'{stem}_usd']} USD ({value} nano)"
        else:
            shown[name] = value
    return shown


def _console() -> Console:
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, width=_UNBOUNDED_COLUMNS)


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


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False))
