"""Engines as programs of this host, with real simulators."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from gateway.control.deploys.drivers import CannotServe
from gateway.control.deploys.process import EngineFailed, Process, command_of, name_of
from gateway.control.deploys.store import Serving
from gateway.stack.engine_host import LocalEngines
from gateway.stack.processes import lock_holder

WORDS = [sys.executable, "-m", "backends.simulator", "--model", "{model}", "--port", "{port}"]


def command(port: int) -> Sequence[str]:
    return command_of(WORDS, port, "tiny")


@asynccontextmanager
async def hosting(folder: Path) -> AsyncIterator[LocalEngines]:
    engines = LocalEngines(folder)
    watching = asyncio.create_task(engines.watch())
    try:
        yield engines
    finally:
        watching.cancel()
        await engines.close()


async def answers(port: int) -> None:
    """Until an engine says that it is well."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                await asyncio.sleep(0.05)


def pid_of(folder: Path, name: str) -> int:
    return lock_holder(folder / "run" / f"engine-{name}.lock") or 0


async def test_an_engine_runs_once_and_comes_back(tmp_path: Path) -> None:
    """Asked for twice it is one; killed it is started again on its port; ended it is gone."""
    async with hosting(tmp_path) as engines:
        port = await engines.run("tiny", command, {})
        assert await engines.run("tiny", command, {}) == port
        await answers(port)
        first = pid_of(tmp_path, "tiny")
        os.kill(first, signal.SIGKILL)
        async with asyncio.timeout(20):
            while pid_of(tmp_path, "tiny") in (0, first):
                await asyncio.sleep(0.05)
        await answers(port)
        await engines.end("tiny")
        assert pid_of(tmp_path, "tiny") == 0
        assert engines.running == frozenset()


async def test_an_engine_is_found_by_a_successor(tmp_path: Path) -> None:
    """A host that was killed leaves its engine; the next one takes it over, or ends it if it is to be another."""
    orphaned = LocalEngines(tmp_path)
    port = await orphaned.run("tiny", command, {})
    await answers(port)
    pid = pid_of(tmp_path, "tiny")
    async with hosting(tmp_path) as engines:
        assert engines.running == {"tiny"}
        assert await engines.run("tiny", command, {}) == port
        assert pid_of(tmp_path, "tiny") == pid
        other = await engines.run("tiny", lambda port: [*command(port), "--seed", "7"], {})
        await answers(other)
        assert pid_of(tmp_path, "tiny") not in (0, pid)
    assert pid_of(tmp_path, "tiny") == 0
    orphaned_child = orphaned._engines["tiny"].child
    assert orphaned_child is not None
    await orphaned_child.wait(5)  # reaped


async def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    """It fails with a sentence for operators; customers read another one."""
    async with hosting(tmp_path) as engines:
        with pytest.raises(EngineFailed, match="no-such-engine"):
            await engines.run("none", lambda port: ["no-such-engine", str(port)], {})
        driver = Process(engines, most=1, linger_s=0)
        missing = Serving("real/model", "process", {"command": ["no-such-engine", "{port}"]}, 4096, 1024)
        with pytest.raises(CannotServe) as failure:
            await driver.addresses(missing)
        assert "engine" not in str(failure.value)
        assert "real/model" not in str(failure.value)


async def test_engines_are_bounded_and_end_when_nobody_wants_them(tmp_path: Path) -> None:
    """No more than may be; one that is wanted no more makes room."""
    async with hosting(tmp_path) as engines:
        driver = Process(engines, most=1, linger_s=0.1)
        one, two = (Serving(name, "process", {"command": WORDS}, 4096, 1024) for name in ("orga/One", "orgb/Two"))
        [backend] = await driver.addresses(one)
        await answers(int(backend.url.rpartition(":")[2]))
        with pytest.raises(CannotServe):
            await driver.addresses(two)
        await asyncio.sleep(0.2)
        await driver.keep([one])
        assert engines.running == {name_of("orga/One")}
        await asyncio.sleep(0.2)
        await driver.keep([])
        assert engines.running == frozenset()
        assert await driver.addresses(two)


def test_names_of_engines_are_harmless_and_different() -> None:
    """A real id becomes a file's name that does not tell it."""
    names = [name_of(text) for text in ("orga/Model-7B", "orga-model-7b", "../../etc/passwd", "ü" * 300)]
    assert len(set(names)) == 4
    assert all(name.isalnum() and len(name) == 16 for name in names)


async def test_an_engine_gets_none_of_our_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor our databases: it is somebody else's program. What the registry names, it gets."""
    for name in ("DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "PARETA_CONFIG"):
        monkeypatch.setenv(name, "secret-of-ours")
    monkeypatch.setenv("HARMLESS", "kept")
    said = tmp_path / "environment"
    program = f"import os,time; open({str(said)!r}, 'w').write(repr(dict(os.environ))); time.sleep(60)"
    words = [sys.executable, "-c", program]
    async with hosting(tmp_path) as engines:
        await engines.run("tells", lambda port: [*words, str(port)], {"HF_HOME": "/models"})
        async with asyncio.timeout(20):
            while not said.exists() or not said.read_text().endswith("}"):
                await asyncio.sleep(0.05)
    assert "secret-of-ours" not in said.read_text()
    assert "'HARMLESS': 'kept'" in said.read_text()
    assert "'HF_HOME': '/models'" in said.read_text()
