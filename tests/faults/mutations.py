"""``make mutations``: take one safeguard out of the ledger at a time; the tests must go red each time.

Works on a copy of the tree. A mutation names the exact text that it takes out, so one whose text is gone fails loudly
and must be written anew. The tests of each are first run on the unharmed copy: red means nothing where green was never
seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from tests.faults.world import ROOT

GREEN, RED = 0, 1
"""pytest's exit status: all passed, some failed. Any other is trouble of its own."""

TIMEOUT_S = 600
_LEFT_OUT = (".git", ".venv", ".data", "data", "shared", "__pycache__", ".*_cache", ".hypothesis", "build", "dist")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One safeguard, taken out. ``tests``: the smallest part of the suite that should notice (or ``faults:1g``)."""

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


_IT = "tests/integration/test_ledger_"

MUTATIONS = (
    Mutation(
        "no conflict clause where a batch is booked",
        "ledger/queries/apply_batch.sql",
        "    ON CONFLICT (hold_id, id_time, revision) DO NOTHING\n",
        "",
        (_IT + "reconcile.py",),
    ),
    Mutation(
        "no conflict clause where a settlement is recovered",
        "ledger/queries/apply_recovered.sql",
        "    ON CONFLICT (hold_id, id_time, revision) DO NOTHING\n",
        "",
        (_IT + "recovery.py",),
    ),
    Mutation(
        "SETTLE does not ask whether the hold is still open",
        "ledger/lua/ledger.lua",
        "  if row.state ~= 'held' then return '1,' .. row.charged .. ',' .. row.short end\n"
        "  local charge, short = finish('settle'",
        "  row.held = row.held or '0'\n  local charge, short = finish('settle'",
        (_IT + "counter.py", "tests/properties/test_ledger_hold_model.py"),
    ),
    Mutation(
        "any reconciler may write, whoever took over",
        "ledger/books/batches.py",
        "            WHERE shard = $1 AND fence = $2 FOR UPDATE",
        "            WHERE shard = $1 AND $2::bigint > 0 FOR UPDATE",
        (_IT + "reconcile.py",),
    ),
    Mutation(
        "a new worker waits with the journal of the old one for its first own settlement",
        "ledger/outbox/delivery.py",
        "        return self._take_over(self._shelves[0])\n",
        "        return 0\n",
        (_IT + "outbox.py",),
    ),
    Mutation(
        "a new worker does not replay the journal of the old one",
        "ledger/outbox/journal.py",
        "        self._settle(_joined(runs))\n",
        "        self._settle([(1, self._next_number)])\n",
        ("faults:1g",),
    ),
    Mutation(
        "a grant that is sent twice counts twice",
        "ledger/lua/ledger.lua",
        "  if a[3] <= last then return '1' end\n  if a[3] ~= last + 1 then return '2' end\n",
        "",
        (_IT + "counter.py", "tests/properties/test_ledger_hold_model.py"),
    ),
    Mutation(
        "Redis is filled from the balance, which is not set aside",
        "ledger/books/grants.py",
        "SET available_nanos = available_nanos - $2, escrow_nanos = escrow_nanos + $2,",
        "SET escrow_nanos = escrow_nanos + $2,",
        (_IT + "postgres.py",),
    ),
    Mutation(
        "the guardian lets in a Redis that lacks booked events",
        "ledger/core/trust.py",
        "    if found.seq < books.seq:\n",
        "    if False:\n",
        ("tests/unit/test_ledger_trust.py", _IT + "guardian.py"),
    ),
    Mutation(
        "the guardian does not listen to what workers saw",
        "ledger/core/trust.py",
        "    if found.seq < books.witnessed_seq:\n",
        "    if False:\n",
        ("tests/unit/test_ledger_trust.py", _IT + "guardian.py"),
    ),
    Mutation(
        "Redis serves callers of any epoch",
        "ledger/lua/ledger.lua",
        "if meta[1] ~= ARGV[1] then\n",
        "if false then\n",
        (_IT + "counter_faults.py", _IT + "counter.py"),
    ),
    Mutation(
        "Redis serves callers that have seen more than it has",
        "ledger/lua/ledger.lua",
        "if seq < tonumber(ARGV[4]) then\n",
        "if false then\n",
        (_IT + "counter_faults.py", _IT + "counter.py"),
    ),
    Mutation(
        "what Redis does not know is dropped instead of recovered",
        "ledger/outbox/delivery.py",
        "            return settlement.amount_nanos > 0 or settlement.epoch != 0\n",
        "            return False\n",
        (_IT + "outbox_books.py",),
    ),
    Mutation(
        "holds of a lost epoch are not carried",
        "ledger/books/carried.py",
        '    if not beats:\n        return\n    async with acquired(pool, "carry holds") as conn:\n',
        '    return\n    async with acquired(pool, "carry holds") as conn:\n',
        (_IT + "recovery.py",),
    ),
)


def apply(mutation: Mutation, root: Path) -> None:
    """Take the safeguard out.

    Raises:
        ValueError: its text is not there exactly once.
    """
    path = root / mutation.path
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.path} has this text {text.count(mutation.old)} times: {mutation.old!r}")
    path.write_text(text.replace(mutation.old, mutation.new))


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit status in a copy of the tree, and its last words."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    if tests[0].startswith("faults:"):
        numbers = tests[0].removeprefix("faults:")
        command = [sys.executable, "-m", "tests.faults", "--only", numbers, "--seconds", "15"]
    done = subprocess.run(
        command,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "lost:"))]
    return done.returncode, (failed or done.stdout.splitlines() or [""])[-1]


@click.command()
@click.option("--only", default="", help="Only mutations whose name has this text.")
def main(only: str) -> None:
    """Exit status 1: a safeguard can be taken out and nobody notices."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    chosen = [mutation for mutation in MUTATIONS if only in mutation.name]
    table = Table("safeguard taken out", "the suite", "first to notice", "s")
    survived = 0
    with tempfile.TemporaryDirectory(prefix="pareta-mutations-") as folder, console.status("") as status:
        copy = Path(folder) / "tree"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_LEFT_OUT))
        green: set[tuple[str, ...]] = set()
        for mutation in chosen:
            status.update(mutation.name)
            begin_s = time.monotonic()
            verdict, said = _try(mutation, copy, green)
            survived += verdict != "red"
            colour = "green" if verdict == "red" else "bold red"
            table.add_row(mutation.name, f"[{colour}]{verdict}[/]", said, f"{time.monotonic() - begin_s:.0f}")
            if not console.is_terminal:
                console.print(f"{verdict}: {mutation.name}")
    console.print(table)
    console.print(f"{len(chosen) - survived} of {len(chosen)} mutations were noticed.")
    sys.exit(1 if survived else 0)


def _try(mutation: Mutation, copy: Path, green: set[tuple[str, ...]]) -> tuple[str, str]:
    if mutation.tests not in green:
        status, said = run_tests(copy, mutation.tests)
        if status != GREEN:
            return "red without it", said
        green.add(mutation.tests)
    path = copy / mutation.path
    whole = path.read_text()
    try:
        apply(mutation, copy)
    except ValueError as error:
        return "not applied", str(error)
    try:
        status, said = run_tests(copy, mutation.tests)
    finally:
        path.write_text(whole)
    if status == RED:
        return "red", said.removeprefix("FAILED ").partition(" - ")[0]
    return ("green" if status == GREEN else f"pytest ended with {status}"), said


if __name__ == "__main__":
    main()
