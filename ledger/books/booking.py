"""What a batch of events from Redis becomes in Postgres: decided here, done by ``ledger.upkeep.reconcile``.

Floor: ledger, without I/O. The money of an event is believed (the counter computed it under its own invariants); what
describes it (``info``) is read leniently: an unreadable description must never keep a charge out of the books, it
only makes the audit point at that row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Final, Protocol

import orjson

from ledger.books.partitions import END_MS, FIRST_MS, month_of, time_of_ms
from ledger.core.ids import id_time_ms
from ledger.core.meters import Meter
from ledger.core.pricing import WHOLE_BPS
from ledger.counter.values import LedgerEvent

METER_COLUMNS: Final[Mapping[Meter, str]] = {
    Meter.PROMPT: "prompt_tokens",
    Meter.CACHED_PROMPT: "cached_prompt_tokens",
    Meter.COMPLETION: "completion_tokens",
    Meter.REASONING: "reasoning_tokens",
    Meter.REQUEST: "requests",
    Meter.IMAGE: "images",
    Meter.AUDIO_SECOND: "audio_seconds",
    Meter.EVAL_MICRO_USD: "eval_micros",
}

STAGED_COLUMNS: Final = (
    *(
        "hold_id",
        "id_time",
        "revision",
        "kind",
        "org_id",
        "key_id",
        "endpoint_id",
        "price_card_id",
        "route",
        "streamed",
    ),
    *("alias", "outcome", "status", "source"),
    *METER_COLUMNS.values(),
    *(
        "discount_bps",
        "held_nanos",
        "amount_nanos",
        "shortfall_nanos",
        "started_at",
        "settled_at",
        "ttft_ms",
        "total_ms",
        "epoch",
        "seq",
    ),
)
"""The columns of ``pg_temp.staged_event``, in the order of a ``Row``."""

Row = tuple[Any, ...]

_METER_NAMES: Final = tuple(meter.value for meter in METER_COLUMNS)
_REVISIONS: Final = {"settle": 0, "void": 0, "reap": 0, "late": 1}
_MAX_LETTERS = 200
_MAX_BIGINT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Position:
    """How far a shard's stream has been booked. ``last_event``: which event that was (see ``identity``), if known."""

    epoch: int
    seq: int
    stream_id: str
    last_event: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class GrantSeen:
    """A grant that Redis says it has applied."""

    org_id: str
    epoch: int
    grant_seq: int
    amount_nanos: int
    seq: int


@dataclass(frozen=True, slots=True)
class ReturnSeen:
    """Credit that Redis says it has given back."""

    org_id: str
    epoch: int
    seq: int
    amount_nanos: int
    t_ms: int


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something the books cannot hold as it stands. ``seq`` is None for what is not one event.

    ``resolution``: why nobody has to look at it; it only keeps the place of its event in the sequence.
    """

    kind: str
    epoch: int
    seq: int | None
    stream_id: str
    detail: Mapping[str, Any]
    resolution: str | None = None


@dataclass(slots=True)
class Plan:
    """One transaction's worth of work: from ``start`` to ``end``."""

    start: Position
    end: Position
    rows: list[Row] = field(default_factory=list)
    months: set[date] = field(default_factory=set)
    grants: list[GrantSeen] = field(default_factory=list)
    returns: list[ReturnSeen] = field(default_factory=list)
    anomalies: list[Anomaly] = field(default_factory=list)


class Unbookable(ValueError):
    """An event that has no place in the books; the text says why."""


def identity(event: LedgerEvent) -> str:
    """What an event is, so that another one in its place is told from it: two histories may share their numbers."""
    return f"{event.kind}:{event.hold or event.org}:{event.amount_nanos}:{event.t_ms}"


def plan(events: Sequence[LedgerEvent], start: Position) -> Plan:
    """Decide what a batch of events, in stream order, becomes."""
    planned = Plan(start=start, end=start)
    for event in events:
        gap = _gap(planned.end, event)
        if gap is not None:
            planned.anomalies.append(gap)
        planned.end = _after(event)
        _add(planned, event)
    return planned


def quarantine(event: LedgerEvent, start: Position, reason: str) -> Plan:
    """Book an event as an anomaly: Postgres refused it as it stands."""
    planned = Plan(start=start, end=_after(event))
    gap = _gap(start, event)
    planned.anomalies = ([gap] if gap is not None else []) + [_refusal(event, reason)]
    return planned


def _after(event: LedgerEvent) -> Position:
    return Position(event.epoch, event.seq, event.id, identity(event))


def _add(planned: Plan, event: LedgerEvent) -> None:
    try:
        if event.kind == "grant":
            planned.grants.append(_grant(event))
        elif event.kind == "return":
            planned.returns.append(_return(event))
            planned.months.add(month_of(time_of_ms(event.t_ms)))
        else:
            row = row_of(event)
            planned.rows.append(row)
            planned.months.add(month_of(row[1]))
    except Unbookable as error:
        planned.anomalies.append(_refusal(event, str(error)))


def _gap(before: Position, event: LedgerEvent) -> Anomaly | None:
    """Whether events are missing between the two: their loss is a fact by now, and only to be shown."""
    expected = before.seq + 1 if event.epoch == before.epoch else 1
    if event.seq == expected:
        return None
    return Anomaly("gap", event.epoch, None, event.id, {"expected_seq": expected, "found_seq": event.seq})


def _refusal(event: LedgerEvent, reason: str) -> Anomaly:
    return Anomaly(
        "refused",
        event.epoch,
        event.seq,
        event.id,
        {
            "reason": reason,
            "kind": event.kind,
            "hold": event.hold,
            "org": event.org,
            "amount_nanos": event.amount_nanos,
            "short_nanos": event.short_nanos,
            "info": event.info.decode("utf-8", "backslashreplace").replace("\x00", "\\x00"),
        },
    )


def _grant(event: LedgerEvent) -> GrantSeen:
    if event.grant_seq is None:
        raise Unbookable("a grant without a number")
    return GrantSeen(event.org, event.epoch, event.grant_seq, event.amount_nanos, event.seq)


def _return(event: LedgerEvent) -> ReturnSeen:
    if not 0 < event.amount_nanos <= _MAX_BIGINT:
        raise Unbookable("an amount out of bounds")
    if not FIRST_MS <= event.t_ms < END_MS:
        raise Unbookable("a time outside the books")
    return ReturnSeen(event.org, event.epoch, event.seq, event.amount_nanos, event.t_ms)


def row_of(event: LedgerEvent) -> Row:
    """The row of ``pg_temp.staged_event`` for an event about a hold.

    Raises:
        Unbookable: its kind, id or amount has no place in the books.
    """
    revision = _REVISIONS.get(event.kind)
    if revision is None:
        raise Unbookable(f"no such kind of event: {event.kind[:40]!r}")
    if max(abs(event.amount_nanos), abs(event.held_nanos), abs(event.short_nanos)) > _MAX_BIGINT:
        raise Unbookable("an amount out of bounds")
    if not 0 <= event.t_ms < END_MS:
        raise Unbookable("a time out of bounds")
    info = _info(event)
    meters = info.get("meters")
    quantities = meters if isinstance(meters, dict) else {}
    return (
        event.hold,
        _id_time(event.hold),
        revision,
        event.kind,
        event.org,
        _text(info.get("key")),
        _text(info.get("endpoint")),
        _text(info.get("card")),
        _text(info.get("route")),
        _flag(info.get("stream")),
        _text(info.get("alias")),
        _text(info.get("outcome")),
        _status(info.get("status")),
        _text(info.get("source")),
        *[_quantity(quantities.get(name)) for name in _METER_NAMES],
        _discount(info.get("discount_bps")),
        event.held_nanos,
        event.amount_nanos,
        event.short_nanos,
        _moment(info.get("started_ms")),
        time_of_ms(event.t_ms),
        _span(info.get("ttft_ms")),
        _span(info.get("total_ms")),
        event.epoch,
        event.seq,
    )


def _id_time(hold_id: str) -> datetime:
    try:
        time_ms = id_time_ms(hold_id)
    except ValueError:
        raise Unbookable(f"not a request id: {hold_id[:40]!r}") from None
    if not FIRST_MS <= time_ms < END_MS:
        raise Unbookable(f"the id {hold_id} is of a time outside the books")
    return time_of_ms(time_ms)


def _info(event: LedgerEvent) -> dict[str, Any]:
    """The description: of a reap what the admission said, and above it what the last heartbeat knew."""
    info = _mapping(event.info)
    return info if event.beat is None else {**info, **_mapping(event.beat)}


def _mapping(text: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str | None:
    return value[:_MAX_LETTERS].replace("\x00", "") if isinstance(value, str) else None


def _flag(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def _status(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 1000 else None


def _quantity(value: object) -> int:
    return value if type(value) is int and 0 <= value <= _MAX_BIGINT else 0


def _discount(value: object) -> int:
    return value if type(value) is int and 0 <= value <= WHOLE_BPS else 0


def _moment(value: object) -> datetime | None:
    if not isinstance(value, int | float) or not 0 <= value < END_MS:
        return None
    return time_of_ms(int(value))


def _span(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value < 1e12 else None


class _Named(Protocol):
    def __getitem__(self, name: str, /) -> Any: ...


def quantities_of(row: _Named) -> dict[Meter, int]:
    """The meters of a row of ``usage_event``; zero meters are left out."""
    return {meter: row[column] for meter, column in METER_COLUMNS.items() if row[column]}
