"""The client's side of HTTP/2 against a server that is played frame by frame."""

from __future__ import annotations

import struct
from itertools import pairwise

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.wire.triton.http2 import (
    CANCEL,
    MOST_WINDOW_BYTES,
    PREFACE,
    REFUSED_STREAM,
    WINDOW_BYTES,
    ConnectionBroken,
    Headers,
    Http2Client,
    header_block,
)

DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)
END, ACK, END_HEADERS, PADDED, WITH_PRIORITY = 1, 1, 4, 8, 32
REQUEST = header_block([(":method", "POST"), (":path", "/x")])


def frame(kind: int, flags: int, number: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + number.to_bytes(4, "big") + payload


def setting(name: int, value: int) -> bytes:
    return struct.pack(">HI", name, value)


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


class Told:
    """A receiver that remembers."""

    def __init__(self) -> None:
        self.heads: list[Headers] = []
        self.body = b""
        self.has_ended = False
        self.code: int | None = None
        self.settlements = 0

    def headers(self, headers: Headers, *, ends: bool) -> None:
        self.heads.append(headers)
        self.end(ends)

    def data(self, data: bytes, *, ends: bool) -> None:
        self.body += data
        self.end(ends)

    def end(self, ends: bool) -> None:
        assert not self.has_ended
        self.has_ended = ends

    def settled(self) -> None:
        self.settlements += 1

    def reset(self, code: int) -> None:
        assert not self.has_ended
        self.code = code


class Peer:
    """A server that is played, and what it was sent."""

    def __init__(self, settings: bytes = b"") -> None:
        self.sent = b""
        self.client = Http2Client(self.write)
        self.encoder = hpack.Encoder()
        self.client.receive(frame(SETTINGS, 0, 0, settings))
        self.frames()

    def write(self, data: bytes) -> None:
        self.sent += data

    def frames(self) -> list[tuple[int, int, int, bytes]]:
        """What the client sent since the last time."""
        data, self.sent = self.sent.removeprefix(PREFACE), b""
        out = []
        while data:
            length = int.from_bytes(data[:3], "big")
            out.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + length]))
            data = data[9 + length :]
        return out

    def open(self, body: bytes = b"body") -> tuple[int, Told]:
        told = Told()
        return self.client.open(REQUEST, body, told), told

    def head(self, number: int, *, ends: bool = False, **headers: str) -> bytes:
        block = self.encoder.encode([(":status", "200"), *headers.items()])
        return frame(HEADERS, END_HEADERS | ends * END, number, block)

    def says(self, data: bytes) -> None:
        self.client.receive(data)


def test_it_begins_as_a_client_does() -> None:
    """The preface, settings without push, and a window of the connection that the streams' windows are below."""
    peer = Peer.__new__(Peer)
    peer.sent = b""
    client = Http2Client(peer.write)
    assert peer.sent.startswith(PREFACE)
    settings, window = peer.frames()
    assert settings[:3] == (SETTINGS, 0, 0)
    assert dict(struct.iter_unpack(">HI", settings[3])) == {2: 0, 4: WINDOW_BYTES, 6: 65536}
    assert window == (WINDOW, 0, 0, word(MOST_WINDOW_BYTES - 65535))
    assert not client.can_open, "what the server allows is not known yet"
    client.receive(frame(SETTINGS, 0, 0))
    assert client.can_open
    assert peer.frames() == [(SETTINGS, ACK, 0, b"")]


def test_a_request_is_one_head_and_one_body() -> None:
    """Another server's decoder reads the same head, again and again."""
    peer, decoder = Peer(), hpack.Decoder()
    for number in (1, 3, 5):
        assert peer.open(b"hello")[0] == number
        head, body = peer.frames()
        assert head[:3] == (HEADERS, END_HEADERS, number)
        assert decoder.decode(head[3]) == [(":method", "POST"), (":path", "/x")]
        assert body == (DATA, END, number, b"hello")


@given(st.lists(st.integers(1, 3000), max_size=20))
def test_an_answer_is_the_same_wherever_it_is_cut(cuts: list[int]) -> None:
    """Frames of two streams, with padding, priorities and continuations, in reads of any size."""
    peer = Peer()
    (one, first), (two, second) = peer.open(), peer.open()
    block = peer.encoder.encode([(":status", "200"), ("x", "y" * 40)])
    data = (
        frame(HEADERS, PADDED | WITH_PRIORITY, one, bytes([3]) + b"12345" + block[:7] + b"\0" * 3)
        + frame(CONTINUATION, 0, one, block[7:9])
        + frame(CONTINUATION, END_HEADERS, one, block[9:])
        + peer.head(two, a="b")
        + b"".join(frame(DATA, 0, one if n % 2 else two, bytes([n]) * n) for n in range(60))
        + frame(DATA, PADDED, one, bytes([4]) + b"end" + b"\0" * 4)
        + frame(PRIORITY, 0, two, b"12345")
        + frame(0xEE, 0xFF, two, b"nobody knows this")
        + peer.head(one, ends=True, status="0")
        + frame(DATA, END, two)
    )
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in pairwise(edges):
        peer.says(data[start:end])
    assert first.heads == [[(b":status", b"200"), (b"x", b"y" * 40)], [(b":status", b"200"), (b"status", b"0")]]
    assert second.heads == [[(b":status", b"200"), (b"a", b"b")]]
    assert first.body == b"".join(bytes([n]) * n for n in range(60) if n % 2) + b"end"
    assert second.body == b"".join(bytes([n]) * n for n in range(60) if not n % 2)
    assert first.has_ended
    assert second.has_ended
    assert peer.client.streams == 0
    assert first.settlements <= len(edges) - 1


def test_a_read_with_many_frames_settles_once() -> None:
    """What came at once can be handed on at once."""
    peer = Peer()
    number, told = peer.open()
    peer.says(peer.head(number) + frame(DATA, 0, number, b"x") * 50)
    assert told.settlements == 1
    assert told.body == b"x" * 50


def test_credit_comes_back_in_halves_of_a_window() -> None:
    """And for the whole connection seldom."""
    peer = Peer()
    number, told = peer.open()
    peer.frames()
    for _ in range(100):
        peer.says(frame(DATA, 0, number, b"x" * 16_000))
    given_back = peer.frames()
    assert all(kind == WINDOW for kind, *_ in given_back)
    of_stream = sum(int.from_bytes(payload, "big") for *_, to, payload in given_back if to == number)
    assert 1_600_000 - WINDOW_BYTES // 2 <= of_stream <= 1_600_000
    assert sum(to == 0 for *_, to, _ in given_back) == 1
    assert len(told.body) == 1_600_000


def test_a_stream_that_is_held_gets_no_credit() -> None:
    """So its server must stop after a window; more than that is a breach. The others go on."""
    peer = Peer()
    (held, told), (other, _) = peer.open(), peer.open()
    peer.frames()
    peer.client.hold(held)
    for _ in range(4):
        peer.says(frame(DATA, 0, held, b"x" * 16_384))
        peer.says(frame(DATA, 0, other, b"x" * 16_384))
    assert {to for *_, to, _ in peer.frames()} == {other}
    assert len(told.body) == WINDOW_BYTES
    peer.client.release(held)
    assert peer.frames() == [(WINDOW, 0, held, word(WINDOW_BYTES))]
    peer.client.hold(held)
    for _ in range(4):
        peer.says(frame(DATA, 0, held, b"x" * 16_384))
    with pytest.raises(ConnectionBroken):
        peer.says(frame(DATA, 0, held, b"x"))


def test_a_large_request_waits_for_the_windows() -> None:
    """Of its stream and of the connection; frames are as large as the server takes them."""
    peer = Peer(setting(4, 30_000))
    body = bytes(range(256)) * 400
    number, _ = peer.open(body)
    sent = b""

    def take() -> int:
        nonlocal sent
        frames = [frame for frame in peer.frames() if frame[0] == DATA]
        assert all(len(payload) <= 16_384 for *_, payload in frames)
        sent += b"".join(payload for *_, payload in frames)
        assert all(bool(flags & END) == (len(sent) == len(body)) for _, flags, *_ in frames[-1:])
        return len(sent)

    assert take() == 30_000
    peer.says(frame(WINDOW, 0, number, word(50_000)))
    assert take() == 65_535, "the connection's window"
    peer.says(frame(WINDOW, 0, 0, word(1_000_000)))
    assert take() == 80_000
    peer.says(frame(SETTINGS, 0, 0, setting(4, 10_000)))  # 20,000 less than there was
    peer.says(frame(WINDOW, 0, number, word(20_000)))
    assert take() == 80_000
    peer.says(frame(SETTINGS, 0, 0, setting(4, 1 << 20) + setting(5, 1 << 15)))
    frames = [frame for frame in peer.frames() if frame[0] == DATA]
    assert sent + b"".join(payload for *_, payload in frames) == body
    assert [flags for _, flags, *_ in frames] == [END]


def test_a_cancel_is_a_reset_and_nothing_more_is_heard() -> None:
    """What is on its way is taken apart all the same: its head changes the table, its bytes count for the window."""
    peer = Peer()
    (gone, told), (stays, other) = peer.open(), peer.open()
    peer.frames()
    peer.client.cancel(gone)
    peer.client.cancel(gone)
    assert peer.frames() == [(RST, 0, gone, word(CANCEL))]
    peer.says(peer.head(gone, long="header") + frame(DATA, END, gone, b"late") + peer.head(stays, long="header"))
    assert told.heads == []
    assert other.heads == [[(b":status", b"200"), (b"long", b"header")]]


def test_an_answer_before_the_request_was_sent() -> None:
    """A server that refuses a large request need not get the rest of it."""
    peer = Peer()
    number, told = peer.open(b"x" * 100_000)
    peer.frames()
    peer.says(peer.head(number, ends=True))
    assert told.has_ended
    assert peer.frames() == [(RST, 0, number, word(CANCEL))]
    peer.says(frame(WINDOW, 0, 0, word(100_000)))
    assert peer.frames() == []


def test_pings_are_answered() -> None:
    """And answers to pings are not."""
    peer = Peer()
    peer.says(frame(PING, 0, 0, b"12345678") + frame(PING, ACK, 0, b"87654321"))
    assert peer.frames() == [(PING, ACK, 0, b"12345678")]


def test_a_farewell_refuses_what_it_did_not_take() -> None:
    """Earlier streams go on; no new one is opened."""
    peer = Peer()
    (one, first), (_, second) = peer.open(), peer.open()
    peer.says(frame(GOAWAY, 0, 0, word(one) + word(0)))
    assert second.code == REFUSED_STREAM
    assert second.settlements == 1
    assert first.code is None
    assert not peer.client.can_open
    assert peer.client.is_leaving
    peer.says(frame(DATA, END, one, b"all"))
    assert first.body == b"all"


def test_only_so_many_streams_as_the_server_allows() -> None:
    """A place is free again when one has ended."""
    peer = Peer(setting(3, 1))
    number, _ = peer.open()
    assert not peer.client.can_open
    peer.says(frame(RST, 0, number, word(8)))
    assert peer.client.can_open


def test_a_loss_is_told_to_all() -> None:
    """Once."""
    peer = Peer()
    told = [peer.open()[1] for _ in range(3)]
    peer.client.lost()
    peer.client.lost()
    assert [one.code for one in told] == [REFUSED_STREAM] * 3
    assert not peer.client.can_open


BROKEN = {
    "a frame that is too large": b"\x00\x40\x01" + bytes([DATA, 0]) + word(1),
    "data for the connection": frame(DATA, 0, 0, b"x"),
    "data of a stream that nobody opened": frame(DATA, 0, 9, b"x"),
    "data of a stream of the server's": frame(DATA, 0, 2, b"x"),
    "more padding than frame": frame(DATA, PADDED, 1, b"\x05abcd"),
    "padding without a length": frame(DATA, PADDED, 1),
    "a head that is no HPACK": frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
    "a priority that is cut off": frame(HEADERS, END_HEADERS | WITH_PRIORITY, 1, b"123"),
    "a head that is interrupted": frame(HEADERS, 0, 1, b"\x88") + frame(PING, 0, 0, b"12345678"),
    "a head that another stream goes on with": frame(HEADERS, 0, 1, b"\x88") + frame(CONTINUATION, 4, 3, b""),
    "data inside a head": frame(HEADERS, 0, 1, b"\x88") + frame(DATA, 0, 1, b"x"),
    "a continuation of nothing": frame(CONTINUATION, END_HEADERS, 1, b"\x88"),
    "a head without end": frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1, b"x" * 16_000) * 5,
    "a push": frame(PUSH, END_HEADERS, 1, word(2) + b"\x88"),
    "settings of a stream": frame(SETTINGS, 0, 1),
    "settings that are cut off": frame(SETTINGS, 0, 0, b"12345"),
    "an acknowledgement with settings": frame(SETTINGS, ACK, 0, setting(4, 1)),
    "a window that is too large": frame(SETTINGS, 0, 0, setting(4, 1 << 31)),
    "a frame size that is too small": frame(SETTINGS, 0, 0, setting(5, 100)),
    "a ping of a stream": frame(PING, 0, 1, b"12345678"),
    "a ping that is cut off": frame(PING, 0, 0, b"1234"),
    "a farewell that is cut off": frame(GOAWAY, 0, 0, word(1)),
    "a window that grows by nothing": frame(WINDOW, 0, 0, word(0)),
    "a window that overflows": frame(WINDOW, 0, 0, word(MOST_WINDOW_BYTES)),
    "a stream's window that overflows": frame(WINDOW, 0, 1, word(MOST_WINDOW_BYTES)),
    "a window without a size": frame(WINDOW, 0, 1, b"12"),
    "a reset of nothing": frame(RST, 0, 0, word(8)),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_breach_ends_the_connection(name: str, at_once: bool) -> None:
    """It is said in a farewell; what was told before stays told, and nothing is told of the breach."""
    peer = Peer()
    _, told = peer.open()
    peer.frames()
    good, bad = frame(DATA, 0, 1, b"good"), BROKEN[name]

    def say() -> None:
        if at_once:
            peer.says(good + bad)
        else:
            for position in range(len(good + bad)):
                peer.says((good + bad)[position : position + 1])

    with pytest.raises(ConnectionBroken) as broken:
        say()
    assert told.body == b"good"
    farewells = [payload for kind, *_, payload in peer.frames() if kind == GOAWAY]
    assert [int.from_bytes(payload[4:], "big") for payload in farewells] == [broken.value.code]
    assert broken.value.code != 0


def test_a_server_that_speaks_something_else() -> None:
    """HTTP/1.1 for example."""
    peer = Peer.__new__(Peer)
    peer.sent = b""
    with pytest.raises(ConnectionBroken):
        Http2Client(peer.write).receive(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")


@given(st.binary(max_size=200), st.integers(0, 9), st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 1 << 31]))
def test_no_bytes_do_more_than_break_it(payload: bytes, kind: int, flags: int, number: int) -> None:
    """Whatever comes is understood, ignored or a breach."""
    peer = Peer()
    peer.open()
    try:
        peer.says(frame(kind, flags, number, payload))
        peer.says(payload)
    except ConnectionBroken:
        pass
