"""Promises of the journal's bytes that hold for every record, every cut and every flipped bit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.core.number_set import NumberSet
from ledger.outbox.journal_format import MAX_PAYLOAD_BYTES, _frame, frame_marks, frame_record, read_segment

# Payloads that look like frames themselves are the hard ones.
payloads = st.one_of(st.binary(max_size=60), st.just(frame_record(7, b"inner")), st.just(b"\xf5PJ\x01" * 3))


def segment(payloads: list[bytes]) -> tuple[bytes, list[int]]:
    """The bytes of a segment, and where each frame ends."""
    data, ends = b"", []
    for number, payload in enumerate(payloads, 1):
        data += frame_record(number, payload)
        ends.append(len(data))
    return data, ends


@given(st.lists(payloads, max_size=8), st.sets(st.integers(1, 2**64 - 1), max_size=9))
def test_what_was_written_is_read(written: list[bytes], marks: set[int]) -> None:
    """Records and confirmations come back as they were written, and nothing is called damaged."""
    data, _ = segment(written)
    content = read_segment(data + frame_marks(NumberSet(marks).runs()))
    assert content.records == dict(enumerate(written, 1))
    assert {number for first, last in content.confirmed for number in range(first, last + 1)} == marks
    assert (content.damaged, content.torn_bytes) == (0, 0)


@given(st.lists(payloads, min_size=1, max_size=4), st.data())
def test_a_cut_costs_only_the_frame_it_cuts(written: list[bytes], data: st.DataObject) -> None:
    """Cut anywhere, all records before the cut are read, and the rest is known to be torn."""
    whole, ends = segment(written)
    cut = data.draw(st.integers(0, len(whole)))
    content = read_segment(whole[:cut])
    good = {number: payload for number, payload in enumerate(written, 1) if ends[number - 1] <= cut}
    assert content.records == good
    assert content.torn_bytes == cut - max([0, *(end for end in ends if end <= cut)])


@given(st.lists(payloads, min_size=1, max_size=4), st.data())
def test_a_flipped_bit_costs_one_record(written: list[bytes], data: st.DataObject) -> None:
    """Whatever bit is flipped, exactly one record is lost, no record is invented, and the damage is noticed."""
    whole, ends = segment(written)
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    broken = bytearray(whole)
    broken[bit // 8] ^= 1 << bit % 8
    content = read_segment(bytes(broken))
    hit = next(number for number, end in enumerate(ends, 1) if bit // 8 < end)
    good = {number: payload for number, payload in enumerate(written, 1) if number != hit}
    # A frame inside the payload that was hit may surface; it has a number of its own and a true checksum.
    surfaced = {7: b"inner"} if written[hit - 1] == frame_record(7, b"inner") else {}
    assert {**surfaced, **content.records} == {**surfaced, **good}
    assert content.damaged or content.torn_bytes


@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_a_fall(data: bytes) -> None:
    """Nothing that a disk may bring up stops the reader."""
    content = read_segment(data + bytes(40))
    assert content.torn_bytes > 0


def test_a_missing_record_is_noticed() -> None:
    """A hole in the numbers is damage, though every frame is good."""
    assert read_segment(frame_record(1, b"a") + frame_record(3, b"c")).damaged == 1


def test_a_record_that_is_too_large_is_refused() -> None:
    """The bound is kept when writing, so that a reader may rely on it."""
    with pytest.raises(ValueError, match="at most"):
        frame_record(1, bytes(MAX_PAYLOAD_BYTES + 1))
    assert read_segment(frame_record(1, bytes(MAX_PAYLOAD_BYTES))).records[1] == bytes(MAX_PAYLOAD_BYTES)


def test_many_confirmations_fit() -> None:
    """Confirmations in any number are written and read; neighbours take no room."""
    runs = [(number, number + 1) for number in range(1, 60_000, 3)]
    assert read_segment(frame_marks(runs)).confirmed == runs
    assert len(frame_marks([(1, 10**9)])) < 40


def test_confirmations_of_earlier_versions_are_read() -> None:
    """A journal that was left by a version that named each number is understood."""
    body = b"C" + b"".join(number.to_bytes(8, "little") for number in (3, 4, 9))
    assert read_segment(_frame(body)).confirmed == [(3, 3), (4, 4), (9, 9)]
