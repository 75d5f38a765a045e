"""The reconciler as a process: ``python -m gateway reconcile``.

Floor: stack. It gives ``ledger.upkeep.reconcile`` its connections, publishes what it knows as metrics, and on SIGTERM
keeps booking until the streams are empty, so that a clean shutdown leaves nothing for the next start.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from prometheus_client import CollectorRegistry, Counter, Gauge

from gateway.settings import Settings
from gateway.stack.stopping import StopRequest
from gateway.stack.supervisor import RECONCILE_QUIET_S
from ledger.books.database import Pool, open_pool
from ledger.books.epochs import current_epochs
from ledger.core.money import NANOS_PER_MICRO
from ledger.counter import CounterUnavailable, CreditCounter
from ledger.errors import LedgerUnavailable
from ledger.upkeep.escrow import EscrowPolicy
from ledger.upkeep.reconcile import Reconciler, ShardStatus

log = logging.getLogger("pareta.reconciler")

_OWN_CONNECTIONS = 2
_PUBLISH_EVERY_S = 0.5
_RETRY_S = 1.0


async def run_reconciler(settings: Settings) -> None:
    """Book events until SIGTERM or SIGINT, then book what is left (for a bounded time) and return.

    Args:
        settings: has ``database_url`` and ``redis_url``.

    Raises:
        LedgerNotMigrated, LedgerRefused: the database is not one of ours.
    """
    stop = StopRequest()
    stop.listen()
    pool = await _patiently_open(settings, stop)
    if pool is None:
        return
    try:
        counter = await CreditCounter.connect(
            settings.redis_url,
            shards=settings.shards,
            epoch=await current_epochs(pool, settings.shards),
            timeout_s=settings.redis_timeout_s,
            keep_closed_s=settings.keep_closed_s,
        )
        try:
            policy = EscrowPolicy(
                slice_nanos=settings.escrow_slice_micros * NANOS_PER_MICRO,
                horizon_s=settings.escrow_horizon_s,
                idle_s=settings.escrow_idle_s,
            )
            await _run(Reconciler(pool, counter, policy=policy, grace_s=settings.epoch_grace_s), counter, stop)
        finally:
            await counter.close()
    finally:
        await pool.close()


async def _run(reconciler: Reconciler, counter: CreditCounter, stop: StopRequest) -> None:
    end = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(reconciler.run(end))
        publishing = group.create_task(_Gauges().publish(reconciler))
        await stop.wait()
        await stop.hurried(_quiet(reconciler, counter), RECONCILE_QUIET_S)
        end.set()
        publishing.cancel()


async def _patiently_open(settings: Settings, stop: StopRequest) -> Pool | None:
    """Connect, waiting for a Postgres that is away; ``None`` when asked to stop before."""
    said = ""
    while not stop.asked:
        try:
            return await open_pool(
                settings.database_url,
                size=settings.shards + _OWN_CONNECTIONS,
                timeout_s=settings.postgres_timeout_s,
                application_name="pareta-reconciler",
            )
        except LedgerUnavailable as error:
            if str(error) != said:
                said = str(error)
                log.warning("%s Trying again every %g s.", said, _RETRY_S)
            await stop.hurried(stop.wait(), _RETRY_S)
    return None


async def _quiet(reconciler: Reconciler, counter: CreditCounter) -> None:
    """Until nothing waits in Redis, or another process books it."""
    while reconciler.leading:
        with contextlib.suppress(CounterUnavailable):
            if all([await _all_booked(status, counter, shard) for shard, status in enumerate(reconciler.shards)]):
                return
        await asyncio.sleep(0.05)


async def _all_booked(status: ShardStatus, counter: CreditCounter, shard: int) -> bool:
    meta = await counter.meta(shard)
    if not status.leading or meta is None or not meta.seq:
        return True
    return (meta.epoch, meta.seq) == (status.booked_epoch, status.booked_seq)


class _Gauges:
    """What the reconciler tells prometheus. Only the live process counts, hence the mode."""

    def __init__(self) -> None:
        registry = CollectorRegistry()

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode="livemostrecent")

        self._lag_events = gauge("pareta_reconcile_lag_events", "Settled events that are not in Postgres yet.")
        self._lag_s = gauge("pareta_reconcile_lag_seconds", "Age of the last booked event while others wait.")
        self._drift = gauge("pareta_ledger_drift_nanos", "Difference of Redis and Postgres in quiet moments, nano-USD.")
        self._leading = gauge("pareta_reconcile_leading", "1 while this installation books events, 0 when none does.")
        self._gaps = gauge("pareta_grant_gaps", "Organizations whose earlier grants Redis has lost.")
        self._booked = Counter("pareta_reconcile_booked_events", "Events booked in Postgres.", registry=registry)
        self._anomalies = Counter(
            "pareta_reconcile_anomalies", "Events that have no place in the books.", registry=registry
        )
        self._reaped = Counter("pareta_reaped_holds", "Holds that nobody renewed and that expired.", registry=registry)

        self._renewed = Counter(
            "pareta_epochs_opened", "Times that Redis had lost something and was started over.", registry=registry
        )

    async def publish(self, reconciler: Reconciler) -> None:
        """Copy the reconciler's numbers, and log its trouble, until cancelled."""
        booked = anomalies = reaped = renewed = 0
        said = ""
        while True:
            self._lag_events.set(reconciler.lag_events)
            self._lag_s.set(reconciler.lag_s)
            chores = reconciler.chores
            self._drift.set(chores.drift_nanos)
            self._leading.set(reconciler.leading)
            self._gaps.set(len(chores.grant_gaps))
            now_booked = sum(shard.booked_events for shard in reconciler.shards)
            now_anomalies = sum(shard.anomalies for shard in reconciler.shards)
            self._booked.inc(now_booked - booked)
            self._anomalies.inc(now_anomalies - anomalies)
            self._reaped.inc(chores.reaped_holds - reaped)
            self._renewed.inc(reconciler.renewals - renewed)
            booked, anomalies = now_booked, now_anomalies
            reaped, renewed = chores.reaped_holds, reconciler.renewals
            if reconciler.last_error != said:
                said = reconciler.last_error
                log.log(*((logging.WARNING, said) if said else (logging.INFO, "all is well again")))
            await asyncio.sleep(_PUBLISH_EVERY_S)
