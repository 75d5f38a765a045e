"""The composition root of a worker: the only place that joins ports to edges.

Floor: composition. `run_worker` builds the parts from the outside in, serves until SIGTERM, then drains: it stops
accepting, lets running requests finish for a while, settles everything and leaves.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backends.load import LoadSource, MetricsPage
from backends.openai_http import HttpLimits, OpenAIHttpBackend
from backends.protocol import Backend
from backends.replica import Replica
from backends.triton_backend import TritonAddress, TritonBackend
from backends.triton_limits import TritonLimits
from gateway.core.state import BackendSpec
from gateway.dataplane.pipeline import Pipeline, Stages
from gateway.dataplane.route import ReplicaFactory, Router
from gateway.dataplane.server import Connection, Shared
from gateway.dataplane.settle import Settler
from gateway.dataplane.watch import Watch
from gateway.edges.answer_samples import AnswerSamples
from gateway.edges.endpoint_uses import EndpointUses
from gateway.edges.metrics import Metrics
from gateway.edges.platform_door import PlatformDoor
from gateway.edges.recorder import EdgeRecorder
from gateway.edges.request_log import RequestLog
from gateway.edges.state_feed import FeedOptions, StateFeed
from gateway.settings import Settings
from ledger.books.database import Pool, open_pool
from ledger.books.epochs import current_epochs
from ledger.books.partitions import MonthKeeper
from ledger.books.recovery import carry_holds
from ledger.core.money import NANOS_PER_MICRO
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.cover import Cover
from ledger.follow import EpochFollower
from ledger.outbox import SettlementOutbox
from ledger.outbox.books import LedgerBooks
from ledger.outbox.delivery import OnSettled
from ledger.outbox.journal import Journal

log = logging.getLogger("pareta.worker")

READY_FILE_VARIABLE = "PARETA_READY_FILE"
LISTEN_BACKLOG = 4096
HOUSEKEEPING_S = 0.5
ACCEPTED_GRACE_S = 0.25
GC_THRESHOLDS = (20_000, 50, 50)
"""What requests leave behind is freed by its reference counts; a collection every 700 objects finds nothing."""
LEDGER_CONNECTIONS = 4
MOST_FILES = 1 << 20
POOL_CLOSE_S = 2.0
REDELIVER_AFTER_S = 30.0
JOURNAL_WAIT_S = 10.0
"""A predecessor that was killed may take a moment to be gone."""


@dataclass(frozen=True, slots=True)
class Money:
    """What a worker meters with."""

    pool: Pool
    counter: CreditCounter
    cover: Cover
    outbox: SettlementOutbox


OpenMoney = Callable[[Settings, int, Metrics], AbstractAsyncContextManager[Money]]
"""Opens it for a worker: the settings, its slot, and the metrics that are told of charges."""


async def run_worker(settings: Settings, slot: int, open_money: OpenMoney | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Args:
        settings: has ``database_url`` and ``redis_url``.
        slot: this worker's number; its journal is ``<data_dir>/journal/worker-<slot>``.
        open_money: what to meter with. None, for every worker that customers reach: the ledger.

    Raises:
        StateUnavailable, LedgerUnavailable: Postgres can't be reached at the start.
        JournalUnavailable: the journal belongs to a living worker or can't be opened.
    """
    _open_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        worker = await stack.enter_async_context(_joined(settings, slot, open_money or _open_ledger))
        server = await loop.create_server(
            lambda: Connection(worker.shared),
            settings.host,
            settings.port,
            reuse_port=True,
            backlog=LISTEN_BACKLOG,
        )
        # What lives now lives to the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        await worker.refresh_readiness()
        _touch_ready_file()
        log.info("worker %d serves on %s:%d", slot, settings.host, settings.port)
        await stop.wait()
        _remove_ready_file()
        server.close()
        # A connection accepted a moment ago looks idle until its request is read; closed now, it would be a reset.
        await asyncio.sleep(ACCEPTED_GRACE_S)
        await worker.drain()
        log.info("worker %d has drained", slot)


class Worker:
    """The joined parts of one process."""

    def __init__(
        self,
        *,
        settings: Settings,
        feed: StateFeed,
        money: Money,
        router: Router,
        door: PlatformDoor,
        metrics: Metrics,
        request_log: RequestLog,
    ) -> None:
        self._settings = settings
        self._feed = feed
        self._counter = money.counter
        self._outbox = money.outbox
        self._metrics = metrics
        self._request_log = request_log
        self.watch = Watch(
            money.counter,
            partial(carry_holds, money.pool),
            heartbeat_s=settings.hold_heartbeat_s,
            expires_in_s=settings.hold_expiry_s,
        )
        self.uses = EndpointUses(money.pool, self._running_on)
        self.samples = AnswerSamples(door, settings.judge_share)
        self.settler = Settler(money.outbox)
        self.pipeline = Pipeline(
            Stages(
                settings=settings,
                state=feed,
                counter=money.counter,
                cover=money.cover,
                router=router,
                settler=self.settler,
                watch=self.watch,
                recorder=EdgeRecorder(metrics, request_log),
                platform=door,
                uses=self.uses,
                samples=self.samples,
            )
        )
        self.shared = Shared(settings=settings, handler=self.pipeline.serve, loop=asyncio.get_running_loop())

    def _running_on(self) -> set[str]:
        """Endpoints with requests in progress that would else look idle."""
        ids = {relay.exchange.endpoint.id for relay in self.watch.relays if relay.exchange.endpoint is not None}
        # As they are now: that they sleep may be newer than their requests.
        return {found.id for one in ids if (found := self._feed.endpoint(one)) is not None and found.sleeps}

    async def refresh_readiness(self) -> None:
        """Ask whether traffic can be served: fresh state, and a counter that answers."""
        try:
            await self._counter.ping()
            counter_answers = True
        except CounterUnavailable:
            counter_answers = False
        self.pipeline.is_ready = counter_answers and self._feed.fresh and not self.shared.draining

    async def keep_house(self) -> None:
        """Flush the request log, set gauges and refresh readiness, until cancelled."""
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            try:
                self._request_log.flush()
                self._metrics.publish()
                self._metrics.gauges(
                    holds=len(self.watch.relays),
                    connections=len(self.shared.connections),
                    outbox=self._outbox.pending,
                    unbooked=self._outbox.unbooked,
                )
                await self.refresh_readiness()
            except Exception:
                # A house that is kept no more would show the readiness of that moment for ever.
                log.exception("housekeeping failed")

    async def drain(self) -> None:
        """Finish what runs, within the drain timeout; what is left then is ended and costs nothing."""
        shared = self.shared
        shared.draining = True
        self.pipeline.is_ready = False
        for connection in list(shared.connections):
            connection.close_if_idle()
        if shared.tasks:
            await asyncio.wait(shared.tasks, timeout=self._settings.drain_timeout_s)
        self.watch.interrupt_all()
        if shared.tasks:
            await asyncio.wait(shared.tasks, timeout=5)
        for connection in list(shared.connections):
            connection.close_if_idle()
        await self.settler.drain()
        await self._outbox.drain(self._settings.redis_timeout_s * 2)
        self._request_log.flush()
        self._metrics.publish()


@asynccontextmanager
async def _joined(settings: Settings, slot: int, open_money: OpenMoney) -> AsyncIterator[Worker]:
    """Build the parts, and take them apart in reverse order."""
    async with AsyncExitStack() as stack:
        metrics = Metrics()
        money = await stack.enter_async_context(open_money(settings, slot, metrics))
        feed = await StateFeed.start(
            settings.database_url,
            FeedOptions(
                pool_size=settings.postgres_pool_size,
                timeout_s=settings.postgres_timeout_s,
                resync_s=settings.resync_s,
                max_staleness_s=settings.max_staleness_s,
                key_cache_size=settings.key_cache_size,
            ),
        )
        stack.push_async_callback(feed.close)
        router = Router(_replica_factory(settings))
        stack.push_async_callback(router.close)
        door = PlatformDoor(settings.control_file)
        stack.push_async_callback(door.close)
        worker = Worker(
            settings=settings,
            feed=feed,
            money=money,
            router=router,
            door=door,
            metrics=metrics,
            request_log=RequestLog(enabled=settings.log_requests),
        )
        stack.push_async_callback(_stop_task, asyncio.create_task(worker.uses.run(), name="uses of endpoints"))
        stack.push_async_callback(_stop_task, asyncio.create_task(worker.samples.run(), name="samples of answers"))
        feed.on_key_revoked(worker.watch.revoke)
        feed.on_endpoint_changed(lambda endpoint_id: _follow_endpoint(feed, router, endpoint_id))
        for coroutine in (worker.watch.run(worker.shared), worker.keep_house()):
            stack.push_async_callback(_stop_task, asyncio.create_task(coroutine))
        yield worker


@asynccontextmanager
async def _open_ledger(settings: Settings, slot: int, metrics: Metrics) -> AsyncIterator[Money]:
    """A worker's ledger. The first one also takes what workers left behind that are not there any more."""
    async with open_ledger(settings, f"worker-{slot}", metrics.settled) as money:
        if slot == 0:
            # Fewer workers than last time leave journals that nobody else would open.
            await money.outbox.adopt_orphans(settings.journals, from_slot=settings.workers)
        yield money


@asynccontextmanager
async def open_ledger(settings: Settings, journal_name: str, on_settled: OnSettled | None) -> AsyncIterator[Money]:
    """The credit counter in Redis, the books in Postgres, and the journal between them.

    Args:
        journal_name: of this process's journal among those of the data folder.

    Raises:
        LedgerUnavailable: Postgres can't be reached.
        JournalUnavailable: the journal belongs to a living process or can't be opened.
    """
    async with AsyncExitStack() as stack:
        pool = await open_pool(
            settings.database_url,
            size=LEDGER_CONNECTIONS,
            timeout_s=settings.postgres_timeout_s,
            application_name="pareta-worker-ledger",
        )
        stack.push_async_callback(_close_pool, pool)
        counter = await CreditCounter.connect(
            settings.redis_url,
            shards=settings.shards,
            epoch=await current_epochs(pool, settings.shards),
            timeout_s=settings.redis_timeout_s,
            keep_closed_s=settings.keep_closed_s,
        )
        stack.push_async_callback(counter.close)
        cover = Cover(
            pool,
            counter,
            slice_nanos=settings.escrow_slice_micros * NANOS_PER_MICRO,
            timeout_s=settings.postgres_timeout_s,
        )
        journal = await Journal.open(settings.journals / journal_name, wait_s=JOURNAL_WAIT_S)
        outbox = SettlementOutbox(
            journal,
            counter,
            LedgerBooks(pool, MonthKeeper(), counter),
            cover,
            on_settled=on_settled,
            # What Redis lost has to be found before its credit is released.
            redeliver_after_s=min(REDELIVER_AFTER_S, settings.epoch_grace_s / 4),
        )
        stack.push_async_callback(outbox.close)
        await outbox.recover()
        stack.push_async_callback(_stop_task, asyncio.create_task(EpochFollower(pool, counter).run()))
        yield Money(pool, counter, cover, outbox)


def _replica_factory(settings: Settings) -> ReplicaFactory:
    limits = HttpLimits(
        connect_timeout_s=settings.connect_timeout_s,
        max_connections=settings.pool_max_connections,
        max_idle=settings.pool_max_idle,
        idle_s=settings.pool_idle_s,
        max_answer_bytes=settings.max_answer_bytes,
        max_event_bytes=settings.max_event_bytes,
    )

    def make(spec: BackendSpec) -> Replica:
        backend: Backend
        if spec.kind == "triton":
            backend = _triton_backend(spec, settings)
        else:
            backend = OpenAIHttpBackend(
                spec.url, model=spec.model, api_key=spec.api_key, health_path=spec.health_path, limits=limits
            )
        return Replica(
            spec.id,
            backend,
            interval_s=settings.health_interval_s,
            timeout_s=settings.health_timeout_s,
            load=_load_source(spec),
        )

    return make


def _triton_backend(spec: BackendSpec, settings: Settings) -> Backend:
    beside = f"{settings.model_folders}/{spec.model}" if settings.model_folders and ".." not in spec.model else None
    return TritonBackend(
        spec.url,
        model=spec.model,
        context_tokens=spec.context_tokens,
        folders=tuple(folder for folder in (spec.model_folder, beside) if folder is not None),
        limits=TritonLimits(
            connect_timeout_s=settings.connect_timeout_s,
            call_timeout_s=settings.connect_timeout_s,
            idle_s=settings.idle_timeout_s,
            deadline_s=spec.deadline_s,
            max_answer_bytes=settings.max_answer_bytes,
        ),
    )


def _load_source(spec: BackendSpec) -> LoadSource | None:
    if spec.kind == "triton":
        address = TritonAddress.parse(spec.url, model=spec.model)
        return MetricsPage(spec.metrics_url or address.metrics_url, model=address.model)
    return MetricsPage(spec.metrics_url, model=spec.model) if spec.metrics_url is not None else None


def _follow_endpoint(feed: StateFeed, router: Router, endpoint_id: str) -> None:
    # Changed backends are noticed when the endpoint is called next; one that is gone never is.
    if feed.endpoint(endpoint_id) is None:
        router.forget(endpoint_id)


async def _close_pool(pool: Pool) -> None:
    """Close it, but not wait for a Postgres that does not answer."""
    try:
        async with asyncio.timeout(POOL_CLOSE_S):
            await pool.close()
    except TimeoutError:
        pool.terminate()


async def _stop_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _open_many_files() -> None:
    """Use as many open files as this user may: a stream takes two, and usual limits are far below `max_connections`."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if most == resource.RLIM_INFINITY else min(most, MOST_FILES)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def _ready_file() -> Path | None:
    name = os.environ.get(READY_FILE_VARIABLE)
    return Path(name) if name else None


def _touch_ready_file() -> None:
    if (path := _ready_file()) is not None:
        path.touch()


def _remove_ready_file() -> None:
    if (path := _ready_file()) is not None:
        path.unlink(missing_ok=True)
