"""The ledger's commands against real Postgres and Redis: what they print, and what their exit status says."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.cli import main as cli_main
from gateway.control import organizations
from gateway.settings import Settings
from ledger.books.epochs import record_guardian_event, witness
from ledger.core.meters import Meter
from ledger.proof.blocks import close_blocks
from tests.integration.control_tools import connected, migrated_database
from tests.integration.ledger_world import USD, World, opened_world, reconciling
from tests.services import FreshRedis, PostgresService, RedisService

ROOT = Path(__file__).parents[2]
METERS = {Meter.PROMPT: 1200, Meter.COMPLETION: 345, Meter.REQUEST: 1}


@dataclass(slots=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.out.startswith(("{", "[")), self
        return json.loads(self.out)

    def fails(self, status: int, pattern: str) -> None:
        """One sentence on standard error and nothing on standard output."""
        assert (self.status, self.out) == (status, ""), self
        assert re.search(pattern, self.err), self
        assert "Traceback" not in self.err


@dataclass(slots=True)
class Books:
    """A world with one organization that has a name, and the command on it."""

    world: World
    url: str
    redis: RedisService
    org: str
    capsys: pytest.CaptureFixture[str]

    async def run(self, *words: str) -> Answer:
        status = await asyncio.to_thread(cli_main.run, ["ledger", *words])
        return Answer(status, *self.capsys.readouterr())

    async def ask(self, *words: str) -> Any:
        answer = await self.run(*words, "--json")
        assert answer.status == 0, answer
        return answer.json


@pytest.fixture
async def books(
    postgres_service: PostgresService,
    fresh_redis: FreshRedis,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> AsyncIterator[Books]:
    """10 USD paid in, three requests booked."""
    url, redis = migrated_database(postgres_service), fresh_redis(durable=False)
    for name in list(os.environ):
        if name.startswith("PARETA_") or name.lower() in Settings.__slots__:
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "no stack"))
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("REDIS_URL", redis.url)
    async with connected(url) as conn:
        org = (await organizations.create(conn, "Acme & Söhne"))[0].id
    async with opened_world(url, redis.url) as world:
        await world.fund(10 * USD, org=org)
        for _ in range(3):
            await world.spend(METERS, org=org)
        await world.booked()
        yield Books(world, url, redis, org, capsys)
    postgres_service.drop_database(url)


# -- audit blocks ----------------------------------------------------------------------------------------------------


async def test_a_kept_head_proves_the_past(books: Books) -> None:
    """--head prints what to keep; --expect-head holds as long as the chain has it, and fails when it does not."""
    (await books.run("audit", "--head")).fails(cli_main.REFUSED, "no audit block yet")
    assert await close_blocks(books.world.pool, margin_s=0) == 1
    head = (await books.run("audit", "--head")).out.strip()
    assert re.fullmatch(r"1:[0-9a-f]{64}", head)
    record = await books.ask("audit", "--head")
    assert (record["head"], record["number"], record["hash"]) == (head, 1, head[2:])
    await books.world.ledger.top_up(books.org, USD, "later")
    assert await close_blocks(books.world.pool, margin_s=0) == 1
    report = await books.ask("audit", "--expect-head", head)
    assert (report["audit_blocks"], report["audit_head"][:2], report["differences"]) == (2, "2:", [])
    assert {check["check"]: check["verdict"] for check in report["checks"]}["chain"] == "holds"
    forged = head[:-1] + ("0" if head[-1] != "0" else "1")
    for wrong, note in ((forged, "not the expected one"), (f"3:{head[2:]}", "the expected block is gone")):
        answer = await books.run("audit", "--books-only", "--expect-head", wrong, "--json")
        assert answer.status == cli_main.DIFFERENCES
        (difference,) = answer.json["differences"]
        assert difference["check"] == "chain"
        assert note in difference["note"]
    (await books.run("audit", "--expect-head", "nonsense")).fails(cli_main.USAGE, "not a block's number and hash")


async def test_the_audit_names_the_block_that_was_changed(books: Books) -> None:
    """A transfer that was deleted together with its cause is caught by the chain."""
    await close_blocks(books.world.pool, margin_s=0)
    async with connected(books.url) as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute("GRANT ALL ON ledger.transfer TO CURRENT_USER")
        await conn.execute("UPDATE ledger.transfer SET posted_at = posted_at - interval '1 s' WHERE kind = 'charge'")
    answer = await books.run("audit", "--books-only", "--json")
    assert answer.status == cli_main.DIFFERENCES
    assert {(found["check"], found["subject"]) for found in answer.json["differences"]} == {("chain", "block 1")}


# -- export ----------------------------------------------------------------------------------------------------------


def period() -> tuple[str, ...]:
    now = datetime.now(UTC)
    return "--from", f"{now - timedelta(days=1):%Y-%m-%d}", "--to", (now + timedelta(seconds=1)).isoformat()


async def test_an_export_is_a_file_and_a_summary(books: Books, tmp_path: Path) -> None:
    """The file has the rows, the summary their number and sum; the same name is not written twice unless forced."""
    out = str(tmp_path / "top-ups.csv")
    words = ("export", *period(), "--what", "top-ups", "--out", out)
    summary = await books.ask(*words)
    assert (summary["rows"], summary["sum_nanos"], summary["sum_usd"]) == (1, 10 * USD, "10.00")
    with Path(out).open(newline="") as file:
        (line,) = csv.DictReader(file)
    assert (line["org_id"], line["amount_usd"], line["amount_nanos"]) == (books.org, "10.00", str(10 * USD))
    (await books.run(*words)).fails(cli_main.REFUSED, "exists; give --force")
    again = await books.run(*words, "--force")
    assert again.out == f"Exported 1 row of top-ups to {out}: 10.00 USD paid in.\n"
    assert os.listdir(tmp_path) == ["top-ups.csv"]


async def test_an_export_can_be_piped(books: Books) -> None:
    """With - the data alone is on standard output, and the summary on standard error."""
    command = [sys.executable, "-m", "gateway", "ledger", "export", *period(), "--what", "usage", "--org", books.org]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done
    lines = list(csv.DictReader(io.StringIO(done.stdout, newline="")))
    assert [line["prompt_tokens"] for line in lines] == ["1200"] * 3
    assert done.stderr.startswith("Exported 3 rows of usage: 0.001164003 USD charged.\n")
    packed = await asyncio.to_thread(subprocess.run, [*command, "--format", "parquet"], cwd=ROOT, capture_output=True)
    assert packed.stdout[:4] == packed.stdout[-4:] == b"PAR1"
    quick = await asyncio.to_thread(
        subprocess.run, f"{' '.join(command)} | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}",
        cwd=ROOT, capture_output=True, text=True, shell=True, executable="/bin/bash",
    )  # fmt: skip
    assert quick.stdout == "0\n"
    assert "Traceback" not in quick.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--from", "2026-01-01"),
        ("--from", "2026-02-01", "--to", "2026-01-01"),
        ("--from", "2026-01-01", "--to", "2026-01-01"),
        ("--from", "soon", "--to", "2026-01-01"),
        ("--what", "secrets", *period()),
    ],
)
async def test_a_wrong_period_is_wrong_usage(books: Books, words: tuple[str, ...]) -> None:
    """A period that is none is refused before anything is written."""
    answer = await books.run("export", *words)
    assert (answer.status, answer.out) == (cli_main.USAGE, "")


async def test_columns_explain_themselves(books: Books) -> None:
    """--columns lists every column with its type and meaning."""
    columns = await books.ask("export", "--what", "usage", "--columns")
    assert columns[0] == {
        "column": "booked_at",
        "type": "time",
        "meaning": "when it was booked; of what cost nothing: when it ended",
    }
    (await books.run("export", *period(), "--org", "nobody")).fails(cli_main.REFUSED, "no organization")


# -- statement -------------------------------------------------------------------------------------------------------


async def test_a_statement_shows_the_month(books: Books) -> None:
    """Opening, payments, what was bought, closing and the credit now: for people and for programs."""
    month = f"{datetime.now(UTC):%Y-%m}"
    found = await books.ask("statement", "Acme & Söhne", "--month", month)
    charged = 3 * (1200 * 150 + 345 * 600 + 1001)
    assert (found["opening_nanos"], found["paid_in_nanos"], found["charged_nanos"]) == (0, 10 * USD, charged)
    assert (found["closing_nanos"], found["adds_up"], found["over"]) == (10 * USD - charged, True, False)
    (bought,) = found["bought"]
    assert (bought["requests"], bought["amount_nanos"]) == (3, charged)
    assert {line["meter"]: line["units"] for line in bought["meters"]} == {
        "prompt": 3600,
        "completion": 1035,
        "request": 3,
    }
    now = found["credit_now"]
    assert now["available_nanos"] + now["escrow_nanos"] + now["frozen_nanos"] == found["closing_nanos"]
    text = (await books.run("statement", books.org)).out
    assert re.search(r"closing +│ +9\.998835997 USD", text)
    assert re.search(r"prompt tokens +│ 3,600 +│ 0\.000540000 ", text)
    for wrong in ("2026", "2026-13", "November"):
        (await books.run("statement", books.org, "--month", wrong)).fails(cli_main.USAGE, "not a month")


async def test_a_statement_that_does_not_add_up_says_so(books: Books) -> None:
    """One nano out of place: exit status 3 and a sentence."""
    await books.world.pool.execute("UPDATE ledger.balance SET escrow_nanos = escrow_nanos + 1")
    answer = await books.run("statement", books.org, "--json")
    assert (answer.status, answer.json["adds_up"]) == (cli_main.DIFFERENCES, False)
    assert "differs from closing by -1 nano-USD" in answer.err


# -- status ----------------------------------------------------------------------------------------------------------


async def test_a_ledger_that_is_well_has_status_0(books: Books) -> None:
    """With a reconciler at work and everything booked there is nothing for a person to do."""
    async with reconciling(books.world) as reconciler:
        await books.world.booked(reconciler)
        found = await books.ask("status")
        people = (await books.run("status")).out
    assert (found["well"], found["attention"], found["open_anomalies"]) == (True, [], 0)
    (shard,) = found["shards"]
    assert shard["led"]
    assert shard["holder"].startswith("pid ")
    assert (shard["lag_events"], shard["booked_seq"]) == (0, shard["redis"]["seq"])
    assert shard["redis"] == {
        "reachable": True,
        "trouble": "",
        "epoch": 1,
        "seq": shard["booked_seq"],
        "script_known": True,
    }
    left = found["available_nanos"] + found["escrow_nanos"] + found["frozen_nanos"]
    assert left == 10 * USD - 3 * (1200 * 150 + 345 * 600 + 1001)
    assert "all is well" in people


async def test_what_waits_is_counted(books: Books) -> None:
    """Events that nobody books show as lag, and a shard that nobody leads needs a person."""
    await books.world.spend(METERS, org=books.org)
    await books.world.pool.execute(
        "UPDATE ledger.reconcile_checkpoint SET updated_at = clock_timestamp() - interval '31 s'"
    )
    answer = await books.run("status", "--json")
    assert answer.status == cli_main.DIFFERENCES
    (shard,) = answer.json["shards"]
    assert (shard["lag_events"], shard["led"]) == (1, False)
    assert "Nobody books shard 0 since 31 s" in answer.json["attention"][0]


async def test_a_redis_that_is_away_is_said(books: Books) -> None:
    """The books are shown all the same; the status is 4, because not everything could be looked at."""
    async with reconciling(books.world) as reconciler:
        await books.world.booked(reconciler)
        books.redis.stop()
        answer = await books.run("status", "--json")
        text = (await books.run("status")).out
    assert answer.status == cli_main.UNREACHABLE
    assert answer.json["shards"][0]["redis"]["reachable"] is False
    assert answer.json["shards"][0]["lag_events"] is None
    assert "unreachable" in text


async def test_a_redis_that_nobody_has_checked_is_shown_as_closed(books: Books) -> None:
    """Without the script callers are not served, and the table says so."""
    async with Redis.from_url(books.redis.url) as client:
        await client.script_flush()
    assert (await books.run("status", "--json")).json["shards"][0]["redis"]["script_known"] is False
    assert "closed until checked" in (await books.run("status")).out


async def test_an_operator_sees_what_was_lost_and_done(books: Books) -> None:
    """A lost epoch with what is frozen and until when, witnesses, carried holds, refusals: all of it, newest first."""
    pool = books.world.pool
    await witness(pool, 0, 1, 99)
    await pool.execute(
        """INSERT INTO ledger.epoch (number, reason, shard, closes, lost_booked_seq, lost_redis_seq, lost_witnessed_seq,
                                     frozen_nanos, release_after)
           VALUES (2, 'Redis came back empty.', 0, 1, 4, 0, 99, 5000000000, clock_timestamp() + interval '1 minute')"""
    )
    await pool.execute(
        """INSERT INTO ledger.carried_hold (hold_id, org_id, shard, epoch, held_nanos, accrued_nanos, info, expires_at)
           VALUES ('req_x', $1, 0, 1, 500, 20, '{}', clock_timestamp() - interval '1 s')""",
        books.org,
    )
    await record_guardian_event(pool, 0, "new_epoch", epoch=2, detail={"reason": "Redis came back empty."})
    await record_guardian_event(pool, 0, "released", detail={"nanos": 1_500_000_000, "epochs": [1]})
    answer = await books.run("status", "--json")
    (lost,) = answer.json["lost_epochs"]
    assert (lost["epoch"], lost["shard"], lost["frozen_usd"], lost["released_at"]) == (1, 0, "5.00", None)
    assert (lost["booked_seq"], lost["redis_seq"], lost["witnessed_seq"]) == (4, 0, 99)
    assert [event["kind"] for event in answer.json["guardian_events"]] == ["released", "new_epoch"]
    assert (answer.json["carried_holds"]["count"], answer.json["carried_holds"]["expired"]) == (1, 1)
    assert answer.json["shards"][0]["redis"]["epoch"] == 1  # the guardian has not come to it yet
    assert not any("closed" in sentence for sentence in answer.json["attention"])
    text = (await books.run("status")).out
    for shown in ("Redis came back empty.", "5.00 USD", "1.50 USD, epochs 1", "new epoch", "at epoch 1, event"):
        assert shown in text
    await record_guardian_event(pool, 0, "refused", detail={"reason": "This Redis belongs to another ledger."})
    await pool.execute("DELETE FROM ledger.carried_hold")
    await pool.execute("ALTER TABLE ledger.epoch DISABLE TRIGGER never_rewritten")
    await pool.execute("UPDATE ledger.epoch SET release_after = release_after - interval '1 hour' WHERE number = 2")
    answer = await books.run("status", "--json")
    assert answer.status == cli_main.DIFFERENCES
    assert any("closed: This Redis belongs to another ledger." in sentence for sentence in answer.json["attention"])
    assert any("epoch 1 was due for release" in sentence for sentence in answer.json["attention"])


async def test_old_transfers_without_a_block_need_a_person(books: Books) -> None:
    """When blocks are no longer closed, the proof has a hole that somebody must see."""
    assert (await books.run("status", "--json")).json["unsealed_transfers"] > 3
    await close_blocks(books.world.pool, margin_s=0)
    sealed = (await books.run("status", "--json")).json
    assert (sealed["unsealed_transfers"], sealed["audit_block"]["number"]) == (0, 1)
    head = (await books.run("audit", "--head")).out.strip()
    assert sealed["audit_block"]["head"] == head
    await books.world.pool.execute(
        """INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
           SELECT 'tx_' || right(id, 26), ledger.id_time(id), 'top_up', 1, 3, 1, id FROM (VALUES ($1)) AS x (id)""",
        await books.world.hold(org=books.org),
    )
    async with connected(books.url) as conn, conn.transaction():
        await conn.execute("SET LOCAL session_replication_role = replica")
        await conn.execute("GRANT ALL ON ledger.audit_block TO CURRENT_USER")
        await conn.execute("UPDATE ledger.audit_block SET to_posted_at = '2026-01-01', from_posted_at = '2025-01-01'")
        await conn.execute("GRANT ALL ON ledger.transfer TO CURRENT_USER")
        await conn.execute("UPDATE ledger.transfer SET posted_at = '2026-01-02' WHERE amount_nanos = 1")
    attention = (await books.run("status", "--json")).json["attention"]
    assert any("in no audit block" in sentence for sentence in attention)


# -- anomalies -------------------------------------------------------------------------------------------------------


async def test_an_anomaly_is_listed_and_resolved_once(books: Books) -> None:
    """Who resolved it, when and why is kept; a second time is refused; the audit is green again."""
    number = await books.world.pool.fetchval(
        """INSERT INTO ledger.anomaly (shard, epoch, seq, stream_id, kind, detail)
           VALUES (0, 1, NULL, '1-9', 'gap', '{"expected_seq": 8, "found_seq": 9}') RETURNING id"""
    )
    assert (await books.run("audit", "--books-only")).status == cli_main.DIFFERENCES
    assert any(
        "nobody has resolved: 1." in sentence for sentence in (await books.run("status", "--json")).json["attention"]
    )
    (listed,) = await books.ask("anomalies")
    assert (listed["id"], listed["kind"], listed["detail"]["found_seq"]) == (number, "gap", 9)
    assert "expected_seq: 8" in (await books.run("anomalies")).out
    (await books.run("resolve", str(number))).fails(cli_main.USAGE, "--note")
    (await books.run("resolve", str(number), "--note", " ")).fails(cli_main.REFUSED, "takes a note")
    (await books.run("resolve", str(number + 1), "--note", "x")).fails(cli_main.REFUSED, "no anomaly")
    done = await books.ask("resolve", str(number), "--note", "Event 8 was a test.", "--by", "Ada")
    assert done["resolution"] == "Event 8 was a test. (by Ada)"
    assert datetime.now(UTC) - datetime.fromisoformat(done["resolved_at"]) < timedelta(minutes=1)
    again = await books.run("resolve", str(number), "--note", "me too")
    again.fails(cli_main.REFUSED, r"was resolved at .* UTC: Event 8 was a test. \(by Ada\)")
    assert (await books.run("anomalies")).out == "No anomalies.\n"
    assert [anomaly["resolution"] for anomaly in await books.ask("anomalies", "--all")] == [done["resolution"]]
    assert "by Ada" in (await books.run("anomalies", "--all")).out
    assert (await books.run("audit", "--books-only")).status == 0


# -- on a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
async def test_tables_fit_a_terminal(books: Books, columns: int) -> None:
    """No line is wider than the terminal, and no amount or number is cut off."""
    await close_blocks(books.world.pool, margin_s=0)
    await record_guardian_event(books.world.pool, 0, "new_epoch", detail={"reason": "Redis came back empty. " * 5})
    for words in (("status",), ("statement", books.org), ("audit",), ("export", "--columns", "--what", "usage")):
        text = await asyncio.to_thread(_on_terminal, words, columns)
        assert "│" in text
        assert max(len(line) for line in text.splitlines()) <= columns
        assert "…" not in text


def _on_terminal(words: tuple[str, ...], columns: int) -> str:
    """Run a command whose standard output is a terminal of so many columns."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "gateway", "ledger", *words],
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(theirs)
    parts: list[bytes] = []
    try:
        while part := os.read(ours, 65_536):
            parts.append(part)
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    done.wait()
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(parts).decode()).replace("\r\n", "\n")


def test_every_command_is_known() -> None:
    """The group has what the README promises."""
    from gateway.cli.ledger import ledger

    known: Callable[[str], object] = ledger.commands.get
    assert all(known(name) for name in ("audit", "status", "statement", "export", "anomalies", "resolve"))
