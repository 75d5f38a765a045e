"""A reconciler in a process of its own, which a test may kill or pause, also at one exact step.

    python -m tests.integration.ledger_process DATABASE_URL REDIS_URL [STEP [COUNT]]

With STEP it kills itself (SIGKILL) right before that step, the COUNT-th time. Prints a line when it leads.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from ledger.books import batches, terms
from ledger.books.batches import BatchWriter
from ledger.books.database import open_pool
from ledger.counter import CreditCounter
from ledger.upkeep.reconcile import Reconciler, ShardReconciler

STEPS: dict[str, tuple[Any, str, bool]] = {
    # step: class or module, what it calls, whether to die after it instead of before
    "staging": (BatchWriter, "_transaction", False),
    "locking": (batches, "lock_checkpoint", False),
    "inserting": (BatchWriter, "_insert", False),
    "moving the checkpoint": (BatchWriter, "_move_checkpoint", False),
    "committing": (BatchWriter, "_move_checkpoint", True),
    "trimming": (ShardReconciler, "_trim", False),
    "reading on": (ShardReconciler, "_trim", True),
}


def die_at(step: str, count: int) -> None:
    owner, name, after = STEPS[step]
    method: Callable[..., Any] = getattr(owner, name)
    calls = 0

    async def deadly(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = await method(*args)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    setattr(owner, name, deadly)


async def main(database_url: str, redis_url: str) -> None:
    pool = await open_pool(database_url, size=4, timeout_s=20)
    counter = await CreditCounter.connect(redis_url, epoch=1, timeout_s=5)
    reconciler = Reconciler(pool, counter, batch_events=20)

    async def say_when_leading() -> None:
        while not reconciler.leading:
            await asyncio.sleep(0.01)
        print("leading", flush=True)

    await asyncio.gather(reconciler.run(asyncio.Event()), say_when_leading())


if __name__ == "__main__":
    if len(sys.argv) > 3:
        die_at(sys.argv[3], int(sys.argv[4]) if len(sys.argv) > 4 else 1)
    terms.LEASE_S = float(os.environ.get("TEST_LEASE_S", terms.LEASE_S))
    asyncio.run(main(*sys.argv[1:3]))
