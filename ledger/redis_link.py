"""One connection to Redis, one call at a time, with a deadline; every failure becomes ``CounterUnavailable``.

Floor: ``ledger`` edge; the only module that touches redis-py. Of redis-py it takes what is hard (URLs, TLS, AUTH,
unix sockets, the RESP parser) and leaves its command machinery, which costs more CPU than all the rest of a call.
A call that fails in any way but a plain error reply closes the connection: an answer that comes late must never be
taken for the answer of the next call. The next call connects again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from redis.asyncio.connection import AbstractConnection, Connection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ledger.counter_values import CounterUnavailable, UnavailableReason

_REASONS: Mapping[str, UnavailableReason] = {
    "FENCED": "fenced",
    "BEHIND": "fenced",
    "BUSY": "busy",
    "LOADING": "busy",
    "OOM": "busy",
    "MISCONF": "busy",
    "NOREPLICAS": "busy",
    "CLUSTERDOWN": "unreachable",
    "MASTERDOWN": "unreachable",
    "READONLY": "unreachable",
    "NOAUTH": "unreachable",
    "WRONGPASS": "unreachable",
    "NOPERM": "unreachable",
}


class UnknownScript(Exception):
    """NOSCRIPT: this Redis was restarted, or its scripts were flushed."""


class RedisLink:
    """A lazily connected, self-healing connection. Not for two calls at once: its owner sees to that."""

    def __init__(self, url: str, key: str = "") -> None:
        """``url``: ``redis://``, ``rediss://`` or ``unix://``. Raises ValueError if it is none of these."""
        self._settings: dict[str, Any] = dict(parse_url(url))
        self._class: type[AbstractConnection] = self._settings.pop("connection_class", Connection)
        # Deadlines are ours; retries would repeat a call whose outcome is unknown.
        for name in ("socket_timeout", "socket_connect_timeout", "retry_on_timeout", "max_connections", "timeout"):
            self._settings.pop(name, None)
        self._settings |= {
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": None,
            "decode_responses": False,
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
        }
        self._connection: AbstractConnection | None = None

    @property
    def connected(self) -> bool:
        """Whether a connection is open as far as is known."""
        return self._connection is not None and self._connection.is_connected

    async def call(self, packed: bytes, timeout_s: float) -> Any:
        """Send one packed command and return its reply (RESP2: bytes, int, None, list).

        Raises:
            CounterUnavailable: no connection, no answer in time, or an error reply.
            UnknownScript: NOSCRIPT.
        """
        try:
            async with asyncio.timeout(timeout_s):
                connection = self._connection
                # Redis may have been restarted since: an idle connection that was closed is not asked anything.
                if connection is None or not connection.is_connected or await connection.can_read():
                    connection = await self._connect()
                await connection.send_packed_command(packed, check_health=False)
                return await connection.read_response()
        except TimeoutError:
            await self.close()
            raise CounterUnavailable("timeout", f"no answer from Redis within {timeout_s:.3g} s") from None
        except NoScriptError:
            raise UnknownScript from None
        except ResponseError as error:
            raise _refused(str(error)) from None
        except (RedisError, OSError) as error:
            await self.close()
            raise _lost(error) from None
        except BaseException:  # cancelled, or a reply that is no RESP: the connection is out of step
            await self.close()
            raise

    async def close(self) -> None:
        """Drop the connection, without waiting for the peer."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def _connect(self) -> AbstractConnection:
        await self.close()
        connection = self._connection = self._class(**self._settings)
        await connection.connect()  # type: ignore[no-untyped-call]
        return connection


def pack(*words: str | bytes | int) -> bytes:
    """A command in RESP."""
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word if isinstance(word, bytes) else str(word).encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)


def _refused(text: str) -> CounterUnavailable:
    return CounterUnavailable(_REASONS.get(text.split(" ", 1)[0], "busy"), text[:300])


def _lost(error: Exception) -> CounterUnavailable:
    text = str(error)
    # LOADING arrives as an exception of its own kind; a Redis that is still reading its disk is busy, not gone.
    reason: UnavailableReason = "busy" if "loading the dataset" in text.lower() else "unreachable"
    return CounterUnavailable(reason, text[:300])
