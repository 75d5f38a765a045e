"""A whole gateway on one machine with one command: databases, engine, demo tenant, workers.

Floor: stack. Everything is started in an order and stopped in the reverse one: workers drain, the reconciler books what
they settled, then go the engine, Redis and Postgres. What is external (DATABASE_URL, REDIS_URL) is used and never
stopped. Standard output gets what a person or a script needs; progress goes to standard error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import aiohttp

from gateway.control.database import ControlError
from gateway.settings import Settings
from gateway.stack.demo import SIMULATOR, TRITON, Demo, Engine, prepare_demo, simulator_engine
from gateway.stack.demo_catalog import prepare_catalog
from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis, find_redis
from gateway.stack.engines import EngineChoice, ended, start_simulator
from gateway.stack.greeting import show_greeting
from gateway.stack.keeper import Keeper
from gateway.stack.prepare import migrate_all, open_ledger
from gateway.stack.processes import Child, FolderLock, StackError, write_private
from gateway.stack.stopping import StopRequest
from gateway.stack.supervisor import Supervisor, check_ports, clear_leftovers
from gateway.stack.triton_demo import TritonOffer
from ledger.counter import CounterUnavailable
from ledger.errors import LedgerError

_WORKERS_START_S = 30.0
_FIRST_COMPLETION_S = 30.0


async def up(settings: Settings, *, new_key: bool = False, engines: EngineChoice = EngineChoice.BOTH) -> int:
    """Run the local stack until SIGTERM or SIGINT. Returns the exit status.

    Args:
        settings: without ``database_url`` or ``redis_url``, an embedded server is started for it.
        new_key: mint another demo key.
        engines: with ``BOTH`` a Triton server joins if it can be had; nothing waits for its installation.

    Raises:
        StackError: it cannot start; everything that was started has been stopped.
    """
    _log_to_stderr()
    try:
        await _run(settings, new_key, engines)
    except (LedgerError, ControlError, CounterUnavailable) as error:
        raise StackError(str(error)) from error
    _say("stopped")
    return 0


async def _run(settings: Settings, new_key: bool, engines: EngineChoice) -> None:
    stop = StopRequest()
    stop.listen()
    async with AsyncExitStack() as cleanup:
        starting = asyncio.create_task(_start(settings, new_key, engines, cleanup, stop))
        waiting = asyncio.create_task(stop.wait())
        await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()  # asked to stop while starting: what runs already is on the cleanup stack
            await asyncio.gather(starting, return_exceptions=True)
        else:
            await starting
            await waiting
        _say("stopping: requests in flight finish first; again Ctrl-C hurries")


async def _start(
    settings: Settings, new_key: bool, choice: EngineChoice, cleanup: AsyncExitStack, stop: StopRequest
) -> None:
    folder = settings.data_path
    _make_folder(folder)
    cleanup.callback(FolderLock(folder / "up.lock").close)
    await clear_leftovers(settings)
    check_ports(settings)
    if not settings.redis_url:
        find_redis()  # the likeliest thing to be missing is said before anything starts

    # What joins later is stopped as late as what is there from the start: after the workers.
    engines_cleanup = await cleanup.enter_async_context(AsyncExitStack())
    triton = TritonOffer(folder, choice, engines_cleanup, log=_fresh_log(folder, "triton"), say=_say)
    await triton.begin()
    settings = await _databases(settings, cleanup)
    applied = await migrate_all(settings.database_url)
    _say(f"migrated: {', '.join(applied) if applied else 'nothing to do'}")

    simulator_url = await start_simulator(folder, cleanup, log=_fresh_log(folder, "simulator"))
    _say(f"simulator (an engine without a model) runs on {simulator_url}")
    engines = [simulator_engine(simulator_url)]
    if (on_triton := await triton.started()) is not None:
        # The first one is what the greeting shows.
        engines.insert(0 if choice is EngineChoice.TRITON else 1, on_triton)
    demo = await _prepare(settings, engines, new_key=new_key)
    deploys_on = on_triton if choice is EngineChoice.TRITON else None
    if not await prepare_catalog(settings.database_url, simulator_url=simulator_url, triton=deploys_on):
        _say("the catalogue is an operator's own; the demonstration's was not imported")
    settings = replace(settings, demo_vendor_url=simulator_url)

    supervisor = Supervisor(settings, log_file=_fresh_log(folder, "gateway"))
    cleanup.push_async_callback(supervisor.close, stop)
    await supervisor.open()
    await supervisor.wait_ready(_WORKERS_START_S)
    await _first_completion(_base_url(settings), demo, engines[0].kind)
    await _first_tasks(_base_url(settings), demo)

    run_file = _RunFile(folder / "run.json", _run_content(settings, demo), supervisor)
    cleanup.callback((folder / "run.json").unlink, missing_ok=True)
    run_file.write()
    cleanup.push_async_callback(ended, asyncio.create_task(run_file.keep()))
    if triton.may_come_later:
        later = asyncio.create_task(_join(settings, triton, engines), name="a Triton server, later")
        cleanup.push_async_callback(ended, later)
    show_greeting(
        base_url=_base_url(settings),
        admin_url=f"http://{settings.admin_host}:{settings.effective_admin_port}",
        api_key=demo.newcomer.api_key,
        endpoint_id=demo.newcomer.endpoint_id,
        folder=folder,
        engine=_ENGINE_SENTENCES[engines[0].kind],
        also=_other_endpoint(demo) or triton.sentence,
    )


_ENGINE_SENTENCES: Mapping[str, str] = {
    SIMULATOR: "Behind it is a simulator.",
    TRITON: "Behind it is a Triton server with the tensors of TensorRT-LLM, and no model.",
}


def _other_endpoint(demo: Demo) -> str:
    """A sentence about the endpoint that the greeting does not show."""
    for kind, endpoint_id in list(demo.newcomer.endpoint_ids.items())[1:]:
        where = "a simulator" if kind == SIMULATOR else "a real Triton server"
        return f"The same key may call {endpoint_id}, which runs on {where}."
    return ""


async def _prepare(settings: Settings, engines: Sequence[Engine], *, new_key: bool = False) -> Demo:
    async with open_ledger(settings) as (ledger, _):
        return await prepare_demo(
            database_url=settings.database_url,
            ledger=ledger,
            folder=settings.data_path,
            engines=engines,
            new_key=new_key,
        )


async def _join(settings: Settings, triton: TritonOffer, engines: Sequence[Engine]) -> None:
    """Install a Triton server beside a stack that runs, and give the newcomer an endpoint on it."""
    try:
        demo = await _prepare(settings, [*engines, await triton.install_and_start()])
    except (StackError, LedgerError, ControlError, CounterUnavailable) as error:
        _say(f"there is no endpoint on Triton: {error}")
        return
    _say(_other_endpoint(demo))


# ---------------------------------------------------------------------------------------- what is started


class _Embedded(Protocol):
    """An embedded server."""

    @property
    def url(self) -> str: ...
    @property
    def child(self) -> Child: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


async def _databases(settings: Settings, cleanup: AsyncExitStack) -> Settings:
    """Start those that are not external; answer settings with both URLs."""
    folder = settings.data_path
    servers: dict[str, tuple[str, _Embedded]] = {}
    if not settings.database_url:
        servers["database_url"] = (
            "Postgres",
            EmbeddedPostgres(folder / "postgres", log=_fresh_log(folder, "postgres")),
        )
    if not settings.redis_url:
        servers["redis_url"] = ("Redis", EmbeddedRedis(folder / "redis", log=_fresh_log(folder, "redis")))
    await _together(*(_keep_server(name, server, cleanup) for name, server in servers.values()))
    urls = {setting: server.url for setting, (_, server) in servers.items()}
    return replace(
        settings,
        database_url=urls.get("database_url", settings.database_url),
        redis_url=urls.get("redis_url", settings.redis_url),
    )


async def _keep_server(name: str, server: _Embedded, cleanup: AsyncExitStack) -> None:
    async def start() -> Child:
        await server.start()
        return server.child

    keeper = Keeper(name, start)

    async def close() -> None:
        await keeper.release()
        await server.stop()

    cleanup.push_async_callback(close)
    begun_s = time.monotonic()
    await keeper.open()
    _say(f"{name} runs ({time.monotonic() - begun_s:.1f} s)")


async def _first_completion(base_url: str, demo: Demo, kind: str) -> None:
    """Wait until a completion comes through the whole gateway from an engine.

    Raises:
        StackError: none did in time; the text has the last answer.
    """
    probe = demo.probe
    messages = [{"role": "user", "content": "Are you there?"}]
    body = {"model": probe.endpoint_ids[kind], "messages": messages, "max_tokens": 4}
    headers = {"Authorization": f"Bearer {probe.api_key}"}
    deadline = time.monotonic() + _FIRST_COMPLETION_S
    last = "no answer"
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as client:
        while time.monotonic() < deadline:
            try:
                async with client.post(f"{base_url}/v1/chat/completions", json=body) as answer:
                    last = f"{answer.status} {(await answer.text())[:500]}"
                    if answer.status == 200:
                        return
            except (aiohttp.ClientError, TimeoutError) as error:
                last = str(error) or type(error).__name__
            await asyncio.sleep(0.1)
    raise StackError(f"No completion came through the gateway in {_FIRST_COMPLETION_S:g} s; the last answer: {last}")


async def _first_tasks(base_url: str, demo: Demo) -> None:
    """Wait until the platform's routes answer.

    Raises:
        StackError: they do not in time.
    """
    headers = {"Authorization": f"Bearer {demo.probe.api_key}"}
    deadline = time.monotonic() + _FIRST_COMPLETION_S
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=10)) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with client.get(f"{base_url}/v1/tasks") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.1)
    raise StackError(f"The platform's routes did not answer in {_FIRST_COMPLETION_S:g} s.")


# ---------------------------------------------------------------------------------------- what is written


class _RunFile:
    """``run.json``: tells other commands of this machine how to reach the stack."""

    def __init__(self, path: Path, content: Mapping[str, object], supervisor: Supervisor) -> None:
        self._path = path
        self._content = content
        self._supervisor = supervisor
        self._pids: dict[str, int] = {}

    def write(self) -> None:
        """Write it, if anything changed: processes get new numbers when they restart."""
        pids = {"up": os.getpid(), **self._supervisor.pids}
        if pids != self._pids:
            write_private(self._path, json.dumps({**self._content, "pids": pids}, indent=2) + "\n")
            self._pids = pids

    async def keep(self) -> None:
        """Keep it true."""
        while True:
            await asyncio.sleep(0.5)
            self.write()


def _run_content(settings: Settings, demo: Demo) -> dict[str, object]:
    return {
        "database_url": settings.database_url,
        "redis_url": settings.redis_url,
        "shards": settings.shards,
        "host": settings.host,
        "port": settings.port,
        "admin_port": settings.effective_admin_port,
        "base_url": _base_url(settings),
        "endpoint": demo.newcomer.endpoint_id,
        "organization": demo.newcomer.org_id,
    }


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StackError(f"DATA_DIR {folder} cannot be used: {error.strerror}.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StackError(f"DATA_DIR {folder} cannot be used: it is not writable for this user.")


def _fresh_log(folder: Path, name: str) -> Path:
    """The log of this run; the one of the run before is kept beside it."""
    log_file = folder / "logs" / f"{name}.log"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if log_file.exists():
        log_file.replace(log_file.with_suffix(".log.1"))
    return log_file


def _base_url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _say(text: str) -> None:
    print(f"up: {text}", file=sys.stderr, flush=True)


def _log_to_stderr() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="up: %(message)s")


# ---------------------------------------------------------------------------------------- small tools


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """All at once; the first error is raised when all have ended, so that nothing is half-started unseen."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
