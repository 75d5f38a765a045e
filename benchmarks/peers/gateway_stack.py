"""This gateway, as an operator starts it: Postgres, Redis, reconciler, supervisor, and one worker on its core.

Everything is as it is for customers: keys checked, credit held and settled, the journal and Redis's file on disk before
an answer ends, the reconciler booking. The second peer here is the same worker with nothing metered.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import Target
from benchmarks.peers.peer import STOP_S, UNPROXIED, PeerFailed, Place, Running, pinned, wait_serving
from benchmarks.processes import pin
from benchmarks.results import commit
from gateway.control import endpoints, keys, organizations
from gateway.control.database import new_id, session
from gateway.control.endpoints import NewBackend, NewEndpoint
from gateway.core.state import Scope
from gateway.settings import Settings
from gateway.stack.embedded_postgres import EmbeddedPostgres
from gateway.stack.embedded_redis import EmbeddedRedis
from gateway.stack.environment import environment_of
from gateway.stack.prepare import migrate_all, open_ledger
from gateway.stack.processes import Child, Spec, StackError, free_port, lock_holder, tail
from ledger.core.meters import Meter

START_S = 60.0
CREDIT_NANOS = 10**15
"""A million dollars: no run of a benchmark comes to its end."""
RATES = {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000}
"""15 and 60 cents a million tokens, in nano-USD."""


class _Gateway:
    """What both have: databases, one organization with an endpoint and a key, a worker on its core."""

    def install(self, folder: Path) -> None:
        """It is here."""

    def start(self, upstream: str, model: str, place: Place) -> Running:
        """Start all of it; the worker alone moves to the proxy's core.

        Raises:
            PeerFailed: something does not start.
        """
        with ExitStack() as cleanup, pinned(place.other_cores):
            try:
                stack, worker, target = self._open(upstream, model, place, cleanup)
                if no_streams := wait_serving(target, lambda: stack[0].running):
                    raise PeerFailed(no_streams)
            except (StackError, PeerFailed) as error:
                said = tail(place.work / "serve.log", 1)
                raise PeerFailed(f"{error} The end of its log: {said or 'nothing'}") from None
            pids = [child.pid for child in stack]
            return Running(target, [worker], pids, commit(), stop=cleanup.pop_all().close)

    def _open(self, upstream: str, model: str, place: Place, cleanup: ExitStack) -> tuple[list[Child], int, Target]:
        """The processes (the serving one first), the worker's pid, and how a client addresses it."""
        postgres = EmbeddedPostgres(place.work / "postgres")
        redis = EmbeddedRedis(place.work / "redis")
        for server in (postgres, redis):
            asyncio.run(server.start())
            cleanup.callback(_stop_server, server)
        settings = Settings(
            port=free_port(),
            admin_port=free_port(),
            data_dir=str(place.work / "data"),
            database_url=postgres.url,
            redis_url=redis.url,
        )
        tenant = asyncio.run(_prepare(settings, upstream, model))
        serving, worker = self._serve(settings, place, cleanup)
        target = Target(f"http://127.0.0.1:{settings.port}", tenant.key, tenant.endpoint)
        return [serving, postgres.child, redis.child], worker, target

    def _serve(self, settings: Settings, place: Place, cleanup: ExitStack) -> tuple[Child, int]:
        """Start what serves; the process to watch, and the worker's pid."""
        raise NotImplementedError


class MeteredGateway(_Gateway):
    """One worker of ``gateway serve``."""

    name = "gateway"
    label = "gateway, metering on"
    note = "gateway serve, 1 worker: keys, holds, settlements, journal, request log, ledger; its own Postgres and Redis"
    is_slow = False

    def _serve(self, settings: Settings, place: Place, cleanup: ExitStack) -> tuple[Child, int]:
        serve = _start("-m", "gateway", "serve", settings=settings, place=place, cleanup=cleanup)
        run = settings.data_path / "run"
        _wait(run / "worker-0.ready", serve)
        worker = lock_holder(run / "worker-0.lock") or 0
        pin(worker, (place.proxy_core,))
        return serve, worker


class UnmeteredGateway(_Gateway):
    """The same worker, composed by `benchmarks.peers.unmetered`."""

    name = "gateway-unmetered"
    label = "gateway, metering off"
    note = "bench-only: keys, routes, bounds and request log, but no hold, no settlement, no journal, no event"
    is_slow = False

    def _serve(self, settings: Settings, place: Place, cleanup: ExitStack) -> tuple[Child, int]:
        ready, metrics = place.work / "ready", place.work / "metrics"
        metrics.mkdir()
        # What the supervisor gives its workers.
        own = {"PARETA_READY_FILE": str(ready), "PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        module = ("-m", "benchmarks.peers.unmetered")
        worker = _start(*module, settings=settings, place=place, cleanup=cleanup, environment=own)
        _wait(ready, worker)
        pin(worker.pid, (place.proxy_core,))
        return worker, worker.pid


@dataclass(frozen=True, slots=True)
class _Tenant:
    endpoint: str
    key: str


def _stop_server(server: EmbeddedPostgres | EmbeddedRedis) -> None:
    asyncio.run(server.stop())


async def _prepare(settings: Settings, upstream: str, model: str) -> _Tenant:
    """Schemas, and an organization that can pay for everything: its endpoint and its key."""
    await migrate_all(settings.database_url)
    endpoint_id = new_id("ep")
    backend = NewBackend(upstream)
    async with session(settings.database_url) as conn, open_ledger(settings) as (ledger, _):
        organization, _ = await organizations.create(conn, "Benchmarks")
        await ledger.open_accounts(organization.id)
        await ledger.top_up(organization.id, CREDIT_NANOS, "benchmarks")
        await ledger.set_price(endpoint_id, RATES)
        new = NewEndpoint(org_id=organization.id, real_model=model, id=endpoint_id, backends=(backend,))
        await endpoints.add(conn, new)
        _, key = await keys.mint(conn, organization.id, scope=Scope.FULL)
    return _Tenant(endpoint_id, key)


def _start(
    *arguments: str,
    settings: Settings,
    place: Place,
    cleanup: ExitStack,
    environment: Mapping[str, str] | None = None,
) -> Child:
    spec = Spec(
        name="serve",
        command=[sys.executable, *arguments],
        lock=place.work / "serve.lock",
        environment={**UNPROXIED, **environment_of(settings), **(environment or {})},
        log=place.work / "serve.log",
    )
    child = Child(spec)
    cleanup.callback(lambda: asyncio.run(child.stop(STOP_S)))
    return child


def _wait(ready: Path, serving: Child) -> None:
    give_up_s = time.monotonic() + START_S
    while not ready.exists():
        if not serving.running:
            raise PeerFailed("The gateway ended before it served.")
        if time.monotonic() > give_up_s:
            raise PeerFailed(f"The gateway does not serve after {START_S:.0f} s.")
        time.sleep(0.05)
