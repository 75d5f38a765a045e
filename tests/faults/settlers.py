"""Settle one hold again and again, from a process of its own.

    python -m tests.faults.settlers REDIS_URL EPOCHS ORG HOLD AMOUNT COUNT INFO

Prints how often the counter gave which verdict, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from ledger.counter import CounterUnavailable, CreditCounter, Settled, Settlement

AT_ONCE = 50


async def main(redis_url: str, epochs: str, org_id: str, hold_id: str, amount: str, count: str, info: str) -> None:
    of_shards = [int(epoch) for epoch in epochs.split(",")]
    counter = await CreditCounter.connect(redis_url, shards=len(of_shards), epoch=of_shards, timeout_s=5.0)
    epoch = of_shards[counter.shard_of(org_id)]
    settlement = Settlement(hold_id, org_id, int(amount), info=info.encode(), epoch=epoch)
    verdicts: Counter[str] = Counter()

    async def settle() -> None:
        try:
            answer = await counter.settle(settlement)
        except CounterUnavailable as error:
            verdicts[f"unavailable {error}"] += 1
            return
        verdicts[answer.verdict if isinstance(answer, Settled) else "unknown"] += 1

    try:
        for _ in range(int(count) // AT_ONCE):
            await asyncio.gather(*(settle() for _ in range(AT_ONCE)))
    finally:
        await counter.close()
    print(json.dumps(verdicts), flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
