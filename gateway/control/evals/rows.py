"""Rows of an eval set: reading JSON lines, and finding in them what is asked and what a good answer is.

Floor: control (pure). Contract: sections 2.6.1 and OPEN-45, OPEN-46. Rows come in several shapes; the good answer is
the first of `GOLD_KEYS` that is there, the input is ``input`` or else all that remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

GOLD_KEYS: Final = ("expected", "target", "expected_output", "reference", "label")
MAX_ROWS: Final = 1000
MAX_ROW_BYTES: Final = 64 * 1024
MAX_FILE_BYTES: Final = 16 * 1024 * 1024
MAX_DEPTH: Final = 50


class RowInvalid(ValueError):
    """A row or the whole file can't be used; the text continues the sentence "items …"."""


@dataclass(frozen=True, slots=True)
class EvalRow:
    """One row.

    Attributes:
        input: what models are asked: a text, or an object with a value for each input field.
        expected: the good answer, in the form that the task's scorer takes.
        extra: keys that mean nothing to us; kept.
    """

    idx: int
    input: Any
    expected: Any
    extra: Mapping[str, Any]


class LineReader:
    """Takes a file piece by piece and gives its rows; never holds more than one line beside them."""

    def __init__(self) -> None:
        self._rest = b""
        self._size_bytes = 0
        self._rows = 0

    def feed(self, data: bytes) -> Iterator[EvalRow]:
        """The rows that are whole now.

        Raises:
            RowInvalid.
        """
        self._size_bytes += len(data)
        if self._size_bytes > MAX_FILE_BYTES:
            raise RowInvalid(f"must not be larger than {MAX_FILE_BYTES // 1024 // 1024} MiB")
        # Only \n ends a line: letters such as U+2028 may stand in a text.
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_ROW_BYTES:
            raise RowInvalid(f"row {self._rows} is longer than {MAX_ROW_BYTES // 1024} KiB")
        for line in lines:
            yield from self._row(line)

    def end(self) -> Iterator[EvalRow]:
        """The last row, which needs no line end.

        Raises:
            RowInvalid: also when there was no row at all.
        """
        rest, self._rest = self._rest, b""
        yield from self._row(rest)
        if self._rows == 0:
            raise RowInvalid("must hold at least one row")

    def _row(self, line: bytes) -> Iterator[EvalRow]:
        if not line.strip():
            return
        idx = self._rows
        if idx >= MAX_ROWS:
            raise RowInvalid(f"must not hold more than {MAX_ROWS} rows")
        if len(line) > MAX_ROW_BYTES:
            raise RowInvalid(f"row {idx} is longer than {MAX_ROW_BYTES // 1024} KiB")
        self._rows += 1
        yield read_row(idx, line)


def read_row(idx: int, line: bytes) -> EvalRow:
    """A row from its line of JSON.

    Raises:
        RowInvalid: it is no object, is empty, or has no good answer.
    """
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        # NaN and Infinity too, which some encoders write and no JSON has.
        raise RowInvalid(f"row {idx} is not JSON in UTF-8") from None
    if not isinstance(row, dict) or not row:
        raise RowInvalid(f"row {idx} must be an object that is not empty")
    if _depth(row) > MAX_DEPTH:
        raise RowInvalid(f"row {idx} is nested more than {MAX_DEPTH} deep")
    if "\\u0000" in line.decode("utf-8") and _holds_nul(row):
        raise RowInvalid(f"row {idx} holds the character U+0000, which cannot be kept")
    gold = next((key for key in GOLD_KEYS if row.get(key) is not None), None)
    if gold is None:
        raise RowInvalid(f"row {idx} has no good answer; put one under {', '.join(GOLD_KEYS[:-1])} or {GOLD_KEYS[-1]}")
    rest = {key: value for key, value in row.items() if key != gold}
    if "input" in rest:
        asked = rest.pop("input")
        if asked is None or not isinstance(asked, str | dict) or not asked:
            raise RowInvalid(f"row {idx} has an input that is neither a text nor an object, or is empty")
        return EvalRow(idx, asked, row[gold], rest)
    # Rows of documents may have nothing left: their document is attached afterwards.
    return EvalRow(idx, rest, row[gold], {})


def _depth(value: object) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        if deepest > MAX_DEPTH:
            break
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return deepest


def _holds_nul(value: object) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any("\x00" in key or _holds_nul(inner) for key, inner in value.items())
    return isinstance(value, list) and any(_holds_nul(inner) for inner in value)
