"""The sums that metrics are made of, as Postgres has them.

Floor: control. Reads what the ledger has summed by hour and by day, and no single request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from gateway.control.metrics.windows import Window, ceil_day, floor_day

if TYPE_CHECKING:
    from gateway.control.database import Connection

TOTAL_MS, FIRST_MS, TOKENS_A_SECOND = 0, 1, 2
"""Measures of the histograms."""


@dataclass(frozen=True, slots=True)
class Sums:
    """What was booked in a time. ``begin`` is its start."""

    begin: datetime
    requests: int
    errors: int
    abandoned: int
    prompt_tokens: int
    completion_tokens: int
    amount_nanos: int
    last_at: datetime


async def sums(conn: Connection, endpoint_id: str, window: Window, *, by: str | None) -> list[Sums]:
    """What was booked, in one row, or by ``hour`` or ``day``, the oldest first; without the empty ones."""
    rows = await conn.fetch(
        "SELECT CASE $4 WHEN 'hour' THEN hour WHEN 'day' THEN date_trunc('day', hour, 'UTC') ELSE $2 END AS begin,"
        " sum(requests)::bigint AS requests, sum(errors)::bigint AS errors, sum(abandoned)::bigint AS abandoned,"
        " sum(prompt_tokens)::bigint AS prompt_tokens, sum(completion_tokens)::bigint AS completion_tokens,"
        " sum(amount_nanos)::bigint AS amount_nanos, max(last_at) AS last_at"
        " FROM ledger.usage_hour WHERE endpoint_id = $1 AND hour >= $2 AND hour <= $3 GROUP BY 1 ORDER BY 1",
        endpoint_id,
        window.begin,
        window.end,
        by or "",
    )
    return [Sums(**dict(row)) for row in rows]


async def histograms(
    conn: Connection, endpoint_id: str, window: Window, *, by: str | None
) -> dict[datetime, dict[int, dict[int, int]]]:
    """Counts by start, measure and bucket."""
    # Whole days are summed already; hours are read where a day is not whole, or where they are asked for.
    first_day, last_day = ceil_day(window.begin), floor_day(window.end)
    if by == "hour" or first_day >= last_day:
        first_day = last_day = window.end + timedelta(hours=1)
    rows = await conn.fetch(
        "SELECT CASE $4 WHEN 'hour' THEN at WHEN 'day' THEN date_trunc('day', at, 'UTC') ELSE $2 END AS begin,"
        " measure, bucket, sum(count)::bigint AS count FROM ("
        "SELECT hour AS at, measure, bucket, count FROM ledger.usage_histogram"
        " WHERE endpoint_id = $1 AND hour >= $2 AND hour <= $3 AND hour < $5"
        " UNION ALL SELECT day, measure, bucket, count FROM ledger.usage_histogram_day"
        " WHERE endpoint_id = $1 AND day >= $5 AND day < $6"
        " UNION ALL SELECT hour, measure, bucket, count FROM ledger.usage_histogram"
        " WHERE endpoint_id = $1 AND hour >= $6 AND hour <= $3) AS counted GROUP BY 1, 2, 3",
        endpoint_id,
        window.begin,
        window.end,
        by or "",
        first_day,
        last_day,
    )
    found: dict[datetime, dict[int, dict[int, int]]] = {}
    for row in rows:
        found.setdefault(row["begin"], {}).setdefault(row["measure"], {})[row["bucket"]] = row["count"]
    return found


async def history(conn: Connection, endpoint_id: str) -> list[tuple[datetime, str]]:
    """Where an endpoint stood, and since when; the oldest first."""
    rows = await conn.fetch(
        "SELECT since, status FROM control.endpoint_history WHERE endpoint_id = $1 ORDER BY since", endpoint_id
    )
    return [(row["since"], row["status"]) for row in rows]


async def outages(conn: Connection, endpoint_id: str, window: Window) -> list[tuple[datetime, datetime]]:
    """Times in which no engine answered, cut to the window."""
    rows = await conn.fetch(
        "SELECT greatest(from_at, $2) AS from_at, least(coalesce(to_at, $3), $3) AS to_at FROM control.endpoint_outage"
        " WHERE endpoint_id = $1 AND from_at < $3 AND coalesce(to_at, $3) > $2 ORDER BY 1",
        endpoint_id,
        window.begin,
        window.end,
    )
    return [(row["from_at"], row["to_at"]) for row in rows]


async def judged(conn: Connection, endpoint_id: str, window: Window) -> list[tuple[datetime, int, float]]:
    """What a judge thought: start of the hour, how many answers, the sum of their scores."""
    rows = await conn.fetch(
        "SELECT hour, judged, score_sum FROM control.judge_window WHERE endpoint_id = $1 AND hour >= $2 AND hour <= $3"
        " ORDER BY hour",
        endpoint_id,
        window.begin,
        window.end,
    )
    return [(row["hour"], row["judged"], row["score_sum"]) for row in rows]


async def rates(conn: Connection, task_id: str | None, model_id: str | None) -> Mapping[str, object] | None:
    """What a request costs here and with the board's frontier model; None for an endpoint without a task."""
    row = await conn.fetchrow(
        "SELECT a.cost_per_request_micros AS own, f.subject AS frontier, f.cost_per_request_micros AS frontier_micros"
        " FROM control.task t LEFT JOIN control.task_alias a ON a.task_id = t.id AND a.model_id = $2"
        " LEFT JOIN LATERAL (SELECT m.subject, m.cost_per_request_micros FROM control.measurement m"
        " JOIN control.frontier_model v ON v.id = m.subject AND v.retired_at IS NULL"
        " WHERE m.task_id = t.id AND m.kind = 'frontier'"
        " ORDER BY m.quality DESC, m.cost_per_request_micros, m.subject LIMIT 1) f ON true WHERE t.id = $1",
        task_id,
        model_id,
    )
    return dict(row) if row is not None else None
