"""`make run`, from the outside: one command up, one signal down, and whatever may happen in between."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.services import FreshRedis, PostgresService, private_folder, remove
from tests.stack import Stack, StartStack, alive, free_port_pair, launch, until

DEMO_CREDIT_NANOS = 10_000_000_000


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder whose path has spaces and that only its owner may enter."""
    path = private_folder("up")
    path.chmod(0o700)
    yield path / "data dir"
    remove(path)


async def complete(stack: Stack, *, expect: int = 200, **fields: Any) -> dict[str, Any]:
    """One completion without streaming."""
    body = {"model": stack.endpoint, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, **fields}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {stack.api_key}"}) as client,
        client.post(f"{stack.base_url}/v1/chat/completions", json=body) as answer,
    ):
        content: dict[str, Any] = await answer.json()
        assert answer.status == expect, content
        return content


async def completes_again(stack: Stack) -> None:
    """Wait until a completion succeeds."""
    for _ in range(100):
        try:
            await complete(stack)
        except (AssertionError, aiohttp.ClientError):
            await asyncio.sleep(0.1)
        else:
            return
    await complete(stack)


async def ready_again(stack: Stack) -> None:
    """Wait until every part says that it is there."""
    async with aiohttp.ClientSession() as client, asyncio.timeout(60):
        while True:
            async with client.get(f"{stack.admin_url}/readyz") as answer:
                if answer.status == 200:
                    return
            await asyncio.sleep(0.1)


def credit_nanos(stack: Stack) -> int:
    """What the demo organization has left, to the nano."""
    shown = stack.cli("credit", "show", stack.run_file["organization"])
    return int(shown["left_nanos"])


def test_the_first_run_and_the_second_are_the_same_house(folder: Path, start_stack: StartStack) -> None:
    """Same data: same key, same endpoint, same balance; another key only when asked; SIGTERM leaves no process."""
    first = start_stack(folder)
    assert first.ready_data_dir == str(folder)
    assert first.output.count("ready base_url=") == 1
    assert "curl" in first.output
    assert "from openai import OpenAI" in first.output
    assert credit_nanos(first) == DEMO_CREDIT_NANOS
    for name in ("run.json", "demo.json", "postgres/password", "redis/redis.conf"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
    pids = first.pids()
    assert {"up", "postgres", "redis", "simulator", "worker-0", "reconciler"} <= set(pids)
    assert first.stop() == 0
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert not (folder / "run.json").exists()

    second = start_stack(folder, "--new-key")
    assert second.endpoint == first.endpoint
    assert second.api_key != first.api_key
    assert credit_nanos(second) == DEMO_CREDIT_NANOS
    assert second.stop(signal.SIGINT) == 0

    third = start_stack(folder)
    assert third.api_key == second.api_key
    assert third.stop() == 0


def test_a_port_in_use_is_an_error_before_anything_starts(folder: Path) -> None:
    """The error names the port and the variable; no database was created for it."""
    port = free_port_pair()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        process = launch(folder, port=port)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use" in errors
    assert "PORT" in errors
    assert "Traceback" not in errors
    assert not (folder / "postgres").exists()


async def test_two_stacks_live_side_by_side(stack: Stack, folder: Path, start_stack: StartStack) -> None:
    """A second stack in another folder and port works, shares nothing, and its end leaves the first alone."""
    second = start_stack(folder)
    assert second.api_key != stack.api_key
    await complete(second)
    await complete(stack)
    await complete(second, expect=404, model=stack.endpoint)
    process = launch(folder, port=free_port_pair())
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "is in use by another run" in errors
    before = stack.pids()
    assert second.stop() == 0
    assert stack.pids() == before
    await complete(stack)


async def test_kill_9_of_up_leaves_no_orphans_and_no_damage(folder: Path, start_stack: StartStack) -> None:
    """After kill -9 of `up` its processes end by themselves, and the next run has the same key and clean books."""
    first = start_stack(folder, workers=2, PARETA_DRAIN_TIMEOUT_S="2")
    await complete(first)
    pids = first.pids()
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.communicate()
    second = start_stack(folder, workers=2)
    assert [name for name, pid in pids.items() if alive(pid)] == []
    assert second.api_key == first.api_key
    await complete(second)
    assert second.cli("ledger", "audit")["differences"] == []
    assert second.stop() == 0


@pytest.fixture(scope="module")
def mortal() -> Iterator[Stack]:
    """A stack whose parts are killed one after the other."""
    path = private_folder("mortal")
    running = Stack.start(path, workers=2)
    yield running
    running.end()
    remove(path)


@pytest.mark.parametrize("victim", ["worker-0", "reconciler", "simulator", "redis", "postgres"])
async def test_whoever_dies_is_started_again(mortal: Stack, victim: str) -> None:
    """kill -9 of any part: it comes back by itself, completions succeed again, and the books are clean."""
    await completes_again(mortal)
    pid = mortal.pids()[victim]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: mortal.pids().get(victim, pid) != pid, 60)
    await ready_again(mortal)
    await completes_again(mortal)
    assert mortal.cli("ledger", "audit")["differences"] == []
    if victim in ("worker-0", "reconciler"):
        await until(lambda: mortal.run_file["pids"].get(victim) not in (None, pid))


async def test_sigterm_lets_a_running_stream_finish(folder: Path, start_stack: StartStack) -> None:
    """A stream that runs at SIGTERM ends with [DONE], is charged, and only then everything stops."""
    running = start_stack(folder)
    body = {
        "model": running.endpoint,
        "messages": [{"role": "user", "content": "Tell me a long story"}],
        "stream": True,
        "max_tokens": 200,
    }
    headers = {"Authorization": f"Bearer {running.api_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as client,
        client.post(f"{running.base_url}/v1/chat/completions", json=body) as answer,
    ):
        await answer.content.readline()
        running.process.send_signal(signal.SIGTERM)
        rest = await answer.content.read()
        request_id = answer.headers["x-request-id"]
    assert b"data: [DONE]" in rest
    assert running.stop() == 0
    again = start_stack(folder)
    assert int(again.cli("receipt", request_id)["charge_nanos"]) > 0
    assert again.stop() == 0


def test_a_signal_while_starting_stops_everything(folder: Path, start_stack: StartStack) -> None:
    """Ctrl-C before it is ready: exit 0, and nothing of it runs on."""
    process = launch(folder, port=free_port_pair())
    lock = folder / "postgres" / "server.lock"
    while not lock.exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert start_stack(folder).stop() == 0


async def test_external_databases_are_used_and_left_alone(
    folder: Path, postgres_service: PostgresService, fresh_redis: FreshRedis, start_stack: StartStack
) -> None:
    """With DATABASE_URL and REDIS_URL nothing is embedded, and the end of the stack is not the end of them."""
    database_url = postgres_service.create_database()
    server = fresh_redis()
    running = start_stack(folder, DATABASE_URL=database_url, REDIS_URL=server.url)
    await complete(running)
    assert not {"postgres", "redis"} & set(running.pids())
    assert running.run_file["database_url"] == database_url
    assert running.stop() == 0
    assert server.server.child.running
    postgres_service.drop_database(database_url)


async def test_metrics_and_readiness_are_served_on_the_admin_port(stack: Stack) -> None:
    """/metrics sums over workers and carries the reconciler's gauges; /readyz tells each part."""
    await complete(stack)
    # As a process leaves it that was killed before it had written anything.
    (metrics,) = Path(stack.ready_data_dir).glob("metrics/*")
    (metrics / "histogram_1.db").touch()
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{stack.admin_url}/readyz") as answer:
            assert answer.status == 200
            assert await answer.json() == {"ready": True, "checks": {"worker": True, "redis": True, "postgres": True}}
        async with client.get(f"{stack.admin_url}/healthz") as answer:
            assert answer.status == 200
        text, deadline_s = "", time.monotonic() + 10
        while "\npareta_requests_total" not in text:  # a worker publishes its counts twice a second
            assert time.monotonic() < deadline_s
            async with client.get(f"{stack.admin_url}/metrics") as answer:
                text = await answer.text()
            await asyncio.sleep(0.1)
    for name in ("pareta_requests_total", "pareta_reconcile_lag_events", "pareta_reconcile_lag_seconds"):
        assert f"\n{name}" in text, name
    assert "pareta_ledger_drift_nanos 0.0" in text
    assert "pareta_workers_ready 2.0" in text
    assert "pid=" not in text


async def test_readiness_is_refused_while_redis_is_away(folder: Path, start_stack: StartStack) -> None:
    """With Redis stopped /readyz says 503 and which part it is; /healthz stays 200."""
    running = start_stack(folder)
    os.kill(running.pids()["redis"], signal.SIGSTOP)
    async with aiohttp.ClientSession() as client:
        async with client.get(f"{running.admin_url}/readyz") as answer:
            assert answer.status == 503
            assert (await answer.json())["checks"]["redis"] is False
        async with client.get(f"{running.admin_url}/healthz") as answer:
            assert answer.status == 200
    os.kill(running.pids()["redis"], signal.SIGCONT)
    await completes_again(running)
    assert running.stop() == 0
