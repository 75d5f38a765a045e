"""A connection to the Redis that has a key: one call at a time, a deadline, and ``CounterUnavailable`` if it fails.

Floor: ``ledger`` edge. It knows neither URLs nor who has which key: that is ``ledger.counter.url`` and
``ledger.counter.topology``. A call that fails in any way but a plain error reply closes the connection: an answer that
comes late must never be taken for the answer of the next call. The next call connects again, and finds out anew where.

A call is repeated only where it is sure that nothing was done: when a cluster's node says that the slot is elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from redis.exceptions import AskError, MovedError, NoScriptError, RedisError, ResponseError, TryAgainError

from ledger.counter.node import Command, Node, is_misled, lost, pack, refused
from ledger.counter.topology import route_to
from ledger.counter.url import Address, read_redis_url
from ledger.counter.values import CounterUnavailable

__all__ = ["Command", "RedisLink", "UnknownScript", "pack"]

MOVING_PAUSE_S = 0.05
"""Between two tries while a slot's keys are on both sides."""


class UnknownScript(Exception):
    """NOSCRIPT: this Redis was restarted, or its scripts were flushed."""


class _NotSent(CounterUnavailable):
    """Nothing was sent, or only what was not done; the connection is in step."""


class RedisLink:
    """A lazily connected, self-healing connection. Not for two calls at once: its owner sees to that."""

    def __init__(self, url: str, key: str = "") -> None:
        """A link to the server of ``url`` (see ``ledger.counter.url``) that has ``key``; a cluster needs a key.

        Raises:
            ValueError: the URL makes no sense; the text is fit for an operator.
        """
        self._route = route_to(read_redis_url(url), key)
        self._node: Node | None = None
        self._aside: Node | None = None
        """The node that a slot is on its way to, while it is."""
        self._generation = 0

    @property
    def generation(self) -> int:
        """The number of the current connection, or of the last one; it rises with each."""
        return self._generation

    @property
    def run_id(self) -> str:
        """Names this run of the server that the current connection leads to; empty without one, or if it hides it."""
        return self._node.run_id if self._node is not None else ""

    async def call(self, command: Command, timeout_s: float, *, generation: int | None = None) -> Any:
        """Send one command and return its reply (RESP2: bytes, int, None, list).

        Args:
            command: packed; or a function that packs it for the run id of the server that it is sent to.
            generation: send it on this connection or not at all.

        Raises:
            CounterUnavailable: no connection, no answer in time, or an error reply.
            UnknownScript: NOSCRIPT.
        """
        try:
            async with asyncio.timeout(timeout_s) as limit:
                moves = 0
                while True:
                    node = await self._ready(generation)
                    try:
                        return await node.call(command)
                    except MovedError as moved:
                        await self._follow(moved, node, generation)
                        moves += 1
                        if moves > 3:  # nodes that do not agree on who has the slot
                            await _pause(limit)
                    except AskError as ask:
                        if generation is not None:
                            raise _NotSent("unreachable", "the slot is on its way to another node") from None
                        with contextlib.suppress(TryAgainError, MovedError):
                            return await self._call_aside(_target(ask, node), command)
                        await _pause(limit)
                    except TryAgainError:
                        await _pause(limit)
        except TimeoutError:
            await self._give_up()
            raise CounterUnavailable("timeout", f"no answer from Redis within {timeout_s:.3g} s") from None
        except _NotSent as refusal:
            raise CounterUnavailable(refusal.reason, refusal.detail) from None
        except NoScriptError:
            raise UnknownScript from None
        except ResponseError as error:
            if is_misled(error):
                await self._give_up()
            raise refused(error) from None
        except (RedisError, OSError) as error:
            await self._give_up()
            raise lost(error) from None
        except BaseException:  # cancelled, not a master, or a reply that is no RESP: the connection is out of step
            await self._give_up()
            raise

    async def close(self) -> None:
        """Drop the connection, without waiting for the peer."""
        node, self._node = self._node, None
        aside, self._aside = self._aside, None
        for one in (node, aside):
            if one is not None:
                await one.close()

    async def _ready(self, generation: int | None) -> Node:
        node = self._node
        # Redis may have been restarted since: an idle connection that was closed is not asked anything.
        usable = node is not None and await node.is_usable() and await self._route.agrees(node)
        if generation is not None and (not usable or generation != self._generation):
            raise _NotSent("unreachable", "the connection that this belongs to is gone")
        if node is not None and usable:
            return node
        await self.close()
        return self._adopt(await self._route.open())

    def _adopt(self, node: Node) -> Node:
        self._generation += 1
        self._node = node
        return node

    async def _follow(self, moved: MovedError, node: Node, generation: int | None) -> None:
        """Go where the slot has gone; a call that belongs to the connection that was left fails."""
        target = _target(moved, node)
        await self.close()
        if generation is not None:
            raise CounterUnavailable("unreachable", "the slot has gone to another node")
        self._adopt(await self._route.open_at(target))

    async def _call_aside(self, address: Address, command: Command) -> Any:
        aside = self._aside
        if aside is None or aside.address != address or not await aside.is_usable():
            self._aside = None
            if aside is not None:
                await aside.close()
            aside = self._aside = await self._route.open_at(address)
        return await aside.call(command, asking=True)

    async def _give_up(self) -> None:
        self._route.doubt()
        await self.close()


async def _pause(limit: asyncio.Timeout) -> None:
    """Give a slot time to move; nothing was done so far, and that is better said than a timeout."""
    deadline_s = limit.when()
    if deadline_s is not None and deadline_s - asyncio.get_running_loop().time() < 2 * MOVING_PAUSE_S:
        raise _NotSent("busy", "the slot of this shard is on its way to another node")
    await asyncio.sleep(MOVING_PAUSE_S)


def _target(redirection: AskError, node: Node) -> Address:
    """Where a redirection leads. One without a host means another port of the same host."""
    host = redirection.host or (node.address[0] if node.address is not None else "")
    return host, int(redirection.port)
