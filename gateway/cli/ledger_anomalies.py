"""ledger anomalies, ledger resolve: what the books could not take, and who dealt with it.

Floor: cli.
"""

from __future__ import annotations

import getpass
import json
from typing import Any

import click

from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator
from ledger.books.anomalies import NotedAnomaly
from ledger.books.anomalies import anomalies as list_anomalies
from ledger.books.anomalies import resolve as resolve_anomaly


@click.command()
@click.option("--all", "resolved", is_flag=True, help="Also those that were resolved.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True, metavar="N")
@operator
async def anomalies(place: Place, /, resolved: bool, limit: int) -> None:
    """List what the books could not take as it stood, newest first.

    Each is a difference in every audit until somebody resolves it.
    """
    async with place.pool() as pool:
        found = await list_anomalies(pool, resolved=resolved, limit=limit)
    if place.as_json:
        show_list(place, [_record(anomaly) for anomaly in found], columns=(), title="")
        return
    columns = ("id", "noticed", "kind", "where", "detail", *(("resolved",) if resolved else ()))
    show_list(place, [_row(anomaly) for anomaly in found], columns=columns, title="Anomalies", empty="No anomalies.")


@click.command()
@click.argument("anomaly_id", metavar="ID", type=click.IntRange(1))
@click.option("--note", required=True, help="What it was, and what was done about it.")
@click.option("--by", default=None, metavar="NAME", help="Who says so.  [default: the user of this machine]")
@operator
async def resolve(place: Place, /, anomaly_id: int, note: str, by: str | None) -> None:
    """Say that the anomaly ID was dealt with. The note, the name and the time are kept for good."""
    async with place.pool() as pool:
        done = await resolve_anomaly(pool, anomaly_id, note=note, by=by or _user())
    show_record(place, _record(done), title="Resolved", sections={"detail": ()})


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise click.UsageError("This machine does not know who you are: give --by NAME.") from None


def _record(anomaly: NotedAnomaly) -> dict[str, Any]:
    return {
        "id": anomaly.id,
        "kind": anomaly.kind,
        "shard": anomaly.shard,
        "epoch": anomaly.epoch,
        "seq": anomaly.seq,
        "stream_id": anomaly.stream_id,
        "noticed_at": anomaly.noticed_at,
        "resolved_at": anomaly.resolved_at,
        "resolution": anomaly.resolution,
        "detail": anomaly.detail,
    }


def _row(anomaly: NotedAnomaly) -> dict[str, Any]:
    where = f"shard {anomaly.shard}, epoch {anomaly.epoch}, {anomaly.stream_id}"
    resolved = "" if anomaly.resolved_at is None else f"{anomaly.resolved_at:%Y-%m-%d %H:%M:%S}Z: {anomaly.resolution}"
    detail = "\n".join(f"{name}: {_text(value)}" for name, value in anomaly.detail.items())
    return {
        "id": anomaly.id,
        "noticed": anomaly.noticed_at,
        "kind": anomaly.kind,
        "where": where,
        "detail": detail,
        "resolved": resolved,
    }


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
