"""Exports: exact, whole or not at all, the same rows whatever the format, and harmless in a spreadsheet."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from gateway.cli.export_files import FORMATS, whole_file
from gateway.control.database import Refused
from ledger.core.meters import Meter
from ledger.counter import Beat
from ledger.proof.export import SHEETS, Period, exporting
from tests.integration.ledger_world import ORG, USD, World, opened_world
from tests.services import FreshDatabase, FreshRedis

METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}
OTHER = "org_bbbbbbbbbbbb"
ALWAYS = Period(datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))


@pytest.fixture
async def world(fresh_database: FreshDatabase, fresh_redis: FreshRedis) -> AsyncIterator[World]:
    """Payments with odd notes; requests that were settled, voided, and corrected after a reap, of two organizations."""
    async with opened_world(fresh_database(), fresh_redis(durable=False).url) as world:
        await world.fund()
        await world.fund(3 * USD, org=OTHER)
        await world.ledger.top_up(ORG, 1, "=cmd|' /C calc'!A0", note='-2+3, "quoted"\nand broken')
        await world.ledger.deliver_grants(world.counter)
        for org in (ORG, OTHER, ORG):
            await world.spend(METERS, org=org)
        accrued = world.settlement("", {Meter.COMPLETION: 900})
        for meters in (METERS, {Meter.COMPLETION: 901}):
            late = await world.hold(expires_in_s=0.01)
            await world.counter.heartbeat([Beat(late, ORG, accrued.amount_nanos, accrued.info, 0.01)])
            while not await world.counter.reap():
                pass
            await world.counter.settle(world.settlement(late, meters))
        nothing = await world.hold()
        await world.counter.void(world.settlement(nothing, {}))
        await world.booked()
        yield world


async def rows_of(world: World, what: str, period: Period = ALWAYS) -> list[dict[str, Any]]:
    async with exporting(world.pool, what, period) as run:
        columns = [column.name for column in SHEETS[what].columns]
        rows = [dict(zip(columns, row, strict=True)) async for page in run.pages() for row in page]
        assert run.rows == len(rows) == await run.count()
        assert run.sum_nanos == sum(row[SHEETS[what].summed] for row in rows)
    return rows


async def written(world: World, what: str, format_name: str, path: Path) -> None:
    async with exporting(world.pool, what, ALWAYS) as run:
        with whole_file(path, force=True) as file:
            writer = FORMATS[format_name](file, run.sheet.columns)
            async for page in run.pages():
                writer.write(page)
            writer.close()


async def test_usage_adds_up_to_the_charges_and_to_what_was_used(world: World) -> None:
    """Corrections have differences, so each request's rows sum to its final usage, and all of them to the transfers."""
    usage = await rows_of(world, "usage")
    transfers = await rows_of(world, "transfers")
    charged = sum(row["amount_nanos"] for row in transfers if row["kind"] in ("charge", "late_charge"))
    refunded = sum(row["amount_nanos"] for row in transfers if row["kind"] == "late_refund")
    assert refunded > 0
    assert sum(row["amount_nanos"] for row in usage) == charged - refunded
    assert sum(row["completion_tokens"] for row in usage) == 4 * 345 + 901
    assert sum(row["prompt_tokens"] for row in usage) == 4 * 1200
    assert sorted(row["kind"] for row in usage) == [
        "late",
        "late",
        "reap",
        "reap",
        "settle",
        "settle",
        "settle",
        "void",
    ]
    by_transfer = {row["transfer_id"]: row for row in transfers}
    for row in usage:
        if row["amount_nanos"]:
            moved = by_transfer[row["transfer_id"]]
            assert (moved["amount_nanos"], moved["event_id"]) == (abs(row["amount_nanos"]), row["request_id"])
            assert (moved["posted_at"], moved["org_id"]) == (row["booked_at"], row["org_id"])


async def test_every_row_is_in_exactly_one_period(world: World) -> None:
    """Periods that follow each other have every row once, also those whose boundary is a row's own moment."""
    for what, time in (("transfers", "posted_at"), ("usage", "booked_at"), ("top-ups", "booked_at")):
        rows = await rows_of(world, what)
        moments = sorted({row[time] for row in rows})
        cuts = [ALWAYS.since, *moments[1::2], ALWAYS.until]
        parts = [await rows_of(world, what, Period(*span)) for span in itertools.pairwise(cuts)]
        assert len(parts) > 1
        assert [row for part in parts for row in part] == rows


async def test_one_organization_alone(world: World) -> None:
    """With an organization there are its rows and nobody else's."""
    for what in SHEETS:
        everybody = await rows_of(world, what)
        own = await rows_of(world, what, Period(ALWAYS.since, ALWAYS.until, OTHER))
        assert own == [row for row in everybody if row["org_id"] == OTHER]
        assert 0 < len(own) < len(everybody)


async def test_the_trial_balance_balances(world: World) -> None:
    """Debits equal credits, balances are those of the ledger, and one period's end is the next one's beginning."""
    whole = await rows_of(world, "accounts")
    assert sum(row["debits_nanos"] for row in whole) == sum(row["credits_nanos"] for row in whole) > 0
    sides = {"debit": 1, "credit": -1}
    assert sum(sides[row["normal_side"]] * row["closing_nanos"] for row in whole) == 0
    balance = await world.ledger.balance(ORG)
    closing = {row["kind"]: row["closing_nanos"] for row in whole if row["org_id"] == ORG}
    assert (closing["available"], closing["escrow"]) == (balance.available_nanos, balance.escrow_nanos)
    middle = await world.pool.fetchval("SELECT posted_at FROM ledger.transfer ORDER BY posted_at OFFSET 5 LIMIT 1")
    await world.pool.execute("UPDATE ledger.account SET opened_at = '2025-01-01'")
    first = await rows_of(world, "accounts", Period(ALWAYS.since, middle))
    second = await rows_of(world, "accounts", Period(middle, ALWAYS.until))
    assert [row["closing_nanos"] for row in first] == [row["opening_nanos"] for row in second]
    assert [row["closing_nanos"] for row in second] == [row["closing_nanos"] for row in whole]
    assert sum(abs(row["opening_nanos"]) for row in second) > 0


@pytest.mark.parametrize("what", list(SHEETS))
async def test_csv_and_parquet_say_the_same(world: World, what: str, tmp_path: Path) -> None:
    """Read back with ordinary tools, both have every row, exact to the nano and to the microsecond."""
    rows = await rows_of(world, what)
    for format_name in FORMATS:
        await written(world, what, format_name, tmp_path / format_name)
    columns = SHEETS[what].columns
    table = pyarrow.parquet.read_table(tmp_path / "parquet")
    assert table.column_names == [column.name for column in columns]
    with (tmp_path / "csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file, strict=True))
    assert len(lines) == table.num_rows == len(rows)
    for row, line, packed in zip(rows, lines, table.to_pylist(), strict=True):
        for column in columns:
            value, text = row[column.name], line[column.name]
            if column.kind == "usd" and value is not None:
                value = Decimal(value) / USD
                assert value * USD == row[column.source] == Decimal(text) * USD
                assert table.schema.field(column.name).type == pyarrow.decimal128(38, 9)
            elif column.kind == "time" and value is not None:
                assert datetime.fromisoformat(text) == value
                assert text.endswith("Z")
                assert str(table.schema.field(column.name).type) == "timestamp[us, tz=UTC]"
            elif column.kind == "integer" and value is not None:
                assert int(text) == value
            elif value is None:
                assert text == ""
            assert packed[column.name] == value


async def test_text_is_no_formula_in_a_spreadsheet(world: World, tmp_path: Path) -> None:
    """What a payer typed cannot run on the accountant's machine; amounts below zero stay numbers."""
    await written(world, "top-ups", "csv", tmp_path / "file")
    with (tmp_path / "file").open(encoding="utf-8", newline="") as file:
        line = next(line for line in csv.DictReader(file) if line["amount_nanos"] == "1")
    assert line["idempotency_key"] == "'=cmd|' /C calc'!A0"
    assert line["note"] == '\'-2+3, "quoted"\nand broken'
    await written(world, "usage", "csv", tmp_path / "usage")
    with (tmp_path / "usage").open(encoding="utf-8", newline="") as file:
        assert min(Decimal(line["amount_usd"]) for line in csv.DictReader(file)) < 0


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r1", "\n1", "  =1", "＝1", "＋", "－", "＠"])
def test_every_beginning_of_a_formula_is_known(text: str) -> None:
    """The beginnings that OWASP lists get an apostrophe; ordinary text gets none."""
    file = io.BytesIO()
    columns = [column for column in SHEETS["top-ups"].columns if column.name == "note"]
    FORMATS["csv"](file, columns).write([[text], ["a=1"], [""]])
    assert list(csv.reader(io.StringIO(file.getvalue().decode(), newline=""))) == [
        ["note"],
        ["'" + text],
        ["a=1"],
        [""],
    ]


async def test_an_export_sees_one_moment(world: World) -> None:
    """What is booked while it is read is not in it."""
    async with exporting(world.pool, "transfers", ALWAYS) as run:
        before = await run.count()
        await world.ledger.top_up(ORG, USD, "meanwhile")
        rows = [row async for page in run.pages() for row in page]
    assert len(rows) == before
    assert len(await rows_of(world, "transfers")) > before


@pytest.mark.long
async def test_memory_is_bounded(world: World, tmp_path: Path) -> None:
    """300,000 rows are written in a process that grows by far less than they are large."""
    await world.pool.execute(
        """INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
           SELECT id, ledger.id_time(id), 'top_up', 1, 3, 1, id
             FROM (SELECT 'tx_' || substr($1, 5, 10) || lpad(n::text, 16, '0') AS id
                     FROM generate_series(1, 300000) AS n) AS ids""",
        await world.hold(),
        timeout=100,
    )
    program = """
import asyncio, resource, sys
from datetime import UTC, datetime
from pathlib import Path
from gateway.cli.export_files import FORMATS, whole_file
from ledger.books.database import open_pool
from ledger.proof.export import Period, exporting
async def main():
    pool = await open_pool(sys.argv[1], size=1)
    period = Period(datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC))
    async with exporting(pool, "transfers", period) as run:
        with whole_file(Path(sys.argv[2]), force=False) as file:
            writer, before = FORMATS["csv"](file, run.sheet.columns), 0
            async for page in run.pages():
                before = before or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                writer.write(page)
            print(run.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    pool.terminate()
asyncio.run(main())
"""
    url = world.pool._connect_args[0]
    done = subprocess.run(
        [sys.executable, "-c", program, url, str(tmp_path / "big")], capture_output=True, text=True, check=True
    )
    rows, grown_kib = map(int, done.stdout.split())
    assert rows > 300_000
    assert (tmp_path / "big").stat().st_size > 40_000_000
    assert grown_kib < 20_000


class Broken(Exception):
    pass


def write(path: Path, content: bytes, *, force: bool = False, then: Callable[[], object] = lambda: None) -> None:
    with whole_file(path, force=force) as file:
        file.write(content)
        then()


def fail() -> None:
    raise Broken


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nothing_half_is_left_behind(tmp_path: Path) -> None:
    """A failure in the middle leaves the old file, or none, and nothing beside it."""
    path = tmp_path / "books.csv"
    seen: list[bool] = []
    write(path, b"old", then=lambda: seen.append(path.exists()))
    assert seen == [False]
    for force in (True, False):
        with pytest.raises(Broken):
            write(path if force else tmp_path / "other", b"half", force=force, then=fail)
        assert content_of(tmp_path) == {"books.csv": b"old"}


def test_a_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    """Without --force an existing file stays, also one that appears while the export runs."""
    path = tmp_path / "books.csv"
    with pytest.raises(Refused, match="exists; give --force"):
        write(path, b"new", then=lambda: path.write_bytes(b"somebody else's"))
    assert content_of(tmp_path) == {"books.csv": b"somebody else's"}
    with pytest.raises(Refused, match="exists; give --force"):
        write(path, b"new", then=fail)
    write(path, b"new", force=True)
    assert content_of(tmp_path) == {"books.csv": b"new"}


def test_a_disk_that_is_full_or_missing_is_a_sentence(tmp_path: Path) -> None:
    """A write that fails says which file could not be written, and does not blame the database."""

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(Refused, match="can't be written: No space left on device"):
        write(tmp_path / "x", b"", then=full)
    with pytest.raises(Refused, match="can't be written: No such file or directory"):
        write(tmp_path / "none" / "x", b"")
    assert content_of(tmp_path) == {}


def test_without_pyarrow_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet is optional; its absence is a sentence."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(Refused, match=r"pip install 'pareta-gateway\[export\]'"):
        FORMATS["parquet"](io.BytesIO(), SHEETS["transfers"].columns)


def test_columns_are_stable() -> None:
    """An accountant's import breaks when a column moves: new ones may only come at the end."""
    names = {what: [column.name for column in sheet.columns] for what, sheet in SHEETS.items()}
    assert names["transfers"] == [
        *("posted_at", "transfer_id", "kind", "org_id", "debit_account", "credit_account", "debit_account_id"),
        *("credit_account_id", "amount_usd", "amount_nanos", "event_id"),
    ]
    assert names["top-ups"] == [
        *("booked_at", "top_up_id", "org_id", "amount_usd", "amount_nanos", "idempotency_key", "note", "transfer_id")
    ]
    assert names["usage"][:4] == ["booked_at", "request_id", "revision", "kind"]
    assert json.dumps(names["accounts"]).count("_usd") == 4
    assert all(column.meaning for sheet in SHEETS.values() for column in sheet.columns)


def test_a_day_is_a_day_in_utc() -> None:
    """--from and --to take days and moments; what has no zone is UTC."""
    from gateway.cli.ledger_export import day_or_moment

    assert day_or_moment("2026-02-01") == datetime(2026, 2, 1, tzinfo=UTC)
    assert day_or_moment("2026-02-01T00:00+01:00") == datetime(2026, 2, 1, tzinfo=UTC) - timedelta(hours=1)
