"""The five dimensions of an endpoint's metrics: read-only, free, for every endpoint in every state.

Floor: control. Contract: section 2.3.7. Numbers come from what was booked; where nothing was, counts are zero and
measures are null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.control.api.caller import Call, Handler, answer
from gateway.control.deploys import store as deploys
from gateway.control.deploys.store import Deployed
from gateway.control.metrics import store
from gateway.control.metrics.store import FIRST_MS, TOKENS_A_SECOND, TOTAL_MS, Sums
from gateway.control.metrics.windows import DEFAULT, Window, WindowInvalid, live_seconds, quantile, read_window
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.state import EndpointStatus
from ledger.core.money import NANOS_PER_MICRO

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store

DIMENSIONS: Final = ("performance", "uptime", "cost", "quality", "activity")
_BY: Final = ("hour", "day")


class Metrics:
    """The handlers."""

    def __init__(self, database: Store) -> None:
        self._database = database
        self._read = {
            "performance": _performance,
            "uptime": _uptime,
            "cost": _cost,
            "quality": _quality,
            "activity": _activity,
        }

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {("GET", f"/v1/endpoints/{{endpoint_id}}/{name}"): self._handler(name) for name in DIMENSIONS}

    def _handler(self, dimension: str) -> Handler:
        async def handle(call: Call) -> web.StreamResponse:
            async with self._database.connection() as conn:
                endpoint = await deploys.find(conn, call.org_id, call.ids["endpoint_id"])
                if endpoint is None:
                    raise Refused(errors.endpoint_not_found(call.ids["endpoint_id"]))
                window, by = _asked(call)
                said = await self._read[dimension](conn, endpoint, window, by)
            head = {
                "endpoint_id": endpoint.id,
                "dimension": dimension,
                "window": window.text,
                "from": _seconds(window.begin),
                "to": _seconds(window.end),
            }
            return answer({**head, **said})

        return handle


def _asked(call: Call) -> tuple[Window, str | None]:
    """The window and the grouping of a query."""
    name = "window" if call.query_text("window") is not None else "since"
    try:
        window = read_window(call.query_text(name) or DEFAULT, datetime.now(UTC))
    except WindowInvalid as error:
        raise Refused(errors.unprocessable(name, str(error))) from None
    by = call.query_text("group_by") or None
    if by is not None and by not in _BY:
        raise Refused(errors.unprocessable("group_by", "must be hour or day"))
    return window, by


async def _performance(conn: Connection, endpoint: Deployed, window: Window, by: str | None) -> dict[str, Any]:
    [whole] = await store.sums(conn, endpoint.id, window, by=None) or [_nothing(window)]
    buckets = (await store.histograms(conn, endpoint.id, window, by=None)).get(window.begin, {})
    said = {**_latencies(buckets), "requests": whole.requests, "errors": whole.errors}
    if by is not None:
        grouped = await store.histograms(conn, endpoint.id, window, by=by)
        said["series"] = [
            {
                **_span(one),
                **_latencies(grouped.get(one.begin, {})),
                "requests": one.requests,
                "errors": one.errors,
            }
            for one in await store.sums(conn, endpoint.id, window, by=by)
        ]
    return said


def _latencies(buckets: Mapping[int, Mapping[int, int]]) -> dict[str, Any]:
    total, first = buckets.get(TOTAL_MS, {}), buckets.get(FIRST_MS, {})
    said: dict[str, Any] = {}
    for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        said[name] = said[f"{name}_ms"] = quantile(total, share)
    for name, share in (("ttft_p50_ms", 0.5), ("ttft_p95_ms", 0.95), ("ttft_p99_ms", 0.99)):
        said[name] = quantile(first, share)
    said["tokens_per_second_p50"] = quantile(buckets.get(TOKENS_A_SECOND, {}), 0.5)
    return said


async def _uptime(conn: Connection, endpoint: Deployed, window: Window, by: str | None) -> dict[str, Any]:
    del by
    changes = await store.history(conn, endpoint.id)
    begin = max(window.begin, endpoint.created_at)
    live = live_seconds(changes, begin, window.end, status=EndpointStatus.LIVE.value)
    stopped = live_seconds(changes, begin, window.end, status=EndpointStatus.STOPPED.value)
    out = await store.outages(conn, endpoint.id, window)
    down = sum((until - since).total_seconds() for since, until in out)
    wanted = (window.end - begin).total_seconds() - stopped
    is_real = endpoint.status is not EndpointStatus.SEED
    up = max(0.0, live - down)
    return {
        "uptime": min(1.0, up / wanted) if is_real and wanted > 0 else None,
        "live_seconds": round(up, 3),
        "stopped_seconds": round(stopped, 3),
        "incidents": len(out) + sum(since >= begin and what == "failed" for since, what in changes),
    }


async def _cost(conn: Connection, endpoint: Deployed, window: Window, by: str | None) -> dict[str, Any]:
    rates = await store.rates(conn, endpoint.task_id, endpoint.model_id) or {}
    frontier_micros = rates.get("frontier_micros")
    each = frontier_micros if isinstance(frontier_micros, int) else 0
    [whole] = await store.sums(conn, endpoint.id, window, by=None) or [_nothing(window)]
    said = {
        **_money(whole, each),
        "frontier_model": rates.get("frontier"),
        "cost_per_request_micro_usd": rates.get("own"),
    }
    if by is not None:
        rows: Sequence[Sums] = await store.sums(conn, endpoint.id, window, by=by)
        said["series"] = [{**_span(one), **_money(one, each)} for one in rows]
    return said


def _money(one: Sums, frontier_micros: int) -> dict[str, Any]:
    total, baseline = one.amount_nanos // NANOS_PER_MICRO, one.requests * frontier_micros
    return {
        "total_micro_usd": total,
        "frontier_baseline_micro_usd": baseline,
        "savings_micro_usd": baseline - total,
        "requests": one.requests,
    }


async def _quality(conn: Connection, endpoint: Deployed, window: Window, by: str | None) -> dict[str, Any]:
    del by
    rows = await store.judged(conn, endpoint.id, window)
    count = sum(judged for _, judged, _ in rows)
    return {
        "quality_mean": sum(scores for _, _, scores in rows) / count if count else None,
        "judged": count,
        "windows": [
            {"from": _seconds(hour), "to": _seconds(hour) + 3600, "n": judged, "quality_mean": scores / judged}
            for hour, judged, scores in rows
        ],
    }


async def _activity(conn: Connection, endpoint: Deployed, window: Window, by: str | None) -> dict[str, Any]:
    found = await store.sums(conn, endpoint.id, window, by=None)
    said = _counts(found[0] if found else _nothing(window))
    said["last_request_at"] = _seconds(found[0].last_at) if found else None
    if by is not None:
        said["series"] = [{**_span(one), **_counts(one)} for one in await store.sums(conn, endpoint.id, window, by=by)]
    return said


def _counts(one: Sums) -> dict[str, Any]:
    return {
        "requests": one.requests,
        "errors": one.errors,
        "abandoned": one.abandoned,
        "prompt_tokens": one.prompt_tokens,
        "completion_tokens": one.completion_tokens,
    }


def _span(one: Sums) -> dict[str, Any]:
    return {"from": _seconds(one.begin)}


def _nothing(window: Window) -> Sums:
    return Sums(window.begin, 0, 0, 0, 0, 0, 0, window.end)


def _seconds(at: datetime) -> int:
    return int(at.timestamp())
