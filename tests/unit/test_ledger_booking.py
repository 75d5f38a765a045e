"""What a batch of events becomes, decided without any database."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.books.booking import (
    METER_COLUMNS,
    STAGED_COLUMNS,
    Position,
    ReturnSeen,
    Unbookable,
    identity,
    plan,
    quantities_of,
    quarantine,
    row_of,
)
from ledger.books.partitions import month_of, months_ahead, time_of_ms
from ledger.core.ids import request_id
from ledger.core.meters import Meter
from ledger.counter.values import LedgerEvent

NOW_MS = 1_795_371_461_270
HOLD = request_id(NOW_MS, bytes(range(10)))
INFO = (
    b'{"key":"k","endpoint":"ep_a","card":"pc_a","route":"chat","stream":true,"meters":{"prompt":5,"completion":7},'
    b'"source":"reported","outcome":"finished","status":200,"started_ms":1795371461000,"ttft_ms":1.5,"total_ms":9}'
)


def event(seq: int = 1, epoch: int = 1, **changes: object) -> LedgerEvent:
    values: dict[str, object] = {
        "id": f"{epoch}-{seq}",
        "seq": seq,
        "epoch": epoch,
        "kind": "settle",
        "hold": HOLD,
        "org": "org_a",
        "amount_nanos": 10,
        "held_nanos": 20,
        "short_nanos": 0,
        "t_ms": NOW_MS,
        "grant_seq": None,
        "info": INFO,
        "beat": None,
    }
    return LedgerEvent(**(values | changes))  # type: ignore[arg-type]


def named(row: tuple[object, ...]) -> dict[str, object]:
    return dict(zip(STAGED_COLUMNS, row, strict=True))


def test_every_column_gets_what_its_name_says() -> None:
    """The tuple that is copied into Postgres is in the order of the columns."""
    row = named(row_of(event(seq=3)))
    assert row["hold_id"] == HOLD
    assert row["id_time"] == datetime(2026, 11, 22, 18, 17, 41, 270_000, UTC)
    assert (row["key_id"], row["endpoint_id"], row["price_card_id"], row["route"]) == ("k", "ep_a", "pc_a", "chat")
    assert (row["revision"], row["kind"], row["org_id"], row["streamed"]) == (0, "settle", "org_a", True)
    assert (row["prompt_tokens"], row["completion_tokens"], row["requests"]) == (5, 7, 0)
    assert (row["held_nanos"], row["amount_nanos"], row["shortfall_nanos"]) == (20, 10, 0)
    assert (row["outcome"], row["status"], row["source"]) == ("finished", 200, "reported")
    assert (row["ttft_ms"], row["total_ms"], row["epoch"], row["seq"]) == (1.5, 9.0, 1, 3)
    assert quantities_of(row) == {Meter.PROMPT: 5, Meter.COMPLETION: 7}


@pytest.mark.parametrize(("said", "booked"), [(1_250, 1_250), (10_000, 10_000), (10_001, 0), ("5", 0), (True, 0)])
def test_a_discount_is_booked_as_it_was_given(said: object, booked: int) -> None:
    """Of what makes no sense nothing is booked, and the audit will ask why the charge is too low."""
    assert named(row_of(event(info=json.dumps({"discount_bps": said}).encode())))["discount_bps"] == booked


def test_every_meter_has_a_column() -> None:
    """A meter that is added and not booked would lose money silently."""
    assert set(METER_COLUMNS) == set(Meter)


def test_the_last_heartbeat_speaks_for_a_reaped_hold() -> None:
    """Who asked comes from the admission, what was used from the beat."""
    row = named(
        row_of(
            event(kind="reap", info=b'{"key":"k","meters":{}}', beat=b'{"meters":{"completion":3},"source":"counted"}')
        )
    )
    assert (row["key_id"], row["completion_tokens"], row["source"]) == ("k", 3, "counted")


@given(st.binary(max_size=300), st.none() | st.binary(max_size=300))
def test_no_description_keeps_a_charge_out_of_the_books(info: bytes, beat: bytes | None) -> None:
    """Whatever stands in the JSON, the money and its owner are booked."""
    row = named(row_of(event(info=info, beat=beat)))
    assert (row["hold_id"], row["org_id"], row["amount_nanos"]) == (HOLD, "org_a", 10)


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2),
)


@given(st.dictionaries(st.sampled_from(["key", "status", "meters", "started_ms", "ttft_ms", "stream", "alias"]), _json))
def test_a_description_of_wrong_types_becomes_none_or_zero(info: dict[str, object]) -> None:
    """No value reaches Postgres that its column cannot hold."""
    row = named(row_of(event(info=json.dumps(info).encode("utf-8", "surrogatepass"))))
    assert row["key_id"] is None or isinstance(row["key_id"], str)
    assert row["status"] is None or isinstance(row["status"], int)
    assert row["streamed"] in (None, True, False)
    assert all(0 <= row[column] < 2**63 for column in METER_COLUMNS.values())  # type: ignore[operator]
    assert row["started_at"] is None or isinstance(row["started_at"], datetime)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "gift"},
        {"hold": ""},
        {"hold": "req_" + "7" * 26},
        {"hold": request_id(0, bytes(10))},
        {"amount_nanos": 2**63},
        {"short_nanos": -(2**64)},
        {"kind": "grant", "grant_seq": None},
        {"kind": "return", "amount_nanos": 0},
        {"kind": "return", "amount_nanos": -1},
        {"kind": "return", "amount_nanos": 2**63},
        {"kind": "return", "t_ms": 1},
        {"t_ms": -1},
        {"t_ms": 10**18},
    ],
)
def test_what_cannot_be_booked_is_kept_as_an_anomaly(changes: dict[str, object]) -> None:
    """The event moves no money, is not forgotten, and does not stop the next one."""
    planned = plan([event(1, **changes), event(2)], Position(1, 0, "1-0"))
    assert [(anomaly.kind, anomaly.seq) for anomaly in planned.anomalies] == [("refused", 1)]
    assert len(planned.rows) == 1
    assert planned.end == Position(1, 2, "1-2")


def test_a_return_is_no_usage() -> None:
    """What Redis gives back has an amount, a place in the sequence and a month, and no hold."""
    planned = plan([event(4, kind="return", hold="", amount_nanos=70)], Position(1, 3, "1-3"))
    assert planned.returns == [ReturnSeen("org_a", 1, 4, 70, NOW_MS)]
    assert (planned.rows, planned.grants, planned.anomalies) == ([], [], [])
    assert planned.months == {date(2026, 11, 1)}


def test_the_end_of_a_batch_says_which_event_it_was() -> None:
    """Another event under the same number has another identity; where booking stands does not depend on it."""
    ends = [plan([event(1, **changes)], Position(0, 0, "0-0")).end for changes in ({}, {"amount_nanos": 11})]
    assert ends[0] == ends[1] == Position(1, 1, "1-1")
    assert ends[0].last_event == f"settle:{HOLD}:10:{NOW_MS}"
    assert ends[1].last_event == f"settle:{HOLD}:11:{NOW_MS}"
    assert identity(event(kind="grant", hold="", grant_seq=1)) == f"grant:org_a:10:{NOW_MS}"
    assert quarantine(event(1), Position(0, 0, "0-0"), "because").end.last_event == ends[0].last_event


@pytest.mark.parametrize(
    ("start", "events", "gaps"),
    [
        ((0, 0), [(1, 1), (1, 2)], []),
        ((1, 4), [(1, 5)], []),
        ((1, 4), [(1, 6), (1, 7)], [(5, 6)]),
        ((1, 4), [(2, 1)], []),
        ((1, 4), [(2, 3)], [(1, 3)]),
        ((0, 0), [(1, 2), (1, 5)], [(1, 2), (3, 5)]),
    ],
)
def test_every_gap_is_found(start: tuple[int, int], events: list[tuple[int, int]], gaps: list[tuple[int, int]]) -> None:
    """Numbers are dense per epoch and begin at 1; each hole is one anomaly."""
    planned = plan([event(seq, epoch) for epoch, seq in events], Position(*start, "x"))
    found = [(anomaly.detail["expected_seq"], anomaly.detail["found_seq"]) for anomaly in planned.anomalies]
    assert found == gaps
    assert len(planned.rows) == len(events)


def test_a_refused_event_moves_the_position_and_no_money() -> None:
    """Setting an event aside is booked like a batch: with the checkpoint behind it."""
    planned = quarantine(event(9, amount_nanos=7), Position(1, 8, "1-8"), "because")
    assert planned.end == Position(1, 9, "1-9")
    assert (planned.rows, planned.grants) == ([], [])
    assert [(anomaly.kind, anomaly.detail["amount_nanos"]) for anomaly in planned.anomalies] == [("refused", 7)]
    assert planned.anomalies[0].detail["reason"] == "because"


def test_lone_kinds_have_the_revision_of_a_correction() -> None:
    """Only a late event is a second row of its hold."""
    assert [row_of(event(kind=kind))[2] for kind in ("settle", "void", "reap", "late")] == [0, 0, 0, 1]
    with pytest.raises(Unbookable):
        row_of(event(kind="extend"))


def test_months() -> None:
    """Months are UTC, and December is followed by January."""
    assert month_of(time_of_ms(1_798_761_599_999)) == date(2026, 12, 1)
    assert month_of(time_of_ms(1_798_761_600_000)) == date(2027, 1, 1)
    assert months_ahead(datetime(2026, 11, 30, 23, 59, tzinfo=UTC), 2) == [
        date(2026, 11, 1),
        date(2026, 12, 1),
        date(2027, 1, 1),
    ]
