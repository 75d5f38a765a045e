"""Files that an export is written to: CSV and Parquet, whole or not at all.

Floor: cli. Knows columns and values, nothing of the books. CSV follows RFC 4180 in UTF-8; amounts are exact decimal
text, times ISO 8601 in UTC. A spreadsheet runs text that begins like a formula, and some of it (names, notes, keys) was
typed by customers: such text gets an apostrophe in front. Source: OWASP, CSV Injection.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import click

from gateway.control.database import Refused
from ledger.core.money import format_usd
from ledger.proof.export import Column, ColumnKind

ROWS_PER_GROUP: Final = 50_000
_FORMULA: Final = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_CONTROL: Final = ("\t", "\r", "\n")


class TableWriter(Protocol):
    """Takes rows as ``ExportRun.pages`` gives them."""

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows."""

    def close(self) -> None:
        """Finish the table; the file stays open."""


class CsvWriter:
    """CSV with a line of column names."""

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._file = file
        self._cells = [_CELLS[column.kind] for column in columns]
        self._text = io.StringIO(newline="")
        self._rows = csv.writer(self._text)
        self._rows.writerow([column.name for column in columns])
        self._flush()

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows; what is missing is an empty cell."""
        self._rows.writerows(
            ["" if value is None else cell(value) for cell, value in zip(self._cells, row, strict=True)] for row in rows
        )
        self._flush()

    def close(self) -> None:
        """Nothing is left to do."""

    def _flush(self) -> None:
        self._file.write(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()


class ParquetWriter:
    """Parquet: dollars as decimal128(38, 9), times as microseconds in UTC."""

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise Refused(
                "Parquet needs the package pyarrow, which is not installed here: pip install 'pareta-gateway[export]', "
                "or choose --format csv."
            ) from None
        types = {
            "text": pyarrow.string(),
            "time": pyarrow.timestamp("us", tz="UTC"),
            "integer": pyarrow.int64(),
            "flag": pyarrow.bool_(),
            "usd": pyarrow.decimal128(38, 9),
        }
        fields = [
            pyarrow.field(column.name, types[column.kind], metadata={"meaning": column.meaning}) for column in columns
        ]
        self._pyarrow = pyarrow
        self._columns = columns
        self._schema = pyarrow.schema(fields)
        self._file = pyarrow.parquet.ParquetWriter(file, self._schema, compression="zstd")
        self._waiting: list[Sequence[Any]] = []

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Append rows; they are gathered to groups of a useful size."""
        self._waiting.extend(rows)
        if len(self._waiting) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write the last group and the footer."""
        if self._waiting:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        arrays = [
            self._pyarrow.array(
                [_dollars(value) for value in values] if column.kind == "usd" else values, type=field.type
            )
            for column, field, values in zip(self._columns, self._schema, zip(*self._waiting, strict=True), strict=True)
        ]
        self._file.write_table(self._pyarrow.Table.from_arrays(arrays, schema=self._schema))
        self._waiting.clear()


FORMATS: Final[dict[str, Callable[[BinaryIO, Sequence[Column]], TableWriter]]] = {
    "csv": CsvWriter,
    "parquet": ParquetWriter,
}


@contextmanager
def whole_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that appears under its name only when the block has ended well; until then it has another one beside it.

    Raises:
        Refused: it exists and ``force`` is not set, or it cannot be written.
    """
    exists = Refused(f"{path} exists; give --force to replace it, or another name.")
    if not force and path.exists():
        raise exists
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with _explained(path), contextlib.ExitStack() as clean_up:
        file = clean_up.enter_context(partial.open("xb"))
        clean_up.callback(partial.unlink, missing_ok=True)
        yield file
        file.flush()
        os.fsync(file.fileno())
        if force:
            partial.replace(path)
            return
        try:
            path.hardlink_to(partial)  # unlike a rename, this never replaces what somebody else has made meanwhile
        except FileExistsError:
            raise exists from None
        except OSError:  # a file system without links
            partial.rename(path)


@contextmanager
def standard_output() -> Iterator[BinaryIO]:
    """Standard output for bytes. A reader that has seen enough (head, less) ends the command quietly."""
    sys.stdout.flush()
    try:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Refused(f"{path} can't be written: {error.strerror}.") from error


def _dollars(nanos: int | None) -> Decimal | None:
    return None if nanos is None else Decimal(nanos).scaleb(-9)


def _text_cell(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    risky = text.startswith(_CONTROL) or text.lstrip().startswith(_FORMULA)
    return f"'{text}" if risky else text


def _time_cell(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


_CELLS: Final[dict[ColumnKind, Callable[[Any], str]]] = {
    "text": _text_cell,
    "time": _time_cell,
    "integer": str,
    "flag": lambda value: "true" if value else "false",
    "usd": format_usd,
}


def refuse_terminal(format_name: str) -> None:
    """Parquet on a screen helps nobody.

    Raises:
        click.UsageError.
    """
    if format_name == "parquet" and sys.stdout.isatty():
        raise click.UsageError("Parquet is not for a terminal: give --out FILE.")
