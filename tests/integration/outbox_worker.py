"""A worker that settles without pause, in a process of its own, and may kill itself at one exact step.

    python -m tests.integration.outbox_worker DATABASE_URL REDIS_URL CARD FOLDER TOLD [STEP COUNT]

CARD is the price card that its requests name. FOLDER is its journal. Each line of the file TOLD is a promise: a hold,
and the amount that ``record`` took for it.
With STEP it kills itself (SIGKILL) at that step, the COUNT-th time. Prints a line when it begins.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger.books.database import open_pool
from ledger.books.epochs import current_epochs
from ledger.books.partitions import MonthKeeper
from ledger.core.meters import Meter
from ledger.core.pricing import PriceCard, Quote, charge_nanos
from ledger.counter import Admission, CounterUnavailable, CreditCounter, Held, Settlement
from ledger.outbox import SettlementOutbox, segment_files
from ledger.outbox.books import LedgerBooks
from ledger.outbox.journal import Journal
from tests.integration.ledger_world import ENDPOINT, ORG, RATES, new_request_id

STEPS: dict[str, tuple[Any, str, bool]] = {
    # step: owner, function, whether to die after it instead of before
    "writing": (segment_files, "put", False),
    "written": (segment_files, "put", True),
    "delivering": (CreditCounter, "close_holds", False),
    "delivered": (CreditCounter, "close_holds", True),
    "asking": (LedgerBooks, "booked", False),
    "booked": (LedgerBooks, "booked", True),
    "confirming": (Journal, "confirm", False),
    "confirmed": (Journal, "confirm", True),
    "recovering": (LedgerBooks, "recover", False),
    "recovered": (LedgerBooks, "recover", True),
    "marking": (segment_files, "put_marks", False),
    "discarding": (segment_files, "discard", False),
    "discarded": (segment_files, "discard", True),
}


def die_at(step: str, count: int) -> None:
    owner, name, after = STEPS[step]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def reach(*, behind: bool) -> None:
        nonlocal calls
        calls += not behind
        if calls == count and behind == after:
            os.kill(os.getpid(), signal.SIGKILL)

    async def deadly(*args: Any) -> Any:
        reach(behind=False)
        answer = await function(*args)
        reach(behind=True)
        return answer

    def deadly_at_once(*args: Any) -> Any:
        reach(behind=False)
        answer = function(*args)
        reach(behind=True)
        return answer

    setattr(owner, name, deadly if inspect.iscoroutinefunction(function) else deadly_at_once)


async def main(database_url: str, redis_url: str, card: str, folder: str, told_path: str) -> None:
    pool = await open_pool(database_url, size=2, timeout_s=20)
    counter = await CreditCounter.connect(redis_url, epoch=await current_epochs(pool, 1), timeout_s=2)
    journal = await Journal.open(Path(folder), wait_s=5, segment_bytes=8_000)
    books = LedgerBooks(pool, MonthKeeper(), counter)
    outbox = SettlementOutbox(journal, counter, books, ask_every_s=0.05, redeliver_after_s=0.3)
    await outbox.recover()
    # Without traffic confirmations are written by themselves.
    quiet_now_and_then = "marking" in sys.argv
    told = os.open(told_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def client() -> None:
        while True:
            if quiet_now_and_then and time.monotonic() % 3 > 1.5:
                await asyncio.sleep(0.05)
                continue
            hold_id, meters = new_request_id(), {Meter.COMPLETION: random.randrange(1, 100)}
            known = random.random() < 0.75  # every fourth hold is one that Redis does not have
            if known and random.random() < 0.1:
                meters = {}
            amount = charge_nanos(PriceCard(card, ENDPOINT, RATES, 0, None), meters)
            info = json.dumps({"card": card, "endpoint": ENDPOINT, "outcome": "finished", "meters": meters}).encode()
            if known:
                try:
                    held = await counter.admit(Admission(hold_id, ORG, "f", Quote(100_000, 0), 0, 600.0, info=info))
                except CounterUnavailable:
                    await asyncio.sleep(0.02)
                    continue
                assert isinstance(held, Held)
            await outbox.record(Settlement(hold_id, ORG, amount, info=info, epoch=1))
            os.write(told, f"{hold_id} {amount}\n".encode())
            await asyncio.sleep(0.01)

    print("ready", flush=True)
    await asyncio.gather(*(client() for _ in range(8)))


if __name__ == "__main__":
    if len(sys.argv) > 6:
        die_at(sys.argv[6], int(sys.argv[7]))
    asyncio.run(main(*sys.argv[1:6]))
