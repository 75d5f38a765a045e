"""The sandbox for SQL that models write: a process of its own, an empty database in memory, and hardly any rights.

Run as ``python -I sql_sandbox.py``. Reads one JSON object from standard input, ``{"setup", "expected", "given"}``, and
writes ``{"same": bool, "why": str}``. It imports nothing of the gateway, so that it starts quickly and holds nothing
worth stealing.

What keeps hostile SQL in: the database lives in memory and is thrown away; an authorizer refuses files (ATTACH, and
with it VACUUM INTO), extensions, pragmas and, once the setup is done, everything but reading; the process may not
make files or processes, has little memory and seconds of CPU; rows and time are bounded.
"""

import json
import resource
import sqlite3
import sys
import time
from collections.abc import Callable, Collection

MEMORY_BYTES = 512 * 1024 * 1024
CPU_S = 5
WALL_S = 5.0
MAX_ROWS = 10_000
MAX_BYTES = 8 * 1024 * 1024
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
    return ("number", f"{float(value):.10g}" if isinstance(value, int | float) else "")


def compare(setup: str, expected: str, given: str) -> tuple[bool, str]:
    """Whether two queries give the same rows on one database; in the same order, if the good one asks for an order."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    until = time.monotonic() + WALL_S
    connection.set_progress_handler(lambda: time.monotonic() > until, STEPS)
    connection.set_authorizer(authorizer(_SETUP))
    try:
        connection.executescript(setup)
    except sqlite3.Error:
        return False, "the schema of the row cannot be set up"
    connection.set_authorizer(authorizer(_QUERY))
    try:
        wanted = rows_of(connection, expected)
    except (sqlite3.Error, MemoryError, ValueError):
        return False, "the good answer of the row cannot be run"
    try:
        got = rows_of(connection, given)
    except (sqlite3.Error, MemoryError, ValueError, sqlite3.Warning):
        return False, "the query cannot be run"
    if "order by" in " ".join(expected.lower().split()):
        return wanted == got, "" if wanted == got else "other rows"
    same = sorted(wanted) == sorted(got)
    return same, "" if same else "other rows"


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
