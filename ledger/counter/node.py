"""One connection to one Redis server, the errors it may answer with, and RESP.

Floor: ``ledger`` edge. Of redis-py it takes what is hard (TLS, AUTH, unix sockets, the RESP parser) and leaves its
command machinery, which costs more CPU than all the rest of a call. Nothing here has a deadline of its own: the
caller's counts.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import (
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from ledger.counter.url import Address
from ledger.counter.values import CounterUnavailable, UnavailableReason

ROLE_CHECK_S = 1.0
"""A connection that was silent about its server's role for so long has the question sent along with the next call."""

Command = bytes | Callable[[str], bytes]
"""A packed command, or what packs one for the server with this run id."""

_REASONS: Mapping[str, UnavailableReason] = {
    "FENCED": "fenced",
    "BEHIND": "fenced",
}


@dataclass(frozen=True, slots=True)
class Access:
    """How to connect to servers of one sort: all but the address."""

    connection: type[AbstractConnection]
    arguments: Mapping[str, Any] = field(repr=False)

    async def dial(self, address: Address | None) -> AbstractConnection:
        """Connect and log in. ``address`` None: a unix socket, which is among the arguments."""
        where: dict[str, Any] = {} if address is None else {"host": address[0], "port": address[1]}
        connection = self.connection(**self.arguments, **where)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def ask(self, address: Address, *words: str) -> Any:
        """Ask one question on a connection of its own."""
        connection = await self.dial(address)
        try:
            await connection.send_packed_command(pack(*words), check_health=False)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)


class Node:
    """An open connection to a master. Not for two calls at once."""

    __slots__ = ("_checked_s", "_connection", "_tells_role", "address", "run_id")

    def __init__(self, connection: AbstractConnection, address: Address | None) -> None:
        self._connection = connection
        self.address = address
        self.run_id = ""
        """Names this run of the server; empty if it does not say. A restarted server has another one."""
        self._tells_role = True
        self._checked_s = time.monotonic()

    @classmethod
    async def open(cls, access: Access, address: Address | None) -> Self:
        """Connect to a server and make sure that it is a master.

        Raises:
            CounterUnavailable: it is none.
            RedisError, OSError: there is no connection.
        """
        node = cls(await access.dial(address), address)
        try:
            await node._greet()
        except BaseException:
            await node.close()
            raise
        return node

    async def is_usable(self) -> bool:
        """Whether the connection is open, as far as is known, and in step: nothing came that was not asked for."""
        return self._connection.is_connected and not await self._connection.can_read()

    async def call(self, command: Command, *, asking: bool = False) -> Any:
        """Send a command and read its reply.

        Args:
            asking: say ASKING first, as a cluster's node wants it for a slot that is on its way to it.

        Raises:
            CounterUnavailable: this is no master any more; what the command has done nobody knows.
            RedisError, OSError: an error reply (``ResponseError``), or the connection is lost.
        """
        packed = command if isinstance(command, bytes) else command(self.run_id)
        role_due = self._tells_role and time.monotonic() - self._checked_s > ROLE_CHECK_S
        before = (_ROLE if role_due else b"") + (_ASKING if asking else b"")
        await self._connection.send_packed_command(before + packed if before else packed, check_health=False)
        # An error reply to one of these (BUSY, say) must not leave the others unread.
        if role_due:
            with contextlib.suppress(ResponseError):
                self._be_master(await self._connection.read_response())
        if asking:
            with contextlib.suppress(ResponseError):
                await self._connection.read_response()
        return await self._connection.read_response()

    async def close(self) -> None:
        """Drop the connection, without waiting for the peer."""
        await self._connection.disconnect(nowait=True)

    async def _greet(self) -> None:
        await self._connection.send_packed_command(_ROLE + pack("INFO", "server"), check_health=False)
        try:
            self._be_master(await self._connection.read_response())
        except NoPermissionError:
            self._tells_role = False
        try:
            found = re.search(rb"^run_id:(\w+)", await self._connection.read_response(), re.MULTILINE)
        except NoPermissionError:
            found = None
        self.run_id = found[1].decode() if found else ""

    def _be_master(self, role: Any) -> None:
        self._checked_s = time.monotonic()
        if role[0] == b"sentinel":
            raise CounterUnavailable("unreachable", f"{self._name} is a sentinel; use redis+sentinel://…/service")
        if role[0] != b"master":
            raise CounterUnavailable("unreachable", f"{self._name} is a replica and takes no writes")

    @property
    def _name(self) -> str:
        return "this Redis" if self.address is None else f"the Redis at {self.address[0]}:{self.address[1]}"


def pack(*words: str | bytes | int) -> bytes:
    """A command in RESP."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


_ROLE = pack("ROLE")
_ASKING = pack("ASKING")


def is_misled(error: ResponseError) -> bool:
    """Whether an error reply says that this server is the wrong one to ask. Nothing was done then."""
    # A script that may not write says so inside its own error (Redis 6.2), at its first write.
    return isinstance(error, ReadOnlyError | MasterDownError | ClusterDownError) or "-READONLY " in str(error)


def refused(error: ResponseError) -> CounterUnavailable:
    """What an error reply means to a caller."""
    text = str(error)
    if is_misled(error) or isinstance(error, NoPermissionError):
        return CounterUnavailable("unreachable", text[:300])
    return CounterUnavailable(_REASONS.get(text.split(" ", 1)[0], "busy"), text[:300])


def lost(error: RedisError | OSError) -> CounterUnavailable:
    """What a lost connection, or one that never was, means to a caller."""
    text = str(error)
    # LOADING arrives as an exception of its own kind; a Redis that is still reading its disk is busy, not gone.
    reason: UnavailableReason = "busy" if "loading the dataset" in text.lower() else "unreachable"
    return CounterUnavailable(reason, text[:300])
