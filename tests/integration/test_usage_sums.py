"""The sums that metrics are read from: whatever the window and the grouping, days and hours tell the same."""

from __future__ import annotations

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

from benchmarks.history import ENDPOINT, fill
from gateway.control.metrics.store import histograms
from gateway.control.metrics.windows import Window, floor_day, floor_hour
from ledger.books.database import open_pool
from ledger.books.ledger import Ledger
from tests.integration.control_tools import migrated_database
from tests.services import PostgresService

EVENTS = 3_000


async def test_days_and_hours_tell_the_same(postgres_service: PostgresService) -> None:
    """Random windows over a month of requests; what is expected is counted from the requests themselves."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    url = migrated_database(postgres_service)
    pool = await open_pool(url, size=2, timeout_s=60)
    try:
        month = (datetime.now(UTC).date().replace(day=1) - timedelta(days=1)).replace(day=1)
        await fill(pool, Ledger(pool), events=EVENTS, months=[month], organizations=3)
        rows = await pool.fetch(
            "SELECT settled_at, ledger.bucket_of(total_ms::double precision) AS bucket FROM ledger.usage_event"
            " WHERE endpoint_id = $1",
            ENDPOINT,
        )
        assert len(rows) > EVENTS / 2
        start = datetime(month.year, month.month, 1, tzinfo=UTC)
        async with pool.acquire() as conn:
            for _ in range(60):
                begin = floor_hour(start + timedelta(hours=dice.randrange(-30, 30 * 24)))
                end = begin + timedelta(minutes=dice.choice((1, 59, 60, 600, 1440, 2880, 12_345, 60_000)))
                by = dice.choice((None, "hour", "day"))
                floor = {"hour": floor_hour, "day": floor_day, None: lambda at, begin=begin: begin}[by]
                wanted: dict[datetime, Counter[int]] = {}
                for row in rows:
                    # Sums are kept by the hour: one that begins within the window is in it whole.
                    if begin <= floor_hour(row["settled_at"]) <= end:
                        wanted.setdefault(floor(row["settled_at"]), Counter())[row["bucket"]] += 1
                found = await histograms(conn, ENDPOINT, Window("x", begin, end), by=by)
                assert {at: Counter(measures[0]) for at, measures in found.items()} == wanted, (begin, end, by)
    finally:
        await pool.close()
        postgres_service.drop_database(url)
