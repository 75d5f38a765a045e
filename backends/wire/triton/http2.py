"""The client's side of one HTTP/2 connection, as far as calls of gRPC need it: bytes in, frames told, bytes out.

Floor: wire (pure). Knows frames and flow control, nothing of gRPC or of what a stream is about. Header blocks are
hpack's. No push, no priorities, no request trailers.
Source: RFC 9113.

What a receiver has not asked to wait for is credited to its stream at once, in steps of half a window; a stream that is
held gets no credit, so that its server can send no more than a window and memory stays bounded. The connection's own
window is as large as it can be: the streams' windows are the bound.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Protocol

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 65_536
"""What a server may send of a stream before it gets more credit."""
MOST_HEADER_BYTES = 65_536
MOST_FRAME_BYTES = 16_384
"""Of a frame that we take; the least that a peer must be allowed."""
MOST_WINDOW_BYTES = (1 << 31) - 1
LAST_STREAM_ID = (1 << 31) - 1
_FIRST_WINDOW = 65_535
_CREDIT_STEP = WINDOW_BYTES // 2
_CONNECTION_STEP = 1 << 20

NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0, 1, 3, 6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 7, 8, 9, 11

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
_TABLE_SIZE, _ENABLE_PUSH, _CONCURRENT, _FIRST_WINDOW_SIZE, _FRAME_SIZE, _HEADER_LIST = range(1, 7)

_HEAD = struct.Struct(">IBI")
"""Length and type, flags, stream."""
_HEAD_BYTES = 9
_SETTING = struct.Struct(">HI")
_WORD = struct.Struct(">I")

Headers = list[tuple[bytes, bytes]]


class ConnectionBroken(Exception):
    """The peer broke the protocol, and the connection with it. ``code`` is HTTP/2's for it."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class StreamReceiver(Protocol):
    """Who listens to a stream. After an end or a reset it hears nothing more but one `settled`."""

    def headers(self, headers: Headers, *, ends: bool) -> None:
        """A head, or trailers."""

    def data(self, data: bytes, *, ends: bool) -> None:
        """Some bytes of the body."""

    def settled(self) -> None:
        """All that came in one read was told."""

    def reset(self, code: int) -> None:
        """The server, or the end of the connection, broke the stream off."""


class _Stream:
    __slots__ = ("credit", "is_held", "is_touched", "number", "receiver", "room", "uncredited", "unsent")

    def __init__(self, number: int, receiver: StreamReceiver, room: int) -> None:
        self.number = number
        self.receiver = receiver
        self.room = room  # bytes that we may send
        self.credit = WINDOW_BYTES  # bytes that the server may send
        self.uncredited = 0  # received, and not credited again
        self.is_held = False
        self.is_touched = False
        self.unsent: bytes | None = None


class Http2Client:
    """The state of a connection.

    Args:
        write: takes bytes for the peer, in order.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._out: list[bytes] | None = None  # while a read is taken apart
        self._rest = b""
        self._streams: dict[int, _Stream] = {}
        self._blocked: dict[int, _Stream] = {}  # have something to send and may not
        self._touched: list[_Stream] = []
        self._next_number = 1
        self._decoder = hpack.Decoder(max_header_list_size=MOST_HEADER_BYTES)
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags and bytes of a header block without end
        self._room = _FIRST_WINDOW
        self._first_room = _FIRST_WINDOW
        self._frame_bytes = MOST_FRAME_BYTES
        self._most_streams = MOST_WINDOW_BYTES
        self._uncredited = 0
        self._is_leaving = False
        self._has_settings = False
        settings = ((_ENABLE_PUSH, 0), (_FIRST_WINDOW_SIZE, WINDOW_BYTES), (_HEADER_LIST, MOST_HEADER_BYTES))
        write(
            PREFACE
            + _frame(_SETTINGS, 0, 0, b"".join([_SETTING.pack(*setting) for setting in settings]))
            + _frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(MOST_WINDOW_BYTES - _FIRST_WINDOW))
        )

    @property
    def streams(self) -> int:
        """How many are open."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Whether a stream may be opened here: the peer said what it allows, allows one more, and is not leaving."""
        return self._has_settings and not self.is_leaving and len(self._streams) < self._most_streams

    @property
    def has_settings(self) -> bool:
        """Whether the peer has spoken, and speaks HTTP/2."""
        return self._has_settings

    @property
    def is_leaving(self) -> bool:
        """Whether no stream will ever be opened here again."""
        return self._is_leaving or self._next_number > LAST_STREAM_ID

    # -- what we send --------------------------------------------------------------------------------------------------

    def open(self, head: bytes, body: bytes, receiver: StreamReceiver) -> int:
        """Send a request whole; return the stream's number.

        Args:
            head: a header block that needs no table (see `header_block`), smaller than a frame.
        """
        assert self.can_open
        number = self._next_number
        self._next_number += 2
        stream = self._streams[number] = _Stream(number, receiver, self._first_room)
        stream.unsent = body
        size = len(body)
        if size <= self._frame_bytes and size <= stream.room and size <= self._room:  # nearly always
            stream.unsent = None
            stream.room -= size
            self._room -= size
            self._send(_frame(_HEADERS, _END_HEADERS, number, head) + _frame(_DATA, _END_STREAM, number, body))
        else:
            self._send(_frame(_HEADERS, _END_HEADERS, number, head))
            self._send_body(stream)
        return number

    def hold(self, number: int) -> None:
        """Let the server send no more of this stream than it was allowed already."""
        stream = self._streams.get(number)
        if stream is not None:
            stream.is_held = True

    def release(self, number: int) -> None:
        """Give credit again."""
        stream = self._streams.get(number)
        if stream is not None and stream.is_held:
            stream.is_held = False
            if stream.uncredited >= _CREDIT_STEP:
                self._credit(stream)

    def cancel(self, number: int) -> None:
        """Break a stream off; its receiver hears nothing more."""
        if self._forget(number) is not None:
            self._send(_frame(_RST_STREAM, 0, number, _WORD.pack(CANCEL)))

    def _send(self, data: bytes) -> None:
        if self._out is None:
            self._write(data)
        else:
            self._out.append(data)

    def _send_body(self, stream: _Stream) -> None:
        """As much as both windows allow."""
        body = stream.unsent
        assert body is not None
        position, size = 0, len(body)
        while position < size and stream.room > 0 and self._room > 0:
            step = min(size - position, stream.room, self._room, self._frame_bytes)
            flags = _END_STREAM if position + step == size else 0
            self._send(_frame(_DATA, flags, stream.number, body[position : position + step]))
            stream.room -= step
            self._room -= step
            position += step
        if position == size:
            stream.unsent = None
            self._blocked.pop(stream.number, None)
        else:
            stream.unsent = body[position:]
            self._blocked[stream.number] = stream

    def _credit(self, stream: _Stream) -> None:
        self._send(_frame(_WINDOW_UPDATE, 0, stream.number, _WORD.pack(stream.uncredited)))
        stream.credit += stream.uncredited
        stream.uncredited = 0

    def _forget(self, number: int) -> _Stream | None:
        self._blocked.pop(number, None)
        return self._streams.pop(number, None)

    # -- what we receive -----------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what came apart, and tell receivers.

        Raises:
            ConnectionBroken: the peer does not speak HTTP/2 as it should. A GOAWAY was written; the connection is to be
                closed, and `lost` to be called.
        """
        self._out = out = []
        try:
            self._take_apart(self._rest + data if self._rest else data)
        except ConnectionBroken as broken:
            out.append(_frame(_GOAWAY, 0, 0, _WORD.pack(0) + _WORD.pack(broken.code)))
            raise
        finally:
            touched, self._touched = self._touched, []
            try:
                for stream in touched:
                    stream.is_touched = False
                    stream.receiver.settled()
            finally:
                self._out = None
                if out:
                    self._write(b"".join(out))

    def lost(self) -> None:
        """The connection is gone: tell all receivers."""
        self._is_leaving = True
        streams, self._streams = self._streams, {}
        self._blocked.clear()
        for stream in streams.values():
            stream.receiver.reset(REFUSED_STREAM)
            stream.receiver.settled()

    def _take_apart(self, data: bytes) -> None:
        position, size = 0, len(data)
        streams = self._streams
        while size - position >= _HEAD_BYTES:
            word, flags, number = _HEAD.unpack_from(data, position)
            start = position + _HEAD_BYTES
            length = word >> 8
            if length > MOST_FRAME_BYTES:
                raise ConnectionBroken(FRAME_SIZE_ERROR, "a frame is too large")
            position = start + length
            if position > size:
                position = start - _HEAD_BYTES
                break
            kind = word & 0xFF
            if kind == _DATA and self._block is None and not flags & _PADDED:  # nearly always
                stream = streams.get(number)
                if stream is not None and length <= stream.credit:
                    stream.credit -= length
                    stream.uncredited += length
                    if not stream.is_touched:
                        stream.is_touched = True
                        self._touched.append(stream)
                    ends = bool(flags & _END_STREAM)
                    if ends:
                        self._end(stream)
                    stream.receiver.data(data[start:position], ends=ends)
                    if stream.uncredited >= _CREDIT_STEP and not stream.is_held and number in streams:
                        self._credit(stream)
                    self._uncredited += length
                    if self._uncredited >= _CONNECTION_STEP:
                        self._credit_connection()
                    continue
            self._on_frame(kind, flags, number & LAST_STREAM_ID, data[start:position])
        self._rest = data[position:]

    def _credit_connection(self) -> None:
        self._send(_frame(_WINDOW_UPDATE, 0, 0, _WORD.pack(self._uncredited)))
        self._uncredited = 0

    def _on_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """Any frame that is not the usual one."""
        if self._block is not None and (kind != _CONTINUATION or number != self._block[0]):
            raise ConnectionBroken(PROTOCOL_ERROR, "a header block was cut off")
        if not self._has_settings:
            if kind != _SETTINGS or flags & _ACK:
                raise ConnectionBroken(PROTOCOL_ERROR, "this is no HTTP/2")
            self._has_settings = True
        match kind:
            case 0:
                self._on_data(flags, number, payload)
            case 1:
                self._on_headers(flags, number, payload)
            case 3:
                self._on_reset(number, payload)
            case 4:
                self._on_settings(flags, number, payload)
            case 5:
                raise ConnectionBroken(PROTOCOL_ERROR, "a push was not asked for")
            case 6:
                self._on_ping(flags, number, payload)
            case 7:
                self._on_goaway(number, payload)
            case 8:
                self._on_window(number, payload)
            case 9:
                self._on_continuation(flags, payload)
            # A priority means nothing to a client, and an unknown frame is to be ignored.

    def _touch(self, stream: _Stream) -> None:
        if not stream.is_touched:
            stream.is_touched = True
            self._touched.append(stream)

    def _end(self, stream: _Stream) -> None:
        """The server has said all. If it did not want our body, it need not have it."""
        self._forget(stream.number)
        if stream.unsent is not None:
            self._send(_frame(_RST_STREAM, 0, stream.number, _WORD.pack(CANCEL)))

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        self._must_have_been_opened(number)
        size = len(payload)  # padding counts, for both windows
        self._uncredited += size
        if self._uncredited >= _CONNECTION_STEP:
            self._credit_connection()
        stream = self._streams.get(number)
        if stream is None:
            return  # cancelled meanwhile
        if size > stream.credit:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, "the server sent more than it was allowed")
        stream.credit -= size
        stream.uncredited += size
        self._touch(stream)
        ends = bool(flags & _END_STREAM)
        if ends:
            self._end(stream)
        stream.receiver.data(_unpadded(flags, payload), ends=ends)
        if stream.uncredited >= _CREDIT_STEP and not stream.is_held and number in self._streams:
            self._credit(stream)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        self._must_have_been_opened(number)
        fragment = _unpadded(flags, payload)
        if flags & _HAS_PRIORITY:
            if len(fragment) < 5:
                raise ConnectionBroken(FRAME_SIZE_ERROR, "a header block is cut off")
            fragment = fragment[5:]
        self._block = number, flags, bytearray()
        self._on_continuation(flags, fragment)

    def _on_continuation(self, flags: int, fragment: bytes) -> None:
        if self._block is None:
            raise ConnectionBroken(PROTOCOL_ERROR, "a header block has no beginning")
        number, first_flags, block = self._block
        block += fragment
        if len(block) > MOST_HEADER_BYTES:
            raise ConnectionBroken(ENHANCE_YOUR_CALM, "a header block is too large")
        if not flags & _END_HEADERS:
            return
        self._block = None
        try:
            # Decoded for a stream that is gone, too: the table is the connection's.
            decoded = self._decoder.decode(bytes(block), raw=True)
        except hpack.HPACKError:
            raise ConnectionBroken(COMPRESSION_ERROR, "a header block can't be read") from None
        stream = self._streams.get(number)
        if stream is None:
            return
        self._touch(stream)
        ends = bool(first_flags & _END_STREAM)
        if ends:
            self._end(stream)
        stream.receiver.headers([(bytes(name), bytes(value)) for name, value in decoded], ends=ends)

    def _on_reset(self, number: int, payload: bytes) -> None:
        self._must_have_been_opened(number)
        code = _word(payload)
        stream = self._forget(number)
        if stream is not None:
            self._touch(stream)
            stream.receiver.reset(code)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionBroken(PROTOCOL_ERROR, "settings belong to the connection")
        if len(payload) % _SETTING.size or (flags & _ACK and payload):
            raise ConnectionBroken(FRAME_SIZE_ERROR, "settings are cut off")
        if flags & _ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == _CONCURRENT:
                self._most_streams = value
            elif name == _FIRST_WINDOW_SIZE:
                self._change_first_room(value)
            elif name == _FRAME_SIZE:
                if not MOST_FRAME_BYTES <= value < 1 << 24:
                    raise ConnectionBroken(PROTOCOL_ERROR, "no such frame size")
                self._frame_bytes = value
        self._send(_frame(_SETTINGS, _ACK, 0, b""))
        self._send_blocked()

    def _change_first_room(self, value: int) -> None:
        if value > MOST_WINDOW_BYTES:
            raise ConnectionBroken(FLOW_CONTROL_ERROR, "no such window")
        more, self._first_room = value - self._first_room, value
        for stream in self._streams.values():
            stream.room += more  # may be below zero now
            if stream.room > MOST_WINDOW_BYTES:
                raise ConnectionBroken(FLOW_CONTROL_ERROR, "no such window")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise ConnectionBroken(PROTOCOL_ERROR, "a ping belongs to the connection")
        if len(payload) != 8:
            raise ConnectionBroken(FRAME_SIZE_ERROR, "a ping is cut off")
        if not flags & _ACK:
            self._send(_frame(_PING, _ACK, 0, payload))

    def _on_goaway(self, number: int, payload: bytes) -> None:
        if number or len(payload) < 8:
            raise ConnectionBroken(PROTOCOL_ERROR, "a farewell is malformed")
        self._is_leaving = True
        last = _WORD.unpack_from(payload)[0] & LAST_STREAM_ID
        for late in [known for known in self._streams if known > last]:
            stream = self._forget(late)
            assert stream is not None
            self._touch(stream)
            stream.receiver.reset(REFUSED_STREAM)

    def _on_window(self, number: int, payload: bytes) -> None:
        more = _word(payload) & LAST_STREAM_ID
        if number == 0:
            self._room += more
            if more == 0 or self._room > MOST_WINDOW_BYTES:
                raise ConnectionBroken(FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR, "no such window")
            self._send_blocked()
            return
        self._must_have_been_opened(number)
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.room += more
        if more == 0 or stream.room > MOST_WINDOW_BYTES:
            raise ConnectionBroken(FLOW_CONTROL_ERROR if more else PROTOCOL_ERROR, "no such window")
        if stream.unsent is not None:
            self._send_body(stream)

    def _send_blocked(self) -> None:
        for stream in list(self._blocked.values()):
            self._send_body(stream)

    def _must_have_been_opened(self, number: int) -> None:
        if number % 2 == 0 or number >= self._next_number:
            raise ConnectionBroken(PROTOCOL_ERROR, "a frame for a stream that nobody opened")


def header_block(headers: list[tuple[str, str]]) -> bytes:
    """Encode headers so that the block can be sent again and again, on any connection: it empties the peer's table."""
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode(headers, huffman=False))


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    return _HEAD.pack(len(payload) << 8 | kind, flags, number) + payload


def _unpadded(flags: int, payload: bytes) -> bytes:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise ConnectionBroken(PROTOCOL_ERROR, "there is more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def _word(payload: bytes) -> int:
    if len(payload) != _WORD.size:
        raise ConnectionBroken(FRAME_SIZE_ERROR, "a frame is cut off")
    number: int = _WORD.unpack(payload)[0]
    return number
