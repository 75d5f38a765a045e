"""What a long history costs: a year of requests, and how long the questions take that people ask of it.

    python -m benchmarks.history [--events 1000000] [--months 12] [--organizations 200] [--audit] [--keep FOLDER]

Starts a Postgres of its own and fills it with generated rows, month by month, whose books balance to the nano: every
usage row has its transfer, every organization paid in what it spent and a rest. Each organization has an endpoint, and
the first one half of all requests. Then each question is asked many times at random places: a receipt, an
organization's credit, a page of its receipts, its statement of one month; and what the metrics of the first endpoint
are made of, in windows of a week and of ninety days. ``--audit`` recomputes everything at the end. Ten million events
need about 9 GB of disk (``--keep`` says where, and keeps them).
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import asyncpg
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from gateway.control.metrics.store import histograms, sums
from gateway.control.metrics.windows import read_window
from gateway.stack.embedded_postgres import EmbeddedPostgres
from ledger.books.database import Pool, open_pool
from ledger.books.ledger import Ledger
from ledger.books.migrate import ledger_migrations, migrate
from ledger.books.partitions import MonthKeeper, months_ahead
from ledger.core.meters import Meter
from ledger.proof.audit import audit
from ledger.proof.statement import statement

ENDPOINT = "ep_000000000000"
"""The one with half of all requests."""
RATES = {Meter.PROMPT: 150_000_000, Meter.COMPLETION: 600_000_000}
PROMPT, COMPLETION = 400, 120
CHARGE_NANOS = PROMPT * 150 + COMPLETION * 600
REST_NANOS = 1_000_000_000
SAMPLES = 300

CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
# The ids of a month: the time of request n of count, spread evenly over the month, and letters that follow from n.
ID = (
    "".join(f"substr('{CROCKFORD}', 1 + ((ms >> {shift}) & 31)::int, 1) || " for shift in range(45, -1, -5))
    + "substr(md5($1 || n::text), 1, 16)"
)
FILL = f"""
WITH request AS MATERIALIZED (
    SELECT {ID} AS ulid, 'org_' || lpad(o::text, 12, '0') AS org_id, 'ep_' || lpad(o::text, 12, '0') AS endpoint_id,
        o, n
    FROM (SELECT n, CASE WHEN n % 2 = 0 THEN 0 ELSE ((n / 2) % $4)::int END AS o,
                 $2::bigint + (n * $5::bigint / $3) AS ms FROM generate_series(1, $3::bigint) AS n) AS timed
),
used AS (
    INSERT INTO ledger.usage_event (hold_id, id_time, revision, kind, org_id, key_id, endpoint_id, price_card_id, route,
        streamed, outcome, status, source, prompt_tokens, completion_tokens, requests, held_nanos, amount_nanos,
        shortfall_nanos, started_at, settled_at, ttft_ms, total_ms, epoch, shard, seq)
    SELECT 'req_' || ulid, ledger.id_time('req_' || ulid), 0, 'settle', org_id, repeat('k', 24), endpoint_id,
        ($6::text[])[1 + o], 'chat', true, 'finished', 200, 'reported', {PROMPT}, {COMPLETION}, 1,
        {2 * CHARGE_NANOS}, {CHARGE_NANOS}, 0, ledger.id_time('req_' || ulid), ledger.id_time('req_' || ulid),
        80 + hashint8(n) % 60, 400 + abs(hashint8(n + 7) % 4000), 1, 0, $7 + n
    FROM request
)
INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id, posted_at)
SELECT 'tx_' || ulid, ledger.id_time('req_' || ulid), 'charge', a.id, r.id, {CHARGE_NANOS}, 'req_' || ulid,
    ledger.id_time('req_' || ulid)
FROM request JOIN ledger.account AS a ON a.org_id = request.org_id AND a.kind = 'escrow'
CROSS JOIN (SELECT id FROM ledger.account WHERE kind = 'revenue' AND org_id IS NULL) AS r
"""


async def fill(pool: Pool, ledger: Ledger, *, events: int, months: list[date], organizations: int) -> None:
    """Fund the organizations, then write the months."""
    orgs = [f"org_{number:012d}" for number in range(organizations)]
    per_month = events // len(months)
    # Of a month's requests, counted from 1, the even ones are of the first organization, the odd ones of all in turn.
    whole, rest = divmod((per_month + 1) // 2, organizations)
    requests = [whole + (number < rest) for number in range(organizations)]
    requests[0] += per_month // 2
    spent = {org: len(months) * count * CHARGE_NANOS for org, count in zip(orgs, requests, strict=True)}
    for org in orgs:
        await ledger.open_accounts(org)
        await ledger.top_up(org, spent[org] + REST_NANOS, "history")
    async with pool.acquire() as conn:
        await MonthKeeper().ensure(conn, months)
        cards = [
            (await ledger.set_price(f"ep_{number:012d}", RATES, effective_from=None)).id
            for number in range(organizations)
        ]
        await _grant_all(conn, spent)
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("writing a history", total=len(months))
            for number, month in enumerate(months):
                first, last = _ms(month), _ms(_next(month))
                await conn.execute(
                    FILL,
                    *(month.isoformat(), first, per_month, organizations, last - first - 1, cards),
                    1 + organizations + number * per_month - 1,
                    timeout=3600,
                )
                progress.advance(task)
        await _spend(conn, spent, seq=organizations + per_month * len(months))
        await conn.execute("ANALYZE", timeout=3600)


async def _grant_all(conn: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], spent: dict[str, int]) -> None:
    """One grant for each organization, with its transfer, as Redis would have confirmed it."""
    await conn.execute("INSERT INTO ledger.epoch (number, reason) VALUES (1, 'history') ON CONFLICT DO NOTHING")
    await conn.execute(
        """WITH g AS (
               INSERT INTO ledger.escrow_grant (id, org_id, epoch, grant_seq, amount_nanos, state, attempted_at,
                                                applied_at, shard, seq)
               SELECT 'grant_' || left(right(t.id, 26), 10) || substr(md5(t.org_id), 1, 16), t.org_id, 1, 1,
                      t.amount_nanos, 'applied', now(), now(), 0, row_number() OVER (ORDER BY t.org_id)
                 FROM ledger.top_up AS t RETURNING *)
           INSERT INTO ledger.transfer (id, id_time, kind, debit_account, credit_account, amount_nanos, event_id)
           SELECT 'tx_' || right(g.id, 26), ledger.id_time(g.id), 'grant', a.id, e.id,
                  g.amount_nanos, g.id
             FROM g JOIN ledger.account AS a ON a.org_id = g.org_id AND a.kind = 'available'
             JOIN ledger.account AS e ON e.org_id = g.org_id AND e.kind = 'escrow'"""
    )


async def _spend(conn: asyncpg.pool.PoolConnectionProxy[asyncpg.Record], spent: dict[str, int], *, seq: int) -> None:
    """Bring balances and checkpoint to where the rows say they are."""
    await conn.executemany(
        "UPDATE ledger.balance SET available_nanos = 0, escrow_nanos = $2 WHERE org_id = $1",
        [(org, REST_NANOS) for org in spent],
    )
    await conn.execute(
        "INSERT INTO ledger.reconcile_checkpoint (shard, epoch, seq, stream_id) VALUES (0, 1, $1, $2)", seq, f"1-{seq}"
    )


async def measure(pool: Pool, ledger: Ledger, months: list[date], organizations: int) -> Table:
    """Ask each question at random places."""
    chosen = random.Random(7)
    ids = [row["hold_id"] for month in months for row in await _some_ids(pool, month)]

    def some_org() -> str:
        return f"org_{chosen.randrange(organizations):012d}"

    async def page() -> None:
        month = chosen.choice(months)
        since = datetime.fromtimestamp(_ms(month) / 1000, UTC)
        assert await ledger.receipts(some_org(), since=since, until=since + timedelta(days=28), limit=100)

    async def month() -> None:
        await statement(pool, some_org(), chosen.choice(months))

    async def metrics(text: str, by: str | None) -> int:
        """All that is read for an endpoint's performance, as if it were the end of the last month."""
        window = read_window(text, datetime.fromtimestamp(_ms(_next(months[-1])) / 1000, UTC))
        async with pool.acquire() as conn:
            rows = await sums(conn, ENDPOINT, window, by=by)
            counted = await histograms(conn, ENDPOINT, window, by=by)
        assert {row.begin for row in rows} == set(counted)
        return sum(row.requests for row in rows)

    table = Table("question", "p50 ms", "p99 ms", title="asked at random places, over one connection")
    questions: list[tuple[str, Callable[[], Awaitable[object]], int]] = [
        ("receipt", lambda: ledger.receipt(chosen.choice(ids)), SAMPLES),
        ("org show (credit)", lambda: ledger.credit(some_org()), SAMPLES),
        ("100 receipts of an organization", page, SAMPLES // 3),
        ("statement of a month", month, SAMPLES // 10),
        ("metrics of a week", lambda: metrics("7d", None), SAMPLES // 3),
        ("metrics of a week, by the hour", lambda: metrics("7d", "hour"), SAMPLES // 3),
        ("metrics of 90 days", lambda: metrics("90d", None), SAMPLES // 10),
        ("metrics of 90 days, by the day", lambda: metrics("90d", "day"), SAMPLES // 10),
    ]
    for name, ask, times in questions:
        await ask()
        took_ms = []
        for _ in range(times):
            begin_s = time.perf_counter()
            assert await ask() is not None or ask in (page, month)
            took_ms.append((time.perf_counter() - begin_s) * 1000)
        cuts = statistics.quantiles(took_ms, n=100)
        table.add_row(name, f"{cuts[49]:.2f}", f"{cuts[98]:.2f}")
    return table


async def _some_ids(pool: Pool, month: date) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await pool.fetch(
        f"SELECT hold_id FROM ledger.usage_event_{month:%Y_%m} TABLESAMPLE SYSTEM (1) LIMIT 200"
    )
    return rows


def _ms(day: date) -> int:
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1000


def _next(month: date) -> date:
    return months_ahead(datetime(month.year, month.month, 1, tzinfo=UTC), 1)[1]


def _year(months: int) -> list[date]:
    """The months before this one, oldest first."""
    found, first = [], datetime.now(UTC).date().replace(day=1)
    for _ in range(months):
        first = (first - timedelta(days=1)).replace(day=1)
        found.append(first)
    return found[::-1]


async def run(events: int, months: int, organizations: int, *, with_audit: bool, folder: Path) -> None:
    """Fill a database and ask it."""
    postgres = EmbeddedPostgres(folder / "postgres", database="history", durable=False)
    await postgres.start()
    try:
        conn = await asyncpg.connect(postgres.url)
        await migrate(conn, ledger_migrations(), namespace="ledger")
        await conn.close()
        pool = await open_pool(postgres.url, size=4, timeout_s=600)
        ledger, span = Ledger(pool), _year(months)
        begin_s = time.perf_counter()
        await fill(pool, ledger, events=events, months=span, organizations=organizations)
        rows = await pool.fetchval("SELECT count(*) FROM ledger.usage_event", timeout=600)
        size = await pool.fetchval("SELECT pg_database_size(current_database())")
        print(
            f"CPython {platform.python_version()}, {platform.machine()}: {rows:,} events of {organizations} "
            f"organizations in {months} months, {size / 1e9:.1f} GB, written in {time.perf_counter() - begin_s:.0f} s"
        )
        Console().print(await measure(pool, ledger, span, organizations))
        if with_audit:
            begin_s = time.perf_counter()
            report = await audit(pool, None)
            assert report.clean, report.differences[:5]
            print(f"audit of {report.transfers:,} transfers in {time.perf_counter() - begin_s:.0f} s: no difference")
        await pool.close()
    finally:
        await postgres.stop()


def main() -> None:
    """Read the flags and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--months", type=int, default=12)
    parser.add_argument("--organizations", type=int, default=200)
    parser.add_argument("--audit", action="store_true", help="recompute everything at the end")
    parser.add_argument("--keep", type=Path, default=None, metavar="FOLDER", help="where to write it; it is kept")
    flags = parser.parse_args()
    folder = flags.keep or Path(tempfile.mkdtemp(prefix="pareta-history-"))
    try:
        asyncio.run(run(flags.events, flags.months, flags.organizations, with_audit=flags.audit, folder=folder))
    finally:
        if flags.keep is None:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
