"""The sandbox for SQL that models write: a process of its own, an empty database in memory, and hardly any rights.

Run as ``python -I sql_sandbox.py``. Reads one JSON object from standard input, ``{"setup", "expected", "given"}``, and
writes ``{"same": bool, "why": str}``. It imports nothing of the gateway, so that it starts quickly and holds nothing
worth stealing.

What keeps hostile SQL in: the database lives in memory and is thrown away; an authorizer refuses files (ATTACH, and
with it VACUUM INTO), extensions, pragmas and, once the setup is done, everything but reading; the process may not
make files or processes, has little memory and seconds of CPU; rows and time are bounded.
"""

import json
import re
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Collection
from typing import Any

MEMORY_BYTES = 512 * 1024 * 1024
CPU_S = 5
WALL_S = 5.0
MAX_ROWS = 10_000
MAX_BYTES = 8 * 1024 * 1024
FILLED_ROWS = 40
MAX_TABLES, MAX_COLUMNS = 50, 100  # that are filled
STEPS = 10_000  # between looks at the clock

_SETUP = {
    getattr(sqlite3, name)
    for name in (
        *("SQLITE_CREATE_TABLE", "SQLITE_CREATE_INDEX", "SQLITE_CREATE_VIEW", "SQLITE_INSERT", "SQLITE_READ"),
        *("SQLITE_SELECT", "SQLITE_TRANSACTION", "SQLITE_UPDATE", "SQLITE_REINDEX", "SQLITE_RECURSIVE"),
    )
}
_QUERY = {sqlite3.SQLITE_READ, sqlite3.SQLITE_SELECT, sqlite3.SQLITE_RECURSIVE}
_NO_FUNCTIONS = {"load_extension", "readfile", "writefile", "edit", "fts3_tokenizer", "randomblob", "zeroblob"}


def authorizer(allowed: Collection[int]) -> Callable[..., int]:
    """A callback that lets these actions through, and functions that reach nothing."""

    def decide(action: int, first: str | None, second: str | None, *rest: str | None) -> int:
        del first, rest
        if action == sqlite3.SQLITE_FUNCTION:
            return sqlite3.SQLITE_DENY if (second or "").lower() in _NO_FUNCTIONS else sqlite3.SQLITE_OK
        return sqlite3.SQLITE_OK if action in allowed else sqlite3.SQLITE_DENY

    return decide


def rows_of(connection: sqlite3.Connection, query: str) -> list[tuple[tuple[str, str], ...]]:
    """The rows of one query, as values that can be compared; floats with the digits that survive a sum's order."""
    cursor = connection.execute(query)
    if cursor.description is None:
        raise sqlite3.OperationalError("no rows can come of it")
    found: list[tuple[tuple[str, str], ...]] = []
    size = 0
    for row in cursor:
        values = tuple(_value(value) for value in row)
        size += sum(len(text) for _, text in values)
        found.append(values)
        if len(found) > MAX_ROWS or size > MAX_BYTES:
            raise sqlite3.OperationalError("too many rows")
    return found


def _value(value: object) -> tuple[str, str]:
    if value is None:
        return ("null", "")
    if isinstance(value, bytes):
        return ("blob", value.hex())
    if isinstance(value, str):
        return ("text", value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, float):
        short = float(f"{value:.10g}")
        value = int(short) if short.is_integer() and abs(short) < 2**33 else short
    # Whole numbers are ids as often as amounts: every digit counts.
    return ("number", str(value))


def compare(setup: str, expected: str, given: str) -> tuple[bool, str]:
    """Whether two queries give the same rows on one database; in the same order, if the good one asks for an order."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    until = time.monotonic() + WALL_S
    connection.set_progress_handler(lambda: time.monotonic() > until, STEPS)
    connection.set_authorizer(authorizer(_SETUP))
    try:
        connection.executescript(setup)
        # Reading the columns of a table is a pragma, of our own words.
        connection.set_authorizer(None)
        tables = tables_of(connection)
        connection.set_authorizer(authorizer(_SETUP))
        fill(connection, tables, expected)
    except (sqlite3.Error, sqlite3.Warning, MemoryError, ValueError):
        return False, "the schema of the row cannot be set up"
    connection.set_authorizer(authorizer(_QUERY))
    try:
        wanted = rows_of(connection, expected)
    except (sqlite3.Error, MemoryError, ValueError, sqlite3.Warning):
        return False, "the good answer of the row cannot be run"
    try:
        got = rows_of(connection, given)
    except (sqlite3.Error, MemoryError, ValueError, sqlite3.Warning):
        return False, "the query cannot be run"
    if asks_for_order(expected):
        return wanted == got, "" if wanted == got else "other rows"
    same = sorted(wanted) == sorted(got)
    return same, "" if same else "other rows"


def asks_for_order(query: str) -> bool:
    """Whether the query itself orders its rows: not one in parentheses, and not a text that says so."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|--[^\n]*|/\*.*?\*/", " ", query.lower(), flags=re.DOTALL)
    depth, outer = 0, []
    for part in re.split(r"([()])", bare):
        depth += (part == "(") - (part == ")")
        if depth == 0:
            outer.append(part)
    return re.search(r"\border\s+by\b", " ".join(outer)) is not None


def tables_of(connection: sqlite3.Connection) -> dict[str, list[tuple[Any, ...]]]:
    """The columns that can be written of each table, as ``PRAGMA table_xinfo`` has them."""
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    found: dict[str, list[tuple[Any, ...]]] = {}
    for (name,) in names.fetchmany(MAX_TABLES):
        columns = connection.execute(f"PRAGMA table_xinfo({_quoted(name)})").fetchall()
        # Computed columns have a number in the last field.
        found[name] = [column for column in columns if column[6] == 0][:MAX_COLUMNS]
    return found


def fill(connection: sqlite3.Connection, tables: dict[str, list[tuple[Any, ...]]], expected: str) -> None:
    """Rows for tables that the setup leaves empty: over no rows nearly every query gives the same.

    The rows are always the same for the same setup and good query. Values come from small pools, so that joins meet and
    groups have members; what the good query compares with is among them, and its neighbours (the idea of "test
    suites" for SQL: Zhong, Yu and Klein, 2020). Rows that a constraint refuses are left out.
    """
    words = re.findall(r"'([^']*)'", expected)[:20]
    bare = re.sub(r"'[^']*'", " ", expected)
    numbers = [float(digits) for digits in re.findall(r"(?<![\w.])\d{1,9}(?:\.\d{1,9})?(?![\w.])", bare)[:20]]
    texts = [*words, "A", "B", "C", "2024-01-15", "2024-12-31", "2025-06-01"]
    amounts = [*(number + off for number in numbers for off in (-1, 0, 1)), 0.0, 1.0, 2.0, 10.0, 60.0, 90.0, 150.0]
    for place, (table, columns) in enumerate(tables.items()):
        name = _quoted(table)
        if not columns or connection.execute(f"SELECT 1 FROM {name} LIMIT 1").fetchone():  # noqa: S608  quoted
            continue
        into = ", ".join(_quoted(column[1]) for column in columns)
        insert = f"INSERT OR IGNORE INTO {name} ({into}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  quoted
        for row in range(FILLED_ROWS):
            values = [
                _filler(row, place * 7 + number * 3, column, texts, amounts) for number, column in enumerate(columns)
            ]
            try:
                connection.execute(insert, values)
            except sqlite3.Error:
                continue


def _filler(row: int, salt: int, column: tuple[Any, ...], texts: list[str], amounts: list[float]) -> object:
    name, kind, is_key = column[1].lower(), column[2].upper(), column[5] > 0
    # Knuth's multiplicative hash: columns that go up and down together would hide a wrong join.
    chance = (row * 31 + salt + 1) * 2654435761 % 2**32 >> 8
    if is_key or name == "id":
        return row + 1
    if name.endswith("id"):
        return chance % (FILLED_ROWS // 2) + 1
    if "INT" in kind:
        return int(amounts[chance % len(amounts)])
    if any(part in kind for part in ("REAL", "FLOA", "DOUB", "NUM", "DEC")):
        return amounts[chance % len(amounts)]
    return texts[chance % len(texts)]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def main() -> None:
    """Shut the door, then look at what came."""
    asked = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))
    same, why = compare(asked["setup"], asked["expected"], asked["given"])
    sys.stdout.write(json.dumps({"same": same, "why": why}))


if __name__ == "__main__":
    main()
