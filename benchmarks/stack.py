"""A whole gateway for a benchmark, as ``make run`` starts one, with the mock engine behind it.

Everything is as it is for customers: keys are checked, credit is held and settled, journal and Redis's file are on disk
before an answer ends, the reconciler books. It lives in a temporary folder and on free ports, and is gone at the end.
The gateway's workers have cores of their own; all else shares the others.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.load import Target
from benchmarks.mock import process as mock_process
from benchmarks.mock.process import MockProcess
from benchmarks.processes import Cores, choose_cores, open_many_files, pin
from gateway.control import endpoints, keys, organizations
from gateway.control.database import new_id, session
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.settings import Settings
from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from gateway.stack.environment import environment_of
from gateway.stack.prepare import migrate_all, open_ledger
from gateway.stack.processes import Child, Spec, StackError, free_port, lock_holder, tail
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_USD

CREDIT_NANOS = 1_000_000 * NANOS_PER_USD
"""No benchmark comes to its end."""
RATES = {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000}
"""Nano-USD per million tokens: 0.15 USD and 0.60 USD."""
MODEL = "mock"
_START_S = 60.0
_STOP_S = 40.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Goes to loopback whatever proxy the environment names."""


class BenchStack:
    """The running stack.

    Attributes:
        cores: what runs where.
        settings: of the gateway.
        target: an organization with credit.
        pauper: one without any.
        mock: the engine.
    """

    def __init__(
        self,
        settings: Settings,
        cores: Cores,
        *,
        folder: Path,
        target: Target,
        pauper: Target,
        mock: MockProcess,
        postgres: EmbeddedPostgres,
        redis: EmbeddedRedis,
    ) -> None:
        self.settings, self.cores = settings, cores
        self.target, self.pauper = target, pauper
        self.mock = mock
        self._folder = folder
        self._postgres, self._redis = postgres, redis
        self._serving: Child | None = None

    @property
    def direct(self) -> Target:
        """The engine itself, past the gateway."""
        return Target(self.mock.url, "none", MODEL)

    @property
    def stranger(self) -> Target:
        """A key that nobody has."""
        return replace(self.target, api_key=self.target.api_key[:-8] + "00000000")

    def groups(self) -> dict[str, list[int]]:
        """The processes to watch; ``gateway`` are the workers that serve customers."""
        run = self.settings.data_path / "run"
        reconcilers = [pid for lock in run.glob("reconciler*.lock") if (pid := lock_holder(lock))]
        return {
            "gateway": [self._worker(slot) for slot in range(self.settings.workers)],
            "reconciler": reconcilers,
            "redis": [self._redis.child.pid],
            "postgres": [self._postgres.child.pid],
            "engine": [self.mock.pid],
        }

    def restart_gateway(self) -> None:
        """A fresh gateway: its memory holds nothing of what was asked before.

        Raises:
            StackError: it does not start.
        """
        self.stop_gateway()
        self.start_gateway()

    def start_gateway(self) -> None:
        """Start supervisor, workers and reconciler, and give the workers their cores.

        Raises:
            StackError: it does not start.
        """
        log = self._folder / "gateway.log"
        command = [sys.executable, "-m", "gateway", "serve"]
        environment = environment_of(self.settings)
        lock = self._folder / "serve.lock"
        self._serving = Child(Spec(name="serve", command=command, lock=lock, environment=environment, log=log))
        ready = [self.settings.data_path / "run" / f"worker-{slot}.ready" for slot in range(self.settings.workers)]
        give_up_s = time.monotonic() + _START_S
        while not all(file.exists() for file in ready):
            if not self._serving.running or time.monotonic() > give_up_s:
                raise StackError(f"The gateway did not start. The end of its log:\n{tail(log, 20)}")
            time.sleep(0.05)
        for slot in range(self.settings.workers):
            pin(self._worker(slot), self.cores.measured[slot % len(self.cores.measured) :][:1])
        self._first_answer()

    def stop_gateway(self) -> None:
        """Stop it, if it runs."""
        if self._serving is not None:
            asyncio.run(self._serving.stop(_STOP_S))
            self._serving = None

    def _first_answer(self) -> None:
        """Wait until a completion comes through all of it."""
        body = {
            "model": self.target.model,
            "messages": [{"role": "user", "content": "Are you there?"}],
            "max_tokens": 1,
        }
        headers = {"Authorization": f"Bearer {self.target.api_key}", "Content-Type": "application/json"}
        url = f"{self.target.base_url}/v1/chat/completions"
        asking = urllib.request.Request(url, json.dumps(body).encode(), headers)
        give_up_s = time.monotonic() + _START_S
        while True:
            try:
                with _OPENER.open(asking, timeout=_START_S) as answer:
                    answer.read()
                    return
            except OSError as error:
                if time.monotonic() > give_up_s:
                    raise StackError(f"No completion came through the gateway: {error}.") from None
                time.sleep(0.05)

    def _worker(self, slot: int) -> int:
        pid = lock_holder(self.settings.data_path / "run" / f"worker-{slot}.lock")
        if not pid:
            raise StackError(f"The gateway's worker {slot} does not run any more; see its log in {self._folder}.")
        return pid


@contextmanager
def running(*, workers: int = 1, say: Callable[[str], None] = lambda _: None, **overrides: Any) -> Iterator[BenchStack]:
    """Start a stack, and stop it at the end. This process moves to the cores of all that is not measured.

    Args:
        workers: worker processes of the gateway.
        say: is told what is going on.
        overrides: more settings of the gateway.

    Raises:
        StackError: it does not start.
    """
    open_many_files()
    allowed = os.sched_getaffinity(0)
    cores = choose_cores(workers)
    with ExitStack() as cleanup:
        folder = Path(tempfile.mkdtemp(prefix="pareta-benchmark-"))
        folder.chmod(0o755)  # Postgres, which never runs as root, has to pass through
        cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
        os.sched_setaffinity(0, cores.others)
        cleanup.callback(os.sched_setaffinity, 0, allowed)
        say("starting Postgres and Redis")
        postgres, redis = EmbeddedPostgres(folder / "postgres"), EmbeddedRedis(folder / "redis")
        for server in (postgres, redis):
            cleanup.callback(_stop, server)
            asyncio.run(server.start())
        settings = Settings(
            port=free_port(),
            admin_port=free_port(),
            workers=workers,
            data_dir=str(folder / "data"),
            database_url=postgres.url,
            redis_url=redis.url,
            # One engine gets every stream, up to 10,000 of them.
            pool_max_connections=20_000,
            **overrides,
        )
        say("starting the mock engine")
        mock = cleanup.enter_context(mock_process.running("--model", MODEL))
        say("preparing the ledger")
        target, pauper = asyncio.run(_prepare(settings, mock.url))
        stack = BenchStack(
            settings, cores, folder=folder, target=target, pauper=pauper, mock=mock, postgres=postgres, redis=redis
        )
        say("starting the gateway")
        cleanup.callback(stack.stop_gateway)
        stack.start_gateway()
        yield stack
        say("stopping")


async def _prepare(settings: Settings, engine_url: str) -> tuple[Target, Target]:
    """Schemas, and two organizations with an endpoint and a key each: one that can pay, one that cannot."""
    await migrate_all(settings.database_url)
    targets = []
    async with session(settings.database_url) as conn, open_ledger(settings) as (ledger, _):
        for name, credit_nanos in (("Benchmarks", CREDIT_NANOS), ("Benchmarks without credit", 0)):
            organization, _ = await organizations.create(conn, name)
            await ledger.open_accounts(organization.id)
            if credit_nanos:
                await ledger.top_up(organization.id, credit_nanos, "benchmarks")
            endpoint_id = new_id("ep")
            # Its price comes first, so that no worker sees it without one.
            await ledger.set_price(endpoint_id, RATES)
            endpoint = NewEndpoint(
                org_id=organization.id,
                id=endpoint_id,
                real_model=MODEL,
                context_tokens=1 << 18,
                max_output_tokens=1 << 17,
                deadline_s=3600,
                backends=(NewBackend(engine_url),),
            )
            await endpoints.add(conn, endpoint)
            _, key = await keys.mint(conn, organization.id)
            targets.append(Target(f"http://127.0.0.1:{settings.port}", key, endpoint_id))
    return targets[0], targets[1]


def _stop(server: EmbeddedPostgres | EmbeddedRedis) -> None:
    asyncio.run(server.stop())
