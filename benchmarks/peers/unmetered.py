"""A worker that meters nothing, to show what metering costs: ``python -m benchmarks.peers.unmetered``.

Floor: benchmarks, which no package of the gateway imports. There is no setting for this and no command of the gateway
comes here; the worker is composed with a counter that says yes and an outbox that forgets. Keys are still checked,
endpoints, prices and bounds still apply, the request log is still written: what is left out is the hold, the
settlement, the journal and the event. Nothing that it serves is paid for, so it listens on loopback only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvloop

from gateway import app
from gateway import settings as gateway_settings
from gateway.edges.metrics import Metrics
from gateway.settings import Settings
from ledger.books.database import open_pool
from ledger.core.pricing import hold_nanos
from ledger.counter import Admission, Beat, CreditCounter, Extended, Held, Recalled, Settlement
from ledger.cover import Cover
from ledger.outbox import SettlementOutbox
from ledger.outbox.values import OutboxCounts

LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
NOWHERE = "redis://127.0.0.1:1/0"
"""A counter connects at its first operation, and this one has none."""


class WillingCounter(CreditCounter):
    """Grants every hold in full, from memory of nothing. A subclass, so that the types say when the ports change."""

    def __init__(self) -> None:
        super().__init__(NOWHERE, shards=1, epoch=1, timeout_s=1.0, keep_closed_s=60.0)

    async def admit(self, admission: Admission) -> Held:
        """Held, always."""
        return Held(hold_nanos(admission.quote, admission.tokens_wanted), admission.tokens_wanted, (), 1)

    async def recall(self, org_id: str, claim: str, fingerprint: str) -> Recalled | None:
        """Nothing is remembered."""
        return None

    async def heartbeat(self, beats: Sequence[Beat]) -> frozenset[str]:
        """Every hold lives."""
        return frozenset()

    async def extend(self, hold_id: str, org_id: str, *, total_nanos: int) -> Extended:
        """As much as is wanted."""
        return Extended(total_nanos)

    async def ping(self) -> None:
        """There is nothing that could be away."""


class ForgetfulOutbox(SettlementOutbox):
    """Takes settlements and drops them."""

    def __init__(self, metrics: Metrics) -> None:
        self.counts = OutboxCounts()
        self.on_settled = metrics.settled

    @property
    def pending(self) -> int:
        """None."""
        return 0

    @property
    def unbooked(self) -> int:
        """None."""
        return 0

    async def record(self, settlement: Settlement) -> None:
        """Count it: the metrics of a worker that serves for money are kept as well."""
        self.counts.recorded += 1
        if self.on_settled is not None:
            self.on_settled(settlement.amount_nanos, 0)

    def post(self, settlement: Settlement) -> asyncio.Future[None]:
        """The same, as a future that is done."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        self.counts.recorded += 1
        if self.on_settled is not None:
            self.on_settled(settlement.amount_nanos, 0)
        return done

    async def written(self) -> None:
        """Nothing is."""

    async def drain(self, deadline_s: float) -> int:
        """There is nothing to wait for."""
        return 0

    async def close(self) -> None:
        """There is nothing to close."""


@asynccontextmanager
async def open_nothing(settings: Settings, slot: int, metrics: Metrics) -> AsyncIterator[app.Money]:
    """What `gateway.app` meters with, without any of it."""
    pool = await open_pool(
        settings.database_url, size=1, timeout_s=settings.postgres_timeout_s, application_name="pareta-unmetered"
    )
    try:
        counter = WillingCounter()
        cover = Cover(pool, counter, slice_nanos=1, timeout_s=settings.postgres_timeout_s)
        yield app.Money(pool, counter, cover, ForgetfulOutbox(metrics))
    finally:
        await pool.close()


def main() -> None:
    """Serve until SIGTERM, with the settings that the environment has for a worker."""
    settings = gateway_settings.load()
    if settings.host not in LOOPBACK:
        sys.exit("A worker that meters nothing serves on loopback only.")
    print("This worker meters nothing and is for benchmarks only.", file=sys.stderr)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(app.run_worker(settings, 0, open_nothing))


if __name__ == "__main__":
    main()
