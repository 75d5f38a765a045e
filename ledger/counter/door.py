"""The guardian's hand on one shard of Redis: look at it, fence it, wipe it, open it.

Floor: ``ledger`` edge. Everything after :meth:`ShardDoor.look` happens on the connection that looked, and fails if that
connection is gone: a Redis that was restarted or replaced in between is looked at again before anything is done to it.

What is sent may also arrive late, when this process has given up, looked again and opened the epoch on another
connection (or another process has). So every change is conditional, inside Redis: whoever changes a shard first fences
it under a name of its own, and wipes and opens only while the shard is fenced under that name.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from typing import Any

from ledger.core.trust import FENCED_EPOCH
from ledger.counter.collector import SCRIPT_SHA, let_in_words, meta_key, script_keys
from ledger.counter.link import RedisLink, UnknownScript, pack
from ledger.counter.values import CounterUnavailable, LedgerEvent
from ledger.counter.words import read_event

WIPED_AT_ONCE = 500
_KEPT = ("meta", "once:", "onces:", "rate:")
"""What a new epoch keeps: it says nothing of credit, and idempotency keys must outlive what Redis lost."""

_FENCE = """
local epoch = redis.call('HGET', KEYS[1], 'epoch') or ''
if epoch ~= ARGV[1] and epoch ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'guard', ARGV[3])
return 1"""
"""KEYS: meta. ARGV: the epoch that was seen (empty for none), the one that stands for fenced, the guard's name."""

_IF_FENCED = """
local meta = redis.call('HMGET', KEYS[1], 'epoch', 'guard')
if meta[1] ~= ARGV[1] or meta[2] ~= ARGV[2] then return 0 end
"""
_WIPE = _IF_FENCED + "for i = 2, #KEYS do redis.call('UNLINK', KEYS[i]) end return 1"
_OPEN = (
    _IF_FENCED + "redis.call('HSET', KEYS[1], 'epoch', ARGV[3], 'seq', 0) redis.call('HDEL', KEYS[1], 'guard') return 1"
)
"""KEYS: meta, and what is wiped. ARGV: the epoch that stands for fenced, the guard's name, the new epoch."""


@dataclass(frozen=True, slots=True)
class ShardLook:
    """What a shard of Redis is like.

    ``epoch`` None: it has no counter. ``script_known``: callers were let in on this very run of the server, and it
    still knows the script. ``event``: the entry that was asked for.
    """

    generation: int
    epoch: int | None
    seq: int
    script_known: bool
    event: LedgerEvent | None


class ShardDoor:
    """One shard. Its calls wait for each other."""

    def __init__(self, redis_url: str, shard: int, *, timeout_s: float) -> None:
        self._link = RedisLink(redis_url, meta_key(shard))
        self._shard = shard
        self._prefix = meta_key(shard).removesuffix("meta")
        self._timeout_s = timeout_s
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Let go of the connection."""
        await self._link.close()

    async def look(self, entry_id: str = "") -> ShardLook:
        """See where the shard stands.

        Args:
            entry_id: an entry of the event stream to be read too.

        Raises:
            CounterUnavailable: it could not be asked.
        """
        async with self._turn:
            epoch, seq, server = await self._call(None, "HMGET", meta_key(self._shard), "epoch", "seq", "server")
            generation = self._link.generation
            known = await self._call(generation, "SCRIPT", "EXISTS", SCRIPT_SHA)
            here = bool(known[0]) and (server or b"").decode() == self._link.run_id
            event = None
            if entry_id:
                for found, flat in await self._call(generation, "XRANGE", f"{self._prefix}events", entry_id, entry_id):
                    event = read_event(found, flat)
        return ShardLook(generation, None if epoch is None else int(epoch), int(seq or 0), here, event)

    async def let_in(self, seen: ShardLook, epoch: int, floor_seq: int) -> None:
        """Load the script, so that callers are served. It runs once here, and so checks epoch and floor itself.

        Raises:
            CounterUnavailable: it could not be asked, or it is not what was seen any more.
        """
        async with self._turn:
            words = let_in_words(self._shard, epoch, floor_seq, self._link.run_id)
            await self._send(seen.generation, words)

    async def fence(self, seen: ShardLook) -> None:
        """Refuse all callers, whatever epoch they know.

        Raises:
            CounterUnavailable: it could not be asked, or it or the connection is not what was seen any more.
        """
        async with self._turn:
            await self._fence(seen)

    async def open(self, seen: ShardLook, epoch: int) -> None:
        """Forget all credit of the shard and open an epoch in it. Until that is done it is fenced.

        Raises:
            CounterUnavailable: it could not be asked, or it or the connection is not what was seen any more.
        """
        async with self._turn:
            guard = await self._fence(seen)
            # A cluster's node refuses this while the slot is on its way: then some of the keys are elsewhere.
            await self._call(seen.generation, "EXISTS", *script_keys(self._shard)[1:])
            await self._wipe(seen.generation, guard)
            await self._call(seen.generation, "EXISTS", *script_keys(self._shard)[1:])
            await self._change(seen.generation, _OPEN, [], FENCED_EPOCH, guard, epoch)

    async def _fence(self, seen: ShardLook) -> str:
        """Fence it if it is at the epoch that was seen, or fenced already; returns the name that this is done under."""
        guard = secrets.token_hex(8)
        was = "" if seen.epoch is None else seen.epoch
        await self._change(seen.generation, _FENCE, [], was, FENCED_EPOCH, guard)
        return guard

    async def _wipe(self, generation: int, guard: str) -> None:
        cursor = b"0"
        while True:
            cursor, keys = await self._call(
                generation, "SCAN", cursor, "MATCH", f"{self._prefix}*", "COUNT", WIPED_AT_ONCE
            )
            doomed = [key for key in keys if not key.decode()[len(self._prefix) :].startswith(_KEPT)]
            if doomed:
                await self._change(generation, _WIPE, doomed, FENCED_EPOCH, guard)
            if cursor == b"0":
                return

    async def _change(self, generation: int, script: str, keys: list[bytes], *words: str | int) -> None:
        meta = meta_key(self._shard)
        if not await self._call(generation, "EVAL", script, 1 + len(keys), meta, *keys, *words):
            raise CounterUnavailable("fenced", "somebody else has changed the shard meanwhile")

    async def _call(self, generation: int | None, *words: str | bytes | int) -> Any:
        return await self._send(generation, pack(*words))

    async def _send(self, generation: int | None, packed: bytes) -> Any:
        try:
            return await self._link.call(packed, self._timeout_s, generation=generation)
        except UnknownScript:
            raise CounterUnavailable("busy", "Redis answered with NOSCRIPT") from None
