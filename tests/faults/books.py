"""The books as they stand, read with SQL of this suite's own; nothing here knows how the product books or audits."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import asyncpg
import redis.asyncio

from tests.faults.findings import Findings

METERS = ("prompt", "cached_prompt", "completion", "reasoning", "request")
_COLUMNS = {
    "prompt": "prompt_tokens",
    "cached_prompt": "cached_prompt_tokens",
    "completion": "completion_tokens",
    "reasoning": "reasoning_tokens",
    "request": "requests",
}
_ACCOUNT = "pareta:{%d}:acct:"


@dataclass(frozen=True, slots=True)
class Booked:
    """What became of one hold: its first event and, of a reaped one, the correction that followed."""

    hold_id: str
    org_id: str
    endpoint_id: str | None
    card_id: str | None
    kinds: tuple[str, ...]
    outcome: str | None
    source: str | None
    meters: dict[str, int]
    charged_nanos: int
    shortfall_nanos: int
    recovered: bool
    epoch: int
    started_ms: float | None

    @property
    def is_late(self) -> bool:
        return len(self.kinds) > 1


async def read_booked(conn: asyncpg.Connection, known: set[str]) -> dict[str, Booked]:
    """Every hold in the books that is not known yet."""
    found: dict[str, list[asyncpg.Record]] = {}
    async with conn.transaction():
        async for row in conn.cursor("SELECT * FROM ledger.usage_event", prefetch=2000):
            if row["hold_id"] not in known:
                found.setdefault(row["hold_id"], []).append(row)
    return {hold_id: _booked(sorted(rows, key=lambda row: row["revision"])) for hold_id, rows in found.items()}


def _booked(rows: list[asyncpg.Record]) -> Booked:
    first, last = rows[0], rows[-1]
    started = last["started_at"] or first["started_at"]
    return Booked(
        hold_id=first["hold_id"],
        org_id=first["org_id"],
        endpoint_id=last["endpoint_id"] or first["endpoint_id"],
        card_id=last["price_card_id"] or first["price_card_id"],
        kinds=tuple(row["kind"] for row in rows),
        outcome=last["outcome"],
        source=last["source"],
        meters={meter: last[column] for meter, column in _COLUMNS.items() if last[column]},
        charged_nanos=sum(row["amount_nanos"] for row in rows),
        shortfall_nanos=last["shortfall_nanos"],
        recovered=any(row["recovered"] for row in rows),
        epoch=first["epoch"],
        started_ms=started.timestamp() * 1000 if started is not None else None,
    )


@dataclass(frozen=True, slots=True)
class Money:
    """An organization's money in Postgres, nano-USD."""

    paid: int
    available: int
    escrow: int
    frozen: int
    charged: int

    @property
    def left(self) -> int:
        return self.available + self.escrow + self.frozen


async def read_money(conn: asyncpg.Connection) -> dict[str, Money]:
    """Of every organization."""
    rows = await conn.fetch(
        """WITH paid AS (SELECT org_id, sum(amount_nanos)::bigint AS nanos FROM ledger.top_up GROUP BY org_id),
        charged AS (SELECT org_id, sum(amount_nanos)::bigint AS nanos FROM ledger.usage_event GROUP BY org_id)
        SELECT b.org_id, b.available_nanos, b.escrow_nanos, b.frozen_nanos, coalesce(p.nanos, 0) AS paid,
               coalesce(c.nanos, 0) AS charged
          FROM ledger.balance b LEFT JOIN paid p USING (org_id) LEFT JOIN charged c USING (org_id)"""
    )
    return {
        row["org_id"]: Money(
            row["paid"], row["available_nanos"], row["escrow_nanos"], row["frozen_nanos"], row["charged"]
        )
        for row in rows
    }


CHECKS = {
    "I1 nothing is negative": """
        SELECT org_id AS subject, available_nanos || ' ' || escrow_nanos || ' ' || frozen_nanos AS found
          FROM ledger.balance WHERE least(available_nanos, escrow_nanos, frozen_nanos) < 0""",
    "I3 each balance is the sum of its transfers": """
        WITH side AS (
            SELECT debit_account AS account, -sum(amount_nanos) AS nanos FROM ledger.transfer GROUP BY 1
            UNION ALL SELECT credit_account, sum(amount_nanos) FROM ledger.transfer GROUP BY 1),
        moved AS (SELECT account, sum(nanos) AS nanos FROM side GROUP BY account)
        SELECT a.org_id || ' ' || a.kind AS subject, coalesce(m.nanos, 0) || ' in transfers' AS found
          FROM ledger.account a
          JOIN ledger.balance b ON b.org_id = a.org_id
          LEFT JOIN moved m ON m.account = a.id
         WHERE coalesce(m.nanos, 0) <> CASE a.kind WHEN 'available' THEN b.available_nanos
                                                   WHEN 'escrow' THEN b.escrow_nanos ELSE b.frozen_nanos END
        UNION ALL
        SELECT 'everyone', 'debits and credits do not cancel: ' || sum(nanos) FROM side HAVING sum(nanos) <> 0""",
    "I4 a hold is charged once": """
        SELECT event_id AS subject, count(*) || ' charges' AS found FROM ledger.transfer
         WHERE kind = 'charge' GROUP BY event_id HAVING count(*) > 1
        UNION ALL
        SELECT hold_id, count(*) || ' events of revision ' || revision FROM ledger.usage_event
         GROUP BY hold_id, revision HAVING count(*) > 1
        UNION ALL
        SELECT u.hold_id, 'usage ' || u.amount_nanos || ', transfers ' || coalesce(t.nanos, 0)
          FROM (SELECT hold_id, sum(amount_nanos) AS amount_nanos FROM ledger.usage_event GROUP BY hold_id) u
          FULL JOIN (
                SELECT event_id, sum(CASE kind WHEN 'late_refund' THEN -amount_nanos ELSE amount_nanos END) AS nanos
                  FROM ledger.transfer WHERE kind IN ('charge', 'late_charge', 'late_refund') GROUP BY event_id) t
            ON t.event_id = u.hold_id
         WHERE coalesce(u.amount_nanos, 0) <> coalesce(t.nanos, 0)""",
    "I5 events are numbered without gap": """
        WITH numbered AS (
            SELECT shard, epoch, seq FROM ledger.usage_event WHERE NOT recovered
            UNION ALL SELECT shard, epoch, seq FROM ledger.escrow_grant WHERE seq IS NOT NULL
            UNION ALL SELECT shard, epoch, seq FROM ledger.escrow_return
            UNION ALL SELECT shard, epoch, seq FROM ledger.anomaly WHERE seq IS NOT NULL)
        SELECT 'shard ' || shard || ' epoch ' || epoch AS subject,
               count(*) || ' events, ' || count(DISTINCT seq) || ' numbers up to ' || max(seq) AS found
          FROM numbered GROUP BY shard, epoch
        HAVING count(*) <> max(seq) OR count(DISTINCT seq) <> max(seq) OR min(seq) <> 1""",
    "nothing was set aside": """
        SELECT kind || ' at ' || stream_id AS subject, detail::text AS found FROM ledger.anomaly
         WHERE resolved_at IS NULL""",
    "nothing is carried or frozen any more": """
        SELECT hold_id AS subject, 'carried since ' || carried_at AS found FROM ledger.carried_hold
        UNION ALL SELECT org_id, frozen_nanos || ' frozen' FROM ledger.balance WHERE frozen_nanos > 0""",
}


async def check_books(conn: asyncpg.Connection, findings: Findings) -> None:
    """The invariants that Postgres alone can show."""
    for promise, sql in CHECKS.items():
        for row in await conn.fetch(sql):
            kind = "twice" if promise.startswith("I4") else "books"
            findings.wrong(kind, f"{promise}: {row['subject']}", row["found"] or "")
        findings.counts["book checks"] += 1


async def check_redis(conn: asyncpg.Connection, redis_url: str, findings: Findings, *, shards: int = 1) -> None:
    """I2, I8, I9: the accounts in Redis add up, agree with the books, and no hold is left."""
    client = redis.asyncio.Redis.from_url(redis_url, decode_responses=True)
    try:
        for shard in range(shards):
            await _check_shard(conn, client, shard, shards, findings)
    finally:
        await client.aclose()


async def _check_shard(
    conn: asyncpg.Connection, client: redis.asyncio.Redis, shard: int, shards: int, findings: Findings
) -> None:
    prefix = "pareta:{%d}:" % shard  # noqa: UP031 - braces are Redis's own here
    epoch = int(await client.hget(prefix + "meta", "epoch") or 0)
    if held := await client.zcard(prefix + "expiry"):
        names = await client.zrange(prefix + "expiry", 0, 5, withscores=True)
        findings.wrong("books", f"I9 {held} holds are open in Redis", str(names))
    booked = await conn.fetch(
        """SELECT org_id,
                  (SELECT coalesce(sum(amount_nanos), 0) FROM ledger.usage_event u
                    WHERE u.org_id = b.org_id AND epoch = $1 AND NOT recovered)::bigint
                + (SELECT coalesce(sum(amount_nanos), 0) FROM ledger.escrow_return r
                    WHERE r.org_id = b.org_id AND epoch = $1 AND hold_id IS NOT NULL)::bigint AS spent,
                  (SELECT coalesce(sum(amount_nanos), 0) FROM ledger.escrow_return r
                    WHERE r.org_id = b.org_id AND epoch = $1 AND hold_id IS NULL)::bigint AS returned,
                  (SELECT coalesce(sum(amount_nanos), 0) FROM ledger.escrow_grant g
                    WHERE g.org_id = b.org_id AND epoch = $1 AND state = 'applied')::bigint AS granted,
                  escrow_nanos
             FROM ledger.balance b""",
        epoch,
    )
    for row in booked:
        if zlib.crc32(row["org_id"].encode()) % shards != shard:
            continue
        account = await client.hgetall(_ACCOUNT % shard + row["org_id"])
        got = {name: int(account.get(name, 0)) for name in ("available", "held", "spent", "returned", "granted")}
        findings.counts["accounts compared"] += 1
        if got["granted"] != got["available"] + got["held"] + got["spent"] + got["returned"] or min(got.values()) < 0:
            findings.wrong("books", f"I2 {row['org_id']}: granted = available + held + spent + returned", str(got))
        expected = {name: row[name] for name in ("spent", "returned", "granted")} | {"available": row["escrow_nanos"]}
        if any(got[name] != value for name, value in expected.items()):
            findings.wrong("books", f"I8 {row['org_id']} in epoch {epoch}", f"Redis {got}, books {expected}")
