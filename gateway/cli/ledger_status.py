"""ledger status: who books, how far, what was lost and frozen, and what needs a person.

Floor: cli.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from gateway.cli.main import DIFFERENCES, UNREACHABLE
from gateway.cli.output import money, show_record
from gateway.cli.place import Place, operator
from ledger.books.epochs import EpochStory, GuardianEvent
from ledger.core.money import format_usd
from ledger.proof.status import LedgerStatus, Look, ShardState, Totals
from ledger.proof.status import status as read_status

if TYPE_CHECKING:
    from ledger.counter.door import ShardDoor


@click.command()
@click.option(
    "--events",
    type=click.IntRange(0, 1000),
    default=10,
    show_default=True,
    metavar="N",
    help="How many of the guardian's last decisions to show.",
)
@operator
async def status(place: Place, /, events: int) -> None:
    """Show who books each shard and how far, what Redis has lost, what is frozen and until when.

    Exit status 0: all is well. 3: something needs a person; it is said what. 4: Redis can't be reached.
    """
    doors = _Doors(place)
    try:
        async with place.pool() as pool:
            found = await read_status(
                pool, place.settings.shards, look=doors.look if place.settings.redis_url else None, events=events
            )
    finally:
        await doors.close()
    if place.as_json:
        show_record(place, _record(found), title="")
    else:
        _show(place, found)
    if found.attention:
        raise click.exceptions.Exit(DIFFERENCES)
    if found.unreachable:
        click.echo("error: Redis can't be reached, so not everything could be looked at.", err=True)
        raise click.exceptions.Exit(UNREACHABLE)


class _Doors:
    """Connections to the shards of Redis, for looking only."""

    def __init__(self, place: Place) -> None:
        self._settings = place.settings
        self._open: list[ShardDoor] = []

    async def look(self, shard: int) -> Look:
        """Ask one shard. Raises: CounterUnavailable."""
        from ledger.counter.door import ShardDoor  # late: the driver takes as long to import as all the rest

        door = ShardDoor(self._settings.redis_url, shard, timeout_s=self._settings.redis_timeout_s)
        self._open.append(door)
        return await door.look()

    async def close(self) -> None:
        """Let go of all connections."""
        for door in self._open:
            await door.close()


def _record(found: LedgerStatus) -> dict[str, Any]:
    totals = found.totals
    return {
        "well": not found.attention and not found.unreachable,
        "attention": found.attention,
        "organizations": totals.organizations,
        **money("available", totals.available_nanos),
        **money("escrow", totals.escrow_nanos),
        **money("frozen", totals.frozen_nanos),
        "open_anomalies": totals.anomalies,
        "pending_grants": {
            "count": totals.pending_grants,
            **money("amount", totals.pending_grant_nanos),
            "since": totals.pending_since,
        },
        "carried_holds": {
            "count": totals.carried_holds,
            "expired": totals.carried_expired,
            **money("held", totals.carried_held_nanos),
            **money("accrued", totals.carried_accrued_nanos),
        },
        "audit_block": None
        if totals.block_number is None
        else {
            "number": totals.block_number,
            "head": f"{totals.block_number}:{totals.block_hash}",
            "to_posted_at": totals.block_until,
        },
        "unsealed_transfers": totals.unsealed_transfers,
        "shards": [_shard(state) for state in found.shards],
        "lost_epochs": [_lost(story) for story in found.lost],
        "guardian_events": [_event(event) for event in found.events],
    }


def _shard(state: ShardState) -> dict[str, Any]:
    redis = state.redis
    return {
        "shard": state.shard,
        "epoch": state.epoch,
        "led": state.led,
        "holder": state.holder,
        "fence": state.fence,
        "renewed_s_ago": None if state.silent_s is None else round(state.silent_s, 1),
        "booked_epoch": state.booked_epoch,
        "booked_seq": state.booked_seq,
        "witnessed_seq": state.witnessed_seq,
        "lag_events": state.lag_events,
        "redis": None
        if redis is None
        else {
            "reachable": not redis.trouble,
            "trouble": redis.trouble,
            "epoch": redis.epoch,
            "seq": redis.seq,
            "script_known": redis.script_known,
        },
    }


def _lost(story: EpochStory) -> dict[str, Any]:
    return {
        "epoch": story.closes,
        "shard": story.shard,
        "lost_at": story.opened_at,
        "followed_by": story.number,
        "reason": story.reason,
        "booked_seq": story.booked_seq,
        "redis_seq": story.redis_seq,
        "witnessed_seq": story.witnessed_seq,
        **money("frozen", story.frozen_nanos),
        **money("released", story.released_nanos),
        "release_after": story.release_after,
        "released_at": story.released_at,
    }


def _event(event: GuardianEvent) -> dict[str, Any]:
    return {
        "at": event.at,
        "shard": event.shard,
        "kind": event.kind,
        "epoch": event.epoch,
        "redis_epoch": event.redis_epoch,
        "redis_seq": event.redis_seq,
        "booked_seq": event.booked_seq,
        "witnessed_seq": event.witnessed_seq,
        "detail": event.detail,
    }


def _show(place: Place, found: LedgerStatus) -> None:
    record: dict[str, Any] = {
        "state": "all is well" if not found.attention else "\n".join(f"! {sentence}" for sentence in found.attention),
        **_summary(found.totals),
        "shards": [_shard_row(state) for state in found.shards],
        "lost epochs": [_lost_row(story) for story in found.lost],
        "guardian": [_event_row(event) for event in found.events],
    }
    show_record(
        place,
        record,
        title="Ledger",
        sections={
            "shards": ("shard", "epoch", "booked by", "booked", "waiting", "witnessed", "redis"),
            "lost epochs": ("epoch", "shard", "lost", "frozen", "released", "when", "why"),
            "guardian": ("when", "shard", "what", "why"),
        },
    )


def _summary(totals: Totals) -> dict[str, Any]:
    record: dict[str, Any] = {
        "organizations": totals.organizations,
        "available": _usd(totals.available_nanos),
        "escrow": _usd(totals.escrow_nanos),
        "frozen": _usd(totals.frozen_nanos),
        "open anomalies": totals.anomalies,
    }
    if totals.pending_grants:
        record["pending grants"] = f"{totals.pending_grants:,}, {_usd(totals.pending_grant_nanos)}"
    if totals.carried_holds:
        record["carried holds"] = (
            f"{totals.carried_holds:,}, {_usd(totals.carried_held_nanos)} held, {totals.carried_expired:,} expired"
        )
    if totals.block_number is None or totals.block_until is None:
        record["audit block"] = "none yet"
    else:
        record["audit block"] = f"{totals.block_number}, up to {totals.block_until:%Y-%m-%d %H:%M:%S}Z"
    record["transfers after it"] = f"{totals.unsealed_transfers:,}"
    return record


def _shard_row(state: ShardState) -> dict[str, Any]:
    return {
        "shard": state.shard,
        "epoch": state.epoch,
        "booked by": _leader(state),
        "booked": f"{state.booked_epoch}-{state.booked_seq}",
        "waiting": "?" if state.lag_events is None else state.lag_events,
        "witnessed": state.witnessed_seq,
        "redis": _redis(state),
    }


def _leader(state: ShardState) -> str:
    if state.silent_s is None:
        return "nobody yet"
    term = f"{state.holder}, term {state.fence}"
    return f"{term}, {state.silent_s:.0f} s ago" if state.led else f"nobody (last {term}, {state.silent_s:.0f} s ago)"


def _redis(state: ShardState) -> str:
    redis = state.redis
    if redis is None:
        return "not asked"
    if redis.trouble:
        return f"unreachable: {redis.trouble}"
    if redis.epoch is None:
        return "empty"
    if redis.epoch == 0:
        return "fenced"
    if redis.epoch != state.epoch:
        return f"at epoch {redis.epoch}, event {redis.seq}"
    return f"at event {redis.seq}" + ("" if redis.script_known else ", closed until checked")


def _lost_row(story: EpochStory) -> dict[str, Any]:
    return {
        "epoch": story.closes,
        "shard": story.shard,
        "lost": story.opened_at,
        "frozen": _usd(story.frozen_nanos),
        "released": _usd(story.released_nanos),
        "when": f"after {story.release_after:%Y-%m-%d %H:%M:%S}Z" if story.released_at is None else story.released_at,
        "why": story.reason,
    }


def _event_row(event: GuardianEvent) -> dict[str, Any]:
    return {"when": event.at, "shard": event.shard, "what": event.kind.replace("_", " "), "why": _why(event.detail)}


def _why(detail: Mapping[str, Any]) -> str:
    """The reason alone, or whatever else was noted; amounts in dollars."""
    if "reason" in detail:
        return str(detail["reason"])
    parts = []
    for name, value in detail.items():
        if name.endswith("nanos") and isinstance(value, int):
            parts.append(f"{name.removesuffix('nanos').strip('_')} {_usd(value)}".strip())
        else:
            parts.append(f"{name.replace('_', ' ')} {', '.join(map(str, value)) if isinstance(value, list) else value}")
    return ", ".join(parts)


def _usd(nanos: int) -> str:
    return f"{format_usd(nanos)} USD"
