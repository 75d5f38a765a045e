"""The operator's command against real Postgres and Redis, in this process and as a program of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from gateway.cli import main as cli_main
from gateway.control import organizations
from gateway.settings import Settings
from ledger.books.database import open_pool
from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, charge_nanos
from ledger.counter import CreditCounter, Settlement
from tests.integration.control_tools import connected, migrated_database
from tests.integration.ledger_world import World, new_request_id
from tests.models.folders import write_model_folder
from tests.services import FreshDatabase, PostgresService, RedisService, private_folder, remove

ROOT = Path(__file__).parents[2]
NOWHERE = "postgresql://operator:hunter2@127.0.0.1:1/x"


@dataclass(slots=True)
class Answer:
    """What one command came to."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self
        return json.loads(self.out)

    def fails(self, status: int, pattern: str) -> None:
        """One sentence on standard error, nothing on standard output, no stack trace, no password."""
        assert (self.status, self.out) == (status, ""), self
        assert re.search(pattern, self.err), self
        assert "Traceback" not in self.err
        assert "hunter2" not in self.err
        if status != cli_main.USAGE:
            assert len(self.err.splitlines()) == 1
            assert self.err.rstrip().endswith(".")


Run = Callable[..., Answer]


@dataclass(slots=True)
class Servers:
    database_url: str
    redis: RedisService


@pytest.fixture(scope="module")
def servers(postgres_service: PostgresService) -> Iterator[Servers]:
    """One database and one Redis for all tests here; each test has organizations of its own."""
    redis = RedisService(private_folder("redis"))
    url = migrated_database(postgres_service)
    yield Servers(url, redis)
    postgres_service.drop_database(url)
    redis.stop()
    remove(redis.server.folder)


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the machine gets in."""
    for name in list(os.environ):
        if name.startswith("PARETA_") or name.lower() in Settings.__slots__:
            monkeypatch.delenv(name)
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "no stack"))


@pytest.fixture
def bare(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command that finds no stack by itself."""

    def run(*arguments: str) -> Answer:
        status = cli_main.run(arguments)
        out, err = capsys.readouterr()
        return Answer(status, out, err)

    return run


@pytest.fixture
def run(servers: Servers, bare: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command on the servers."""
    monkeypatch.setenv("DATABASE_URL", servers.database_url)
    monkeypatch.setenv("REDIS_URL", servers.redis.url)
    return bare


@pytest.fixture
def ask(run: Run) -> Callable[..., Any]:
    """Run a command with --json and read its answer."""
    return lambda *arguments: run(*arguments, "--json").json


@pytest.fixture
def org(ask: Callable[..., Any], request: pytest.FixtureRequest) -> str:
    """The name of an organization of this test alone."""
    name: str = request.node.name[:100]
    ask("org", "create", name)
    return name


# -- the command as a whole ------------------------------------------------------------------------------------------


def _leaves(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from _leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_every_command_answers_as_json_and_finds_a_stack() -> None:
    """Whatever asks a stack has --json, --data-dir and the URLs; what runs for ever has settings instead."""
    leaves = dict(_leaves(cli_main.cli))  # type: ignore[arg-type]
    for path, command in leaves.items():
        options = {option for parameter in command.params for option in parameter.opts}
        assert {"--data-dir", "--database-url", "--redis-url"} <= options, path
        assert ("--json" in options) != (path[0] in {"up", "serve", "worker", "reconcile", "control"}), path
        assert command.help, path
    words = {" ".join(path) for path in leaves}
    assert words >= {
        *("serve", "up", "migrate", "check-config", "receipt", "ledger audit"),
        *("org create", "org list", "org show", "key mint", "key list", "key revoke", "credit top-up", "credit show"),
        *("endpoint add", "endpoint list", "endpoint show", "endpoint stop", "endpoint start", "endpoint remove"),
        *("price set", "price list"),
    }


def test_help_imports_nothing_heavy() -> None:
    """Asking for help, or naming a worker's command, loads neither drivers nor servers nor tables."""
    code = (
        "import sys; from gateway.cli.main import run; run(['--help']); run(['worker', '--help']);"
        "print(*[m for m in ('asyncpg', 'aiohttp', 'redis', 'rich', 'uvloop', 'orjson') if m in sys.modules], sep='!')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
    assert "check-config" in done.stdout


def test_the_program_is_its_exit_status(servers: Servers) -> None:
    """As a program of its own it answers on standard output, explains on standard error, and exits as promised."""

    def program(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments, "--database-url", servers.database_url],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    fine = program("org", "list", "--json")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert isinstance(json.loads(fine.stdout), list)
    wrong = program("org", "show", "nobody")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "error: There is no organization 'nobody'.\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`check-config | head -1` ends quietly."""
    script = f"'{sys.executable}' -m gateway check-config --json | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_bug_is_one_sentence_unless_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even what we did not foresee shows no stack trace, but --debug does."""

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("hunter2")

    monkeypatch.setattr(organizations, "list_all", broken)
    run("org", "list").fails(cli_main.BUG, "unexpected.*ZeroDivisionError")
    assert "Traceback" in run("--debug", "org", "list").err


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("key", "mint"),
        ("org", "create"),
        ("org", "create", "x", "--concurrent", "-1"),
        ("credit", "top-up", "x", "1.0000000001"),
        ("credit", "top-up", "x", "--", "-1"),
        ("credit", "top-up", "x", "NaN"),
        ("key", "mint", "--org", "x", "--scope", "admin"),
        ("key", "mint", "--org", "x", "--expires", "soon"),
        ("price", "set", "x", "--prompt", "cheap"),
        ("price", "set", "x"),
        ("endpoint", "add", "x", "--org", "x"),
        ("endpoint", "add", "x", "--org", "x", "--model", "m", "--capability", "dance"),
        ("receipt",),
        ("worker", "--slot", "-1"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_asked(bare: Run, arguments: tuple[str, ...]) -> None:
    """A wrong word costs no connection: exit status 2 and how to get help."""
    bare(*arguments).fails(cli_main.USAGE, "Error: ")


# -- where the stack is ----------------------------------------------------------------------------------------------


def _write_run_file(folder: Path, servers: Servers, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"database_url": servers.database_url, "redis_url": servers.redis.url, "port": 8080, "shards": 1}
    (folder / "run.json").write_text(json.dumps({**content, **changes}))


def test_a_stack_is_found_by_its_data_folder(
    servers: Servers, bare: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--data-dir reads what `up` wrote there and wins over the environment; URLs on the command line win over all."""
    folder = tmp_path / "data dir"
    _write_run_file(folder, servers)
    assert bare("org", "list", "--json", "--data-dir", str(folder)).status == 0
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    assert bare("org", "list", "--json", "--data-dir", str(folder)).status == 0
    bare("org", "list").fails(cli_main.UNREACHABLE, "Postgres")
    assert bare("org", "list", "--database-url", servers.database_url).status == 0
    bare("org", "list", "--data-dir", str(folder), "--database-url", NOWHERE).fails(cli_main.UNREACHABLE, "Postgres")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("DATA_DIR", str(folder))
    assert bare("org", "list").status == 0


def test_no_stack_is_one_sentence(bare: Run, tmp_path: Path) -> None:
    """Nobody runs there, or what runs there is not ours: told, with what to do."""
    bare("org", "list").fails(cli_main.UNREACHABLE, "no run.json.*--database-url")
    (tmp_path / "run.json").write_text("{")
    bare("org", "list", "--data-dir", str(tmp_path)).fails(cli_main.REFUSED, "restart up")


@pytest.mark.parametrize(
    "arguments",
    [
        ("org", "list"),
        ("credit", "show", "x"),
        ("receipt", new_request_id()),
        ("ledger", "audit"),
        ("price", "list", "x"),
        ("migrate",),
    ],
)
def test_an_unreachable_database_is_status_4(bare: Run, arguments: tuple[str, ...]) -> None:
    """Whoever can't be reached: one sentence without address or password, and a status that says a retry is safe."""
    answer = bare(*arguments, "--database-url", NOWHERE, "--redis-url", "redis://127.0.0.1:1/0")
    answer.fails(cli_main.UNREACHABLE, "Postgres")
    assert "127.0.0.1" not in answer.err


def test_an_empty_database_is_told_to_migrate(bare: Run, fresh_database: FreshDatabase) -> None:
    """migrate fills an empty database; again it has nothing to do."""
    url = fresh_database()
    bare("org", "list", "--database-url", url).fails(cli_main.UNREACHABLE, "migrat")
    bare("ledger", "audit", "--books-only", "--database-url", url).fails(cli_main.UNREACHABLE, "[Mm]igrat")
    assert len(bare("migrate", "--json", "--database-url", url).json["applied"]) >= 2
    assert bare("migrate", "--json", "--database-url", url).json == {"applied": []}
    assert bare("org", "list", "--json", "--database-url", url).json == []


def test_a_wrong_setting_is_refused_with_a_sentence(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong environment stops every command before it does anything."""
    monkeypatch.setenv("PORT", "eighty")
    for arguments in (("check-config",), ("serve",), ("worker",), ("up",), ("org", "list")):
        answer = bare(*arguments)
        assert (answer.status, answer.out) == (cli_main.USAGE, "")
        assert re.search("^error: port must be a whole number, got 'eighty'", answer.err)


@pytest.mark.parametrize("command", ["worker", "reconcile", "serve"])
def test_processes_need_their_databases(bare: Run, command: str) -> None:
    """A process without databases does not start."""
    answer = bare(command)
    assert answer.status in (cli_main.USAGE, cli_main.REFUSED)
    assert re.search("error: .*DATABASE_URL and REDIS_URL", answer.err)


def test_check_config_shows_every_setting_and_no_password(bare: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting with its value, default and meaning; passwords are left out."""
    monkeypatch.setenv("DATABASE_URL", NOWHERE)
    monkeypatch.setenv("REDIS_URL", "rediss://:hunter2@cache.example:6379/0")
    rows = {row["setting"]: row for row in bare("check-config", "--json").json}
    assert set(rows) == set(Settings.__slots__)
    assert rows["database_url"]["value"] == "postgresql://operator:…@127.0.0.1:1/x"
    assert rows["redis_url"]["value"] == "rediss://:…@cache.example:6379/0"
    assert all(row["meaning"] for row in rows.values())
    table = bare("check-config")
    assert "hunter2" not in table.out
    assert "deadline" in table.out.lower()
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://:hunter2@one,two:26380/credit?sentinel_password=hunter3&db=0")
    rows = {row["setting"]: row for row in bare("check-config", "--json").json}
    assert rows["redis_url"]["value"] == "redis+sentinel://:…@one,two:26380/credit?sentinel_password=…&db=0"


# -- organizations and keys ------------------------------------------------------------------------------------------


def test_an_organization_is_created_once(run: Run, ask: Callable[..., Any]) -> None:
    """A retried create finds the first one; its limits change only by `org limit`."""
    first = ask("org", "create", "Once", "--concurrent", "5", "--requests-per-minute", "0")
    again = ask("org", "create", "Once")
    assert (first["created"], again["created"]) == (True, False)
    assert first["id"] == again["id"]
    assert (first["concurrent"], first["requests_per_minute"]) == (5, None)
    run("org", "create", "Once", "--concurrent", "6").fails(cli_main.REFUSED, "other limits")
    limited = ask("org", "limit", "Once", "--tokens-per-minute", "100")
    assert (limited["concurrent"], limited["tokens_per_minute"]) == (5, 100)
    assert ask("org", "limit", "Once", "--concurrent", "0")["concurrent"] is None
    shown = ask("org", "show", first["id"])
    assert (shown["name"], shown["tokens_per_minute"]) == ("Once", 100)
    assert shown["credit"]["left_nanos"] == 0
    assert first["id"] in [row["id"] for row in ask("org", "list")]


def test_a_key_is_shown_once(run: Run, ask: Callable[..., Any], org: str) -> None:
    """The whole key comes out of mint and of nothing else; limits, scope and expiry are kept."""
    minted = ask(
        *("key", "mint", "--org", org, "--scope", "read", "--name", "ci", "--expires", "30d"),
        *("--requests-per-minute", "10", "--tokens-per-minute", "1000", "--concurrent", "2"),
    )
    secret = minted["key"].rpartition(".")[2]
    assert minted["key"].startswith(f"pareta_sk_{minted['id']}.")
    assert (minted["scope"], minted["state"], minted["concurrent"]) == ("read", "active", 2)
    listed = run("key", "list", "--org", org)
    assert minted["id"] in listed.out
    revoked = run("key", "revoke", minted["key"], "--json")
    assert (revoked.json["changed"], revoked.json["state"]) == (True, "revoked")
    assert ask("key", "revoke", minted["id"])["changed"] is False
    everything = run("key", "list", "--org", org, "--all")
    assert all(secret not in text for text in (listed.out, revoked.out, everything.out))
    assert ask("key", "list", "--org", org) == []
    run("key", "revoke", "a" * 24).fails(cli_main.REFUSED, "no such key")
    run("key", "mint", "--org", org, "--expires", "2001-01-01").fails(cli_main.REFUSED, "expired")


def test_the_table_of_a_minted_key_holds_the_whole_key(run: Run, org: str) -> None:
    """Tables are never cut where the output is not a terminal."""
    answer = run("key", "mint", "--org", org, "--name", "n" * 100)
    assert re.search(r"pareta_sk_[a-z2-7]{24}\.[a-z2-7]{40} ", answer.out)
    assert "n" * 100 in answer.out


# -- money -----------------------------------------------------------------------------------------------------------


async def begin(servers: Servers) -> None:
    """Let callers into Redis, as the guardian would."""
    counter = await CreditCounter.connect(servers.redis.url, epoch=1)
    try:
        await counter.begin_epoch()
    finally:
        await counter.close()


def test_a_payment_is_booked_once(run: Run, ask: Callable[..., Any], org: str, servers: Servers) -> None:
    """The same key pays once, whatever happens; another amount under it is refused."""
    asyncio.run(begin(servers))
    first = ask("credit", "top-up", org, "12.000000001", "--idempotency-key", "invoice-7", "--note", "January")
    assert (first["replayed"], first["amount_nanos"]) == (False, 12_000_000_001)
    again = ask("credit", "top-up", org, "12.000000001", "--idempotency-key", "invoice-7")
    assert (again["replayed"], again["id"]) == (True, first["id"])
    run("credit", "top-up", org, "13", "--idempotency-key", "invoice-7").fails(cli_main.REFUSED, "invoice-7")
    run("credit", "top-up", org, "0").fails(cli_main.REFUSED, "top-up must be")
    run("credit", "top-up", "nobody", "1").fails(cli_main.REFUSED, "no organization")
    unnamed = ask("credit", "top-up", org, "1")
    assert unnamed["idempotency_key"]
    shown = ask("credit", "show", org)
    assert shown["left_nanos"] == shown["available_nanos"] == 13_000_000_001
    assert (shown["left_usd"], shown["held_nanos"], shown["spent_nanos"]) == ("13.000000001", 0, 0)
    assert (shown["as_of"], [pay["note"] for pay in shown["payments"]]) == ("counter", ["", "January"])
    assert "13.000000001 USD" in run("credit", "show", org).out


def test_a_payment_needs_no_redis(ask: Callable[..., Any], org: str, servers: Servers) -> None:
    """Paying in is the books' business alone; what is left is then shown as far as they know."""
    servers.redis.stop()
    try:
        paid = ask("credit", "top-up", org, "5", "--idempotency-key", "a")
        assert (paid["replayed"], paid["credit"]["as_of"]) == (False, "books")
        assert ask("credit", "show", org)["left_nanos"] == 5_000_000_000
    finally:
        servers.redis.start()
    asyncio.run(begin(servers))
    back = ask("credit", "top-up", org, "5", "--idempotency-key", "a")
    assert (back["replayed"], back["credit"]["as_of"]) == (True, "counter")
    assert back["credit"]["available_nanos"] == 5_000_000_000


def test_a_payment_in_doubt_says_how_to_repeat_it(bare: Run, servers: Servers, org: str) -> None:
    """When the database goes away in the middle, the made-up key is told, so that a repeat can't pay twice."""
    # The control plane still answers; the ledger's tables are out of reach for the length of this test.
    url = f"{servers.database_url}&options=-c%20lock_timeout%3D200"

    async def locked() -> Answer:
        async with connected(servers.database_url) as conn, conn.transaction():
            await conn.execute("LOCK TABLE ledger.balance IN ACCESS EXCLUSIVE MODE")
            return await asyncio.to_thread(bare, "credit", "top-up", org, "5", "--database-url", url)

    answer = asyncio.run(locked())
    answer.fails(cli_main.UNREACHABLE, r"repeat it with --idempotency-key cli-[0-9a-f]{16}\.")


def test_a_receipt_and_the_spent_credit(run: Run, ask: Callable[..., Any], org: str, servers: Servers) -> None:
    """A request's receipt tells its hold, meters, card, charge and transfer; the credit fell by exactly the charge."""
    org_id = ask("org", "show", org)["id"]
    ask("credit", "top-up", org, "10")
    endpoint = ask("endpoint", "add", "--org", org, "--backend", "http://127.0.0.1:9", "--model", "m")
    ask("price", "set", endpoint["id"], "--prompt", "0.15", "--completion", "0.60", "--request", "0.000001001")
    meters = {Meter.PROMPT: 7, Meter.COMPLETION: 51, Meter.REQUEST: 1}

    async def request() -> str:
        pool = await open_pool(servers.database_url, size=4)
        ledger = Ledger(pool)
        counter = await CreditCounter.connect(servers.redis.url, epoch=await ledger.epochs(1))
        try:
            (card,) = (await ledger.current_cards(endpoint_id=endpoint["id"]))[endpoint["id"]]
            world = World(pool, counter, ledger, card)
            await counter.begin_epoch()
            await world.grant(org_id)
            held = await world.hold(org=org_id)
            shown = await asyncio.to_thread(ask, "credit", "show", org)
            assert (shown["held_nanos"], shown["left_nanos"]) == (10_000_000, 10_000_000_000)
            assert shown["available_nanos"] == 10_000_000_000 - 10_000_000
            hold_id = await world.hold(org=org_id)
            info = world.info(meters, endpoint=endpoint["id"])
            await counter.settle(Settlement(hold_id, org_id, charge_nanos(card, meters), info=info))
            await counter.void(Settlement(held, org_id, 0, info=world.info({}, "failed", endpoint=endpoint["id"])))
            await world.booked()
            return hold_id
        finally:
            await counter.close()
            pool.terminate()
            await asyncio.sleep(0)

    request_id = asyncio.run(request())
    found = ask("receipt", request_id)
    charge = 7 * 150 + 51 * 600 + 1_001
    assert found["charge_nanos"] == charge
    assert found["charge_usd"] == f"{charge / 1e9:.9f}"
    assert (found["org_id"], found["usage_source"], found["held_nanos"]) == (org_id, "reported", 10_000_000)
    assert {line["meter"]: line["quantity"] for line in found["meters"]} == {m.value: n for m, n in meters.items()}
    assert found["rates_nanos"]["prompt"] == 150_000_000
    assert [moved["amount_nanos"] for moved in found["transfers"]] == [charge]
    assert re.search(r"charge +│ 0\.000032651 USD", run("receipt", request_id).out)
    shown = ask("credit", "show", org)
    assert (shown["spent_nanos"], shown["booked_nanos"], shown["frozen_nanos"]) == (charge, charge, 0)
    assert shown["left_nanos"] == 10_000_000_000 - charge
    run("receipt", new_request_id(), "--wait", "0").fails(cli_main.REFUSED, "no receipt")
    run("receipt", "nonsense").fails(cli_main.REFUSED, "not a request id")


def test_to_show_changes_nothing(ask: Callable[..., Any], org: str, servers: Servers) -> None:
    """An organization without accounts (its creation broke off half-way) is shown as empty, and stays as it is."""

    async def orphan() -> str:
        async with connected(servers.database_url) as conn:
            return (await organizations.create(conn, "Half made"))[0].id

    async def accounts(org_id: str) -> int:
        async with connected(servers.database_url) as conn:
            return int(await conn.fetchval("SELECT count(*) FROM ledger.account WHERE org_id = $1", org_id))

    org_id = asyncio.run(orphan())
    assert ask("credit", "show", org_id)["left_nanos"] == 0
    assert ask("org", "show", org_id)["credit"]["paid_in_usd"] == "0.00"
    assert asyncio.run(accounts(org_id)) == 0
    assert ask("org", "create", "Half made")["created"] is False  # the retry that completes it
    assert asyncio.run(accounts(org_id)) == 3


# -- endpoints and prices --------------------------------------------------------------------------------------------


def test_an_endpoint_is_added_once_and_driven_by_name(run: Run, ask: Callable[..., Any], org: str) -> None:
    """Add, show, stop, start, remove by name or id; a retry finds it; other content under the name is refused."""
    words = ("endpoint", "add", "prod-9", "--org", org, "--model", "vendor/real", "--alias", "llama-1")
    replicas = ("--backend", "http://a:8000/v1", "--backend", "http://b:8000")
    first = run(*words, *replicas, "--json")
    assert "no price yet" in first.err
    again = ask(*words, *replicas)
    assert (first.json["created"], again["created"], again["id"]) == (True, False, first.json["id"])
    assert [backend["url"] for backend in again["backends"]] == ["http://a:8000", "http://b:8000"]
    run(*words, "--backend", "http://c").fails(cli_main.REFUSED, "another set of backends")
    for verb, status in (("stop", "stopped"), ("stop", "stopped"), ("start", "live"), ("start", "live")):
        assert ask("endpoint", verb, "prod-9", "--org", org)["status"] == status
    assert ask("endpoint", "show", first.json["id"])["model"] == "vendor/real"
    assert [row["id"] for row in ask("endpoint", "list", "--org", org)] == [first.json["id"]]
    ask("endpoint", "remove", first.json["id"])
    assert ask("endpoint", "remove", first.json["id"])["removed"] is True
    run("endpoint", "show", first.json["id"]).fails(cli_main.REFUSED, "no endpoint")
    run("endpoint", "remove", "prod-9", "--org", org).fails(cli_main.REFUSED, "no endpoint")
    assert ask("endpoint", "list", "--org", org) == []


def test_a_seed_endpoint(run: Run, ask: Callable[..., Any], org: str) -> None:
    """A seed record needs no engine, and can't be started."""
    seed = ask("endpoint", "add", "old-one", "--org", org, "--seed")
    assert (seed["status"], seed["backends"]) == ("seed", [])
    run("endpoint", "start", "old-one", "--org", org).fails(cli_main.REFUSED, "seed")


def test_options_of_an_endpoint_are_kept(ask: Callable[..., Any], org: str) -> None:
    """A chosen id, bounds, capabilities and how its engines want to be spoken to."""
    added = ask(
        *("endpoint", "add", "--id", "ep_chosen", "--org", org, "--model", "m", "--backend", "http://a"),
        *("--context-tokens", "4096", "--max-output-tokens", "512", "--deadline-s", "30", "--capability", "embedding"),
        *("--backend-key-file", "/etc/key", "--health-path", "/ping", "--strict-backend"),
    )
    assert (added["id"], added["name"], added["context_tokens"]) == ("ep_chosen", "ep_chosen", 4096)
    assert (added["max_output_tokens"], added["deadline_s"], added["capabilities"]) == (512, 30.0, ["embedding"])
    (backend,) = added["backends"]
    assert (backend["api_key_file"], backend["health_path"]) == ("/etc/key", "/ping")
    assert backend["tolerates_unknown_fields"] is False


def test_a_model_on_triton_needs_no_more_than_its_address(ask: Callable[..., Any], run: Run, org: str) -> None:
    """The address names the model; a folder is kept as an absolute path."""
    added = ask("endpoint", "add", "tri", "--org", org, "--backend", "triton://gpu-1:8001/ensemble")
    assert (added["model"], added["backends"][0]["url"]) == ("ensemble", "triton://gpu-1:8001/ensemble")
    words = ("--backend", "triton://gpu-1:8001/ensemble", "--model-folder", "models/x")
    folder = ask("endpoint", "add", "with-folder", "--org", org, *words)["backends"][0]["model_folder"]
    assert folder == str(Path("models/x").resolve())
    run("endpoint", "add", "none", "--org", org, "--backend", "triton://gpu-1:8001").fails(cli_main.USAGE, "--model")


def test_a_model_folder_that_lacks_something_is_told_of(run: Run, org: str, tmp_path: Path) -> None:
    """What can't be read, or is not possible with a folder, is said when it is given and not when a customer calls."""
    words = ("endpoint", "add", "--org", org, "--backend", "triton://gpu-1:8001/ensemble", "--model-folder")
    whole = write_model_folder(tmp_path / "whole", "chatml")
    assert "template" not in run(*words, str(whole), "whole").err
    (whole / "tokenizer_config.json").unlink()
    assert "chat template" in run(*words, str(whole), "no-template").err
    (tmp_path / "empty").mkdir()
    assert "empty" in run(*words, str(tmp_path / "empty"), "empty").err
    assert "no folder on this machine" in run(*words, str(tmp_path / "elsewhere"), "elsewhere").err


def test_prices_follow_each_other(run: Run, ask: Callable[..., Any], org: str) -> None:
    """A price is set now or from a moment on; the same price again changes nothing; the past can't be changed."""
    added = run("endpoint", "add", "priced", "--org", org, "--model", "m", "--backend", "http://a", "--json").json
    words = ("price", "set", "priced", "--org", org)
    first = ask(*words, "--prompt", "0.15", "--cached-prompt", "0.075", "--completion", "0.60", "--request", "0.0021")
    assert first["rates_nanos"] == {
        "prompt": 150_000_000,
        "cached_prompt": 75_000_000,
        "completion": 600_000_000,
        "request": 2_100_000,
    }
    same = ask(*words, "--prompt", "0.15", "--cached-prompt", "0.075", "--completion", "0.60", "--request", "0.0021")
    assert same["id"] == first["id"]
    ask(*words, "--reasoning", "1", "--image", "2", "--from", "1d")
    run(*words, "--prompt", "1", "--from", "2020-01-01").fails(cli_main.REFUSED, "begin")
    cards = ask("price", "list", "priced", "--org", org)
    assert [card["state"] for card in cards] == ["current", "future"]
    assert cards[0]["effective_to"] == cards[1]["effective_from"]
    assert cards[1]["rates_usd"] == {"reasoning": "1.00", "image": "2.00"}
    assert ask("endpoint", "show", added["id"])["priced"] is True
    run("price", "set", "nothing", "--prompt", "1").fails(cli_main.REFUSED, "no endpoint")
    assert "prompt=0.15" in run("price", "list", "priced", "--org", org).out


def test_images_and_seconds_have_a_price_of_their_own(run: Run, ask: Callable[..., Any], org: str) -> None:
    """In dollars for one of them, exact to the nano; stored per million as every rate."""
    run("endpoint", "add", "seeing", "--org", org, "--model", "m", "--backend", "http://a", "--json")
    words = ("price", "set", "seeing", "--org", org)
    card = ask(*words, "--image", "0.002", "--audio-second", "0.000000001", "--request", "0.01")
    assert card["rates_nanos"] == {"request": 10_000_000, "image": 2_000_000_000_000, "audio_second": 1_000_000}
    assert card["rates_usd"] == {"request": "0.01", "image": "0.002", "audio_second": "0.000000001"}
    run(*words, "--image", "10.01").fails(cli_main.REFUSED, "image")
    assert ask(*words, "--image", "10")["rates_usd"] == {"image": "10.00"}


def test_discounts_are_set_listed_and_ended(run: Run, ask: Callable[..., Any], org: str) -> None:
    """In percent, for all endpoints or for one by name; the same again changes nothing, the past can't be changed."""
    endpoint = run("endpoint", "add", "cheap", "--org", org, "--model", "m", "--backend", "http://a", "--json").json
    assert ask("discount", "list", org) == []
    first = ask("discount", "set", org, "--percent", "12.5")
    assert (first["bps"], first["percent"], first["state"], first["endpoint_id"]) == (1_250, "12.5", "current", None)
    assert ask("discount", "set", org, "--percent", "12.50%")["id"] == first["id"]
    own = ask("discount", "set", org, "--percent", "100", "--endpoint", "cheap")
    assert (own["endpoint_id"], own["percent"]) == (endpoint["id"], "100")
    run("discount", "set", org, "--percent", "3", "--from", "2020-01-01").fails(cli_main.REFUSED, "begin")
    ask("discount", "set", org, "--percent", "0.07", "--from", "1d")
    run("discount", "end", org).fails(cli_main.REFUSED, "begins")
    assert ask("discount", "end", org, "--at", "2d")["effective_to"] is not None
    assert ask("discount", "end", org, "--endpoint", endpoint["id"])["state"] == "past"
    run("discount", "end", org, "--endpoint", "cheap").fails(cli_main.REFUSED, "open")
    shown = ask("discount", "list", org)
    assert [(d["percent"], d["state"]) for d in shown] == [("12.5", "current"), ("0.07", "future"), ("100", "past")]
    assert shown[0]["effective_to"] == shown[1]["effective_from"]
    assert "12.5" in run("discount", "list", org).out
    for wrong in ("101", "-1", "12.345", "half", ""):
        run("discount", "set", org, "--percent", wrong).fails(cli_main.USAGE, "percent")
    run("discount", "set", org, "--percent", "1", "--endpoint", "nothing").fails(cli_main.REFUSED, "no endpoint")
    run("discount", "set", "nobody", "--percent", "1").fails(cli_main.REFUSED, "organization")


# -- the audit -------------------------------------------------------------------------------------------------------


def _book_everything(servers: Servers) -> None:
    async def work() -> None:
        pool = await open_pool(servers.database_url, size=4)
        ledger = Ledger(pool)
        counter = await CreditCounter.connect(servers.redis.url, epoch=await ledger.epochs(1))
        try:
            card = PriceCard("pc_none", "ep_none", {}, 0, None)
            await World(pool, counter, ledger, card).booked()
        finally:
            await counter.close()
            pool.terminate()
            await asyncio.sleep(0)

    asyncio.run(work())


def test_the_audit_is_clean_and_then_finds_a_nano(
    run: Run, ask: Callable[..., Any], org: str, servers: Servers
) -> None:
    """No difference: status 0. One nano-dollar out of place: status 3, and the difference is named."""
    org_id = ask("org", "show", org)["id"]
    ask("credit", "top-up", org, "10")
    _book_everything(servers)
    clean = run("ledger", "audit", "--json")
    assert clean.json["differences"] == []
    assert all(check["verdict"] == "holds" for check in clean.json["checks"])
    assert run("ledger", "audit").status == 0

    async def shift(nanos: int) -> None:
        async with connected(servers.database_url) as conn:
            await conn.execute(
                "UPDATE ledger.balance SET escrow_nanos = escrow_nanos + $2 WHERE org_id = $1", org_id, nanos
            )

    asyncio.run(shift(1))
    try:
        found = run("ledger", "audit", "--json")
        assert found.status == cli_main.DIFFERENCES
        assert json.loads(found.out)["difference_count"] >= 1
        assert org_id in found.out
        assert org_id in run("ledger", "audit").out
    finally:
        asyncio.run(shift(-1))
    assert run("ledger", "audit").status == 0


def test_an_audit_that_could_not_see_everything_is_no_proof(run: Run, bare: Run, servers: Servers) -> None:
    """Without Redis the books may agree, but the status is not 0 unless only the books were asked for."""
    blind = run("ledger", "audit", "--redis-url", "redis://:hunter2@127.0.0.1:1/0", "--quiet-timeout", "0", "--json")
    assert blind.status == cli_main.UNREACHABLE
    assert json.loads(blind.out)["differences"] == []
    assert "not looked at" in blind.err
    assert "hunter2" not in blind.err + blind.out
    assert run("ledger", "audit", "--books-only").status == 0


def test_an_audit_without_any_redis_says_what_to_give(bare: Run, servers: Servers) -> None:
    """A forgotten --redis-url is wrong usage, not half a proof."""
    bare("ledger", "audit", "--database-url", servers.database_url).fails(cli_main.USAGE, "--redis-url.*--books-only")
