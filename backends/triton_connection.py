"""Connections to one Triton server for the calls that stream: HTTP/2 on asyncio protocols, shared by all streams.

Floor: edge. What is on the wire is `backends.wire.triton.http2`'s and `grpc_messages`'s; here are sockets, and which
connection a call goes by. A connection is made when a call needs one and none has room: after a loss, after a farewell,
or where the server allows only so many streams on each. gRPC's own library takes a thread, a wake-up and a future for
every message, several times what a message costs here (gateway/decisions/0027).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import cast
from urllib.parse import urlsplit

from backends.triton_limits import TritonLimits
from backends.wire.triton.grpc_messages import CallStream, MessageReceiver, frame_message, timeout_header
from backends.wire.triton.http2 import ConnectionBroken, Http2Client, header_block

log = logging.getLogger("pareta.triton")

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
UNANSWERED_MS = 20_000
"""A peer that does not even acknowledge bytes for so long is gone; the kernel closes the connection then."""
QUIET_S = 30
"""Silence after which the kernel asks whether the peer is there. Pings of HTTP/2 would make the server hang up."""
CLOSING_S = 1.0
"""How long the last bytes of a connection may take."""


class InferStream:
    """One call. Its receiver hears of messages until it is over, or cancelled."""

    __slots__ = ("_body", "_call", "_connection", "_number", "_owner", "receiver")

    def __init__(self, owner: TritonConnections, receiver: MessageReceiver, body: bytes, most_bytes: int) -> None:
        self._owner = owner
        self._body = body
        self._call = CallStream(receiver, most_bytes=most_bytes)
        self._connection: TritonConnection | None = None
        self._number = 0
        self.receiver = receiver

    def hold(self) -> None:
        """Tell nothing more, and let the server send no more than it was allowed already."""
        self._call.hold()
        if self._connection is not None:
            self._connection.http2.hold(self._number)

    def release(self) -> None:
        """Tell what waited, as far as the receiver does not hold it again; then go on."""
        if self._connection is not None:
            self._connection.http2.release(self._number)
        self._call.release()

    def cancel(self) -> None:
        """Stop the model, which sees that its request is cancelled; nothing more is told. Harmless after the end."""
        self._call.silence()
        connection, self._connection = self._connection, None
        if connection is None:
            self._owner.forget(self)
        else:
            connection.http2.cancel(self._number)
            self._owner.left(connection)

    def begin(self, connection: TritonConnection, head: bytes) -> None:
        """Send the request."""
        self._connection = connection
        body, self._body = self._body, b""
        self._number = connection.http2.open(head, body, self._call)

    def give_up(self) -> None:
        """There is no connection for it."""
        self.receiver.ended("UNAVAILABLE", "failed to connect")


class TritonConnection(asyncio.Protocol):
    """The protocol object of one connection."""

    def __init__(self, lost: Callable[[TritonConnection], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self.http2: Http2Client
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to speak."""
        self._transport = cast(asyncio.Transport, transport)
        _watch(transport.get_extra_info("socket"))
        self.http2 = Http2Client(self._transport.write)

    def data_received(self, data: bytes) -> None:
        """Hand it on; receivers push to their clients from here."""
        http2 = self.http2
        try:
            http2.receive(data)
        except ConnectionBroken as broken:
            log.warning("A Triton server broke HTTP/2, and the connection was closed: %s.", broken)
            self.close()
            http2.lost()
            return
        if not self.ready.done() and http2.has_settings:
            self.ready.set_result(None)
        if http2.is_leaving and not http2.streams:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Every stream on it is lost with it."""
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the connection was closed before the server spoke"))
            self.ready.exception()  # whoever waited may have gone
        self._transport = None
        self._lost(self)
        self.http2.lost()
        self.closed.set_result(None)

    def close(self) -> None:
        """Write what is left, and close."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is left to be written."""
        if self._transport is not None:
            self._transport.abort()


class TritonConnections:
    """All connections of this process to one server.

    Args:
        target: ``host:port``.
        limits: bounds.
    """

    def __init__(self, target: str, limits: TritonLimits) -> None:
        parts = urlsplit(f"//{target}")
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._limits = limits
        self._open: list[TritonConnection] = []
        self._waiting: dict[InferStream, None] = {}  # in order
        self._connecting: asyncio.Task[None] | None = None
        self._is_closed = False
        self._head = header_block([
            (":method", "POST"),
            (":scheme", "http"),
            (":path", METHOD),
            (":authority", target),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "pareta-gateway"),
            ("grpc-timeout", timeout_header(limits.deadline_s)),
        ])  # fmt: skip

    def infer(self, request: bytes, receiver: MessageReceiver) -> InferStream:
        """Send an encoded request; ``receiver`` hears of everything from the event loop, never from within."""
        stream = InferStream(self, receiver, frame_message(request), self._limits.max_answer_bytes)
        for connection in self._open:
            if connection.http2.can_open:
                stream.begin(connection, self._head)
                return stream
        self._waiting[stream] = None
        self._connect()
        return stream

    def forget(self, stream: InferStream) -> None:
        """It waits no more."""
        self._waiting.pop(stream, None)

    def left(self, connection: TritonConnection) -> None:
        """A stream on it is over: a place is free for one that waits, or it is of no more use."""
        http2 = connection.http2
        while self._waiting and http2.can_open:
            self._begin_first(connection)
        if not http2.streams and (http2.is_leaving or self._is_closed or self._is_spare(connection)):
            self._was_lost(connection)
            asyncio.get_running_loop().call_soon(connection.close)  # it may be in the middle of a read

    def hang_up(self) -> None:
        """Close all connections that are there, without waiting for their ends."""
        self._is_closed = True
        for connection in list(self._open):
            connection.close()

    async def close(self) -> None:
        """Close all; what still runs is lost."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        self._give_up()
        connections = list(self._open)
        for connection in connections:
            connection.close()
        if connections:
            try:
                await asyncio.wait([connection.closed for connection in connections], timeout=CLOSING_S)
            finally:
                # A server that reads no more would keep them open for ever.
                for connection in connections:
                    connection.abort()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _is_spare(self, connection: TritonConnection) -> bool:
        return any(other is not connection and not other.http2.is_leaving for other in self._open)

    def _connect(self) -> None:
        if self._connecting is None and not self._is_closed:
            self._connecting = asyncio.get_running_loop().create_task(self._make_connection())

    async def _make_connection(self) -> None:
        """Make one, and begin on it what waits."""
        connection: TritonConnection | None = None
        try:
            async with asyncio.timeout(self._limits.connect_timeout_s):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: TritonConnection(self._was_lost), self._host, self._port
                )
                await connection.ready
        except (OSError, TimeoutError):
            if connection is not None:
                connection.close()
            self._give_up()
            return
        except BaseException:
            # Closed meanwhile, before the server spoke: nobody else knows of it.
            if connection is not None:
                connection.abort()
            raise
        finally:
            self._connecting = None
        self._open.append(connection)
        if not connection.http2.can_open:
            self._give_up()  # it allows nothing at all
        while self._waiting and connection.http2.can_open:
            self._begin_first(connection)
        if self._waiting:
            self._connect()

    def _begin_first(self, connection: TritonConnection) -> None:
        stream = next(iter(self._waiting))
        del self._waiting[stream]
        stream.begin(connection, self._head)

    def _give_up(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for stream in waiting:
            stream.give_up()

    def _was_lost(self, connection: TritonConnection) -> None:
        if connection in self._open:
            self._open.remove(connection)


def _watch(sock: socket.socket | None) -> None:
    """Have the kernel notice a peer that vanished without a word, where it can."""
    if sock is None:
        return
    for name, value in (("TCP_USER_TIMEOUT", UNANSWERED_MS), ("TCP_KEEPIDLE", QUIET_S)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
