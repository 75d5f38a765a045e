"""The admin listener of a gateway: /metrics of all its processes, /healthz and /readyz.

Floor: stack. It runs in the supervisor, on loopback unless told otherwise, and answers nothing a customer could
use. The metrics of workers come through files that prometheus-client shares between processes.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import asyncpg
import redis.asyncio
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from gateway.settings import Settings
from gateway.stack.processes import StackError

_CHECK_KEPT_S = 1.0


class Admin:
    """The listener. ``workers`` tells how many workers serve now and how many are wanted."""

    def __init__(self, settings: Settings, metrics_folder: Path, workers: Callable[[], tuple[int, int]]) -> None:
        self._settings = settings
        self._workers = workers
        self._registry = CollectorRegistry()
        self._registry.register(_SharedFiles(metrics_folder))
        self._serving = Gauge("pareta_workers_ready", "Workers that serve now.", registry=self._registry)
        self._wanted = Gauge("pareta_workers_wanted", "Workers that should serve.", registry=self._registry)
        self.restarts = Counter(
            "pareta_process_restarts",
            "Processes that ended and were started again.",
            ["process"],
            registry=self._registry,
        )
        self._dependencies = Dependencies(settings)
        self._runner: web.AppRunner | None = None

    async def open(self) -> None:
        """Listen.

        Raises:
            StackError: the port is in use.
        """
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)
        await self._runner.setup()
        host, port = self._settings.admin_host, self._settings.effective_admin_port
        try:
            # shutdown_timeout: a scrape that hangs must not hold up the shutdown.
            await web.TCPSite(self._runner, host, port, shutdown_timeout=1.0).start()
        except OSError as error:
            await self.close()
            reason = os.strerror(error.errno or 0)
            raise StackError(f"The admin listener cannot use {host}:{port}: {reason}.") from error

    async def close(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()
        await self._dependencies.close()

    async def _metrics(self, _: web.Request) -> web.Response:
        serving, wanted = self._workers()
        self._serving.set(serving)
        self._wanted.set(wanted)
        # It reads one file per process and metric kind.
        text = await asyncio.to_thread(generate_latest, self._registry)
        return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _readyz(self, _: web.Request) -> web.Response:
        checks = {"worker": self._workers()[0] > 0, **await self._dependencies.check()}
        ready = all(checks.values())
        return web.json_response({"ready": ready, "checks": checks}, status=200 if ready else 503)


class _SharedFiles(Collector):
    """The metrics of all processes, from the file that each process keeps per kind.

    A process that starts now, or was killed while it started, leaves a file that is still empty. prometheus-client
    takes that for an error of the whole scrape; here it is a process without metrics.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        files = [entry.path for entry in os.scandir(self._folder) if entry.name.endswith(".db") and _is_filled(entry)]
        merged: Iterable[Metric] = multiprocess.MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _is_filled(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.stat().st_size > 0
    except FileNotFoundError:  # of a process that ended just now
        return False


class Dependencies:
    """Whether Redis and Postgres answer, asked at most once a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._redis = redis.asyncio.Redis.from_url(
            settings.redis_url,
            socket_timeout=settings.redis_timeout_s,
            socket_connect_timeout=settings.redis_timeout_s,
            single_connection_client=False,
            max_connections=2,
        )
        self._lock = asyncio.Lock()
        self._answer: Mapping[str, bool] = {}
        self._asked_s = float("-inf")

    async def check(self) -> Mapping[str, bool]:
        """Ask both, or repeat an answer that is younger than a second."""
        async with self._lock:
            if time.monotonic() - self._asked_s > _CHECK_KEPT_S:
                redis_answers, postgres_answers = await asyncio.gather(self._ask_redis(), self._ask_postgres())
                self._answer = {"redis": redis_answers, "postgres": postgres_answers}
                self._asked_s = time.monotonic()
            return self._answer

    async def close(self) -> None:
        """Drop the connections."""
        await self._redis.aclose()

    async def _ask_redis(self) -> bool:
        try:
            await self._redis.ping()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def _ask_postgres(self) -> bool:
        try:
            async with asyncio.timeout(self._settings.postgres_timeout_s):
                connection = await asyncpg.connect(self._settings.database_url)
                try:
                    await connection.fetchval("SELECT 1")
                finally:
                    await connection.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
            return False
        return True
