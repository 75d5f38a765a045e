"""A ledger that was in use before a migration: its rows survive, and so do its guards."""

from __future__ import annotations

import shutil
from pathlib import Path

import asyncpg
import pytest

from ledger.books.migrate import ledger_migrations, migrate
from tests.integration.ledger_world import new_request_id
from tests.services import FreshDatabase

ORG = "org_aaaaaaaaaaaa"
SQL = Path(__file__).parents[2] / "ledger" / "sql"


async def _ledger_of_before(database_url: str, folder: Path) -> asyncpg.Connection:
    """A ledger of the first release in which one organization has paid, got its grant and spent of it."""
    shutil.copy(SQL / "0001_ledger.sql", folder)
    conn = await asyncpg.connect(database_url)
    await migrate(conn, folder, namespace="ledger")
    hold = new_request_id()
    body = hold.removeprefix("req_")
    await conn.execute("INSERT INTO ledger.epoch (number, reason) VALUES (1, 'the ledger was opened')")
    await conn.execute("INSERT INTO ledger.account (kind, org_id) VALUES ('available', $1), ('escrow', $1)", ORG)
    await conn.execute("INSERT INTO ledger.balance (org_id, escrow_nanos) VALUES ($1, 70)", ORG)
    await conn.execute(
        "INSERT INTO ledger.top_up (id, org_id, idempotency_key, amount_nanos) VALUES ($1, $2, 'k', 100)",
        "top_" + body,
        ORG,
    )
    await conn.execute(
        """INSERT INTO ledger.escrow_grant (id, org_id, epoch, grant_seq, amount_nanos, state, shard, seq)
           VALUES ($1, $2, 1, 1, 100, 'applied', 0, 1)""",
        "grant_" + new_request_id().removeprefix("req_"),
        ORG,
    )
    await conn.execute(
        """INSERT INTO ledger.usage_event (hold_id, id_time, revision, kind, org_id, held_nanos, amount_nanos,
               shortfall_nanos, settled_at, epoch, shard, seq)
           VALUES ($1, ledger.id_time($1), 0, 'settle', $2, 30, 30, 0, now(), 1, 0, 2)""",
        hold,
        ORG,
    )
    for number, (kind, debit, credit, amount) in enumerate(
        [
            ("top_up", "external", "available", 100),
            ("grant", "available", "escrow", 100),
            ("charge", "escrow", "revenue", 30),
        ]
    ):
        await conn.execute(
            """INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
               SELECT $1, ledger.id_time($1), $2, d.id, c.id, $5, $6 FROM ledger.account d, ledger.account c
                WHERE d.kind = $3 AND c.kind = $4""",
            ("tx_" if kind == "charge" else f"tx{number}_") + body,
            kind,
            debit,
            credit,
            amount,
            hold,
        )
    await conn.execute("INSERT INTO ledger.reconcile_checkpoint (shard, epoch, seq, stream_id) VALUES (0, 1, 2, '1-2')")
    return conn


async def test_a_ledger_in_use_is_brought_up_to_date(fresh_database: FreshDatabase, tmp_path: Path) -> None:
    """A ledger with money in it keeps every row, and its old and new months take what the new rules allow."""
    url = fresh_database()
    conn = await _ledger_of_before(url, tmp_path)
    tables = ("transfer", "usage_event", "top_up", "escrow_grant", "balance", "reconcile_checkpoint", "epoch")
    before = {table: await conn.fetchval(f"SELECT count(*) FROM ledger.{table}") for table in tables}
    names = await migrate(conn, ledger_migrations(), namespace="ledger")
    assert names[0] == "0002_escrow.sql"
    assert before == {table: await conn.fetchval(f"SELECT count(*) FROM ledger.{table}") for table in tables}
    assert tuple(await conn.fetchrow("SELECT escrow_nanos, frozen_nanos FROM ledger.balance")) == (70, 0)
    assert (
        await conn.fetchval("SELECT normal_side FROM ledger.account WHERE kind = 'frozen' AND org_id = $1", ORG)
        == "credit"
    )
    await conn.execute("SELECT ledger.ensure_month('2031-07-01')")
    for month_ms in (None, 1_941_000_000_000):
        transfer = "tx_" + new_request_id(month_ms).removeprefix("req_")
        insert = """INSERT INTO ledger.transfer
                           (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
                    SELECT $1, ledger.id_time($1), $2, min(id), max(id), 1, 'x' FROM ledger.account WHERE org_id = $3"""
        await conn.execute(insert, transfer, "freeze", ORG)
        with pytest.raises(asyncpg.CheckViolationError):
            await conn.execute(insert, transfer, "gift", ORG)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.execute("DELETE FROM ledger.transfer WHERE id = $1", transfer)
    await conn.close()


@pytest.mark.parametrize(
    "sql",
    [
        f"{verb} ledger.{table}{rest}"
        for table, column in (
            ("guardian_event", "detail = '{}'"),
            ("escrow_return", "amount_nanos = 1"),
            ("escrow_freeze", "amount_nanos = 1"),
            ("epoch", "reason = ''"),
        )
        for verb, rest in (("DELETE FROM", ""), ("TRUNCATE", " CASCADE"), ("UPDATE", f" SET {column}"))
    ],
)
async def test_what_explains_money_is_only_ever_added(fresh_database: FreshDatabase, tmp_path: Path, sql: str) -> None:
    """What the guardian did, what came back and what was frozen is never rewritten, not even by the owner."""
    conn = await _ledger_of_before(fresh_database(), tmp_path)
    await migrate(conn, ledger_migrations(), namespace="ledger")
    identified = "'{}' || right((SELECT max(hold_id) FROM ledger.usage_event), 26)"
    await conn.execute(
        f"""INSERT INTO ledger.guardian_event (shard, kind) VALUES (0, 'begun');
            INSERT INTO ledger.escrow_return (id, org_id, epoch, shard, seq, amount_nanos, returned_at)
            VALUES ({identified.format("ret_")}, '{ORG}', 1, 0, 9, 5, now());
            INSERT INTO ledger.escrow_freeze (id, org_id, shard, epoch, kind, amount_nanos)
            VALUES ({identified.format("frz_")}, '{ORG}', 0, 1, 'freeze', 5);"""
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await conn.execute(sql)
    await conn.close()
