"""A call's messages and its status, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.triton.grpc_messages import CallStream, frame_message, timeout_header

HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]


class Heard:
    """Remembers; holds the call after so many messages, if it is told to."""

    def __init__(self, hold_after: int = 1 << 30) -> None:
        self.messages: list[bytes] = []
        self.end: tuple[str, str] | None = None
        self.hold_after = hold_after
        self.call = CallStream(self, most_bytes=100)

    def message(self, data: bytes) -> None:
        assert self.end is None
        self.messages.append(data)
        if len(self.messages) >= self.hold_after:
            self.call.hold()

    def settled(self) -> None:
        """Nothing."""

    def ended(self, status: str, details: str) -> None:
        assert self.end is None
        self.end = status, details


@given(st.lists(st.binary(max_size=100), max_size=6), st.lists(st.integers(0, 700), max_size=8))
def test_messages_come_whole_however_they_are_cut(messages: list[bytes], cuts: list[int]) -> None:
    """Frames of data need not be those of messages."""
    heard = Heard()
    heard.call.headers(HEAD, ends=False)
    data = b"".join(map(frame_message, messages))
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        heard.call.data(data[start:end], ends=False)
    heard.call.headers([(b"grpc-status", b"0")], ends=True)
    assert heard.messages == messages
    assert heard.end == ("OK", "")


@given(st.integers(1, 6), st.integers(0, 6))
def test_what_comes_while_it_is_held_waits_with_its_end(at_once: int, hold_after: int) -> None:
    """Nothing is told to one who holds, nothing is lost, and the end comes last."""
    heard = Heard(hold_after or 1 << 30)
    heard.call.headers(HEAD, ends=False)
    heard.call.data(b"".join(frame_message(bytes([n])) for n in range(at_once)), ends=False)
    heard.call.headers([(b"grpc-status", b"0")], ends=True)
    told = min(at_once, hold_after or at_once)
    assert len(heard.messages) == told
    assert (heard.end is None) == bool(hold_after and told >= hold_after)
    while len(heard.messages) < at_once:  # each release tells one more, and is held again
        before = len(heard.messages)
        heard.call.release()
        assert len(heard.messages) == before + 1
    heard.hold_after = 1 << 30
    heard.call.release()
    assert heard.messages == [bytes([n]) for n in range(at_once)]
    assert heard.end == ("OK", "")


def test_one_that_is_silenced_tells_nothing_that_waited() -> None:
    """After a cancel nothing comes."""
    heard = Heard()
    heard.call.hold()
    heard.call.data(frame_message(b"x"), ends=False)
    heard.call.silence()
    heard.call.release()
    assert heard.messages == []


@pytest.mark.parametrize(
    ("headers", "end"),
    [
        ([*HEAD, (b"grpc-status", b"5"), (b"grpc-message", b"no%20model%e2%9c%93")], ("NOT_FOUND", "no model✓")),
        ([(b":status", b"200"), (b"grpc-status", b"99")], ("UNKNOWN", "")),
        ([(b":status", b"200"), (b"grpc-status", b"-1")], ("UNKNOWN", "")),
        ([(b":status", b"503")], ("UNAVAILABLE", "HTTP 503")),
        ([(b":status", b"404"), (b"content-type", b"text/html")], ("UNIMPLEMENTED", "HTTP 404")),
        (HEAD, ("UNKNOWN", "an end without a status")),
    ],
)  # fmt: skip
def test_an_end_is_a_status(headers: list[tuple[bytes, bytes]], end: tuple[str, str]) -> None:
    """Of gRPC, or of whatever stands in between."""
    heard = Heard()
    heard.call.headers(headers, ends=True)
    assert heard.end == end


def test_an_answer_that_is_not_grpc_is_none() -> None:
    """A web server that answers 200 to everything."""
    heard = Heard()
    heard.call.headers([(b":status", b"200"), (b"content-type", b"text/html")], ends=False)
    heard.call.data(b"<html>...", ends=True)
    assert heard.end == ("UNKNOWN", "an answer that is not gRPC's")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x01\x00\x00\x00\x01x", "INTERNAL"),  # compressed
        (b"\x00\x00\x00\x00\x65", "RESOURCE_EXHAUSTED"),  # 101 bytes: refused before they come
        (b"\x00\xff\xff\xff\xffxx", "RESOURCE_EXHAUSTED"),
    ],
)
def test_a_message_that_is_not_to_be_had(data: bytes, status: str) -> None:
    """It ends the call, and nothing of it is kept."""
    heard = Heard()
    heard.call.headers(HEAD, ends=False)
    heard.call.data(frame_message(b"good") + data, ends=False)
    heard.call.data(frame_message(b"late"), ends=False)
    assert heard.messages == [b"good"]
    assert heard.end is not None
    assert heard.end[0] == status


def test_a_message_that_was_cut_off_is_no_good_end() -> None:
    """Whatever the status says."""
    heard = Heard()
    heard.call.headers(HEAD, ends=False)
    heard.call.data(frame_message(b"good")[:-1], ends=False)
    heard.call.headers([(b"grpc-status", b"0")], ends=True)
    assert heard.messages == []
    assert heard.end is not None
    assert heard.end[0] == "INTERNAL"


@pytest.mark.parametrize(("seconds", "text"), [(0.25, "250m"), (86_400.0, "86400000m"), (1e6, "1000000S"), (0, "1m")])
def test_a_deadline_has_eight_digits_at_most(seconds: float, text: str) -> None:
    """As gRPC wants it."""
    assert timeout_header(seconds) == text
