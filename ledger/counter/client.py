"""The credit counter: holds, charges and limits in Redis, each operation one atomic step of one Lua script.

Floor: ``ledger`` edge. Knows organizations, holds, amounts and limits; nothing of models or HTTP. The state machine
is ``ledger/core/hold.py`` in pure form and ``ledger/lua/ledger.lua`` in Redis; a test drives both side by side.

Durability, step by step. An answer of this module means: Redis has done it, and, with ``appendonly yes`` and
``appendfsync always`` (what we ship), has written it to its disk before it answered. Redis logs the effects of one
script call as one transaction, so a crash keeps all of it or nothing. With ``everysec`` up to a second of answered
operations can be lost; the events' dense ``seq`` then shows that it happened. ``CounterUnavailable`` means: nobody
knows. That is harmless for every operation but a hold, because each can be repeated with the same effect; who has to
be sure repeats until there is an answer (settlements: ``ledger.outbox``, which first makes them durable here).

A hold with an unknown outcome is voided by the counter itself, see ``ledger.counter.collector``: when ``admit`` raises
``CounterUnavailable`` or its caller is cancelled, the hold id is spent, and a new attempt takes a new id. A caller
that is cancelled has therefore nothing to clean up as long as ``admit`` has not returned.

The epoch fences: a Redis whose ``meta`` holds another epoch (wiped, restored from an old disk), that lacks an event
this process has seen, or that was restarted and not been checked by the guardian, answers every operation with
``CounterUnavailable('fenced')``, and no money moves. Each shard has an epoch of its own; one that loses its Redis node
does not stop the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, Self

from ledger.core.ids import shard_of
from ledger.counter.collector import Answer, Collector, CollectorCounts, let_in_words, meta_key, script_keys
from ledger.counter.door import ShardDoor
from ledger.counter.link import Command, RedisLink, UnknownScript, pack
from ledger.counter.values import (
    AccountState,
    Admission,
    Beat,
    Claimed,
    Closing,
    CounterUnavailable,
    Extended,
    GrantVerdict,
    Held,
    HoldConflict,
    LedgerEvent,
    Level,
    OutOfCredit,
    RateLimited,
    Recalled,
    Settled,
    Settlement,
    ShardMeta,
    UnknownHold,
    Voided,
)
from ledger.counter.words import (
    MOST_NANOS,
    beat_words,
    hold_words,
    read_event,
    read_hold,
    read_recall,
    read_settle,
    read_void,
    settle_words,
)

BEATS_PER_OPERATION = 100
MAX_EVENTS_PER_READ = 10_000

_GRANT_VERDICTS: tuple[GrantVerdict, ...] = ("applied", "repeated", "gap", "stale")


class CreditCounter:
    """The counter of all shards. Use it from one event loop; make it with :meth:`connect`."""

    def __init__(
        self, redis_url: str, *, shards: int, epoch: int | Sequence[int], timeout_s: float, keep_closed_s: float
    ) -> None:
        epochs = [epoch] * shards if isinstance(epoch, int) else list(epoch)
        if shards < 1 or len(epochs) != shards or min(epochs) < 1 or timeout_s <= 0 or keep_closed_s < 1:
            raise ValueError("A counter has at least one shard, an epoch from 1 for each, and times above zero.")
        self.shards = shards
        self.timeout_s = timeout_s
        self.counts = CollectorCounts()
        self._url = redis_url
        self._collectors = [
            Collector(redis_url, shard, number, keep_closed_s, timeout_s, self.counts)
            for shard, number in enumerate(epochs)
        ]
        # Reads have connections of their own: for each shard one for events (it blocks) and one for all else.
        self._reads = self._links()
        self._event_reads = self._links()

    @classmethod
    async def connect(
        cls,
        redis_url: str,
        *,
        shards: int = 1,
        epoch: int | Sequence[int],
        timeout_s: float = 2.0,
        keep_closed_s: float = 86_400.0,
    ) -> Self:
        """Make a counter. It connects at its first operation and reconnects by itself, so Redis may be away now.

        Args:
            redis_url: of one server, of sentinels or of a cluster (see ``ledger.counter.link``); Redis 6.2 to 8.
            shards: never change it on a counter that holds money.
            epoch: the ledger's epoch, of all shards or of each; a Redis at another one refuses.
            timeout_s: deadline of each call; an operation has its answer within 1.25 times this.
            keep_closed_s: how long a closed hold is remembered, so that a repeated settlement is recognized.

        Raises:
            ValueError: the URL or a number makes no sense.
        """
        return cls(redis_url, shards=shards, epoch=epoch, timeout_s=timeout_s, keep_closed_s=keep_closed_s)

    async def close(self) -> None:
        """Finish what waits (within the timeout), then disconnect."""
        await asyncio.gather(*(collector.close() for collector in self._collectors))
        for link, _ in (*self._reads, *self._event_reads):
            await link.close()

    # Holds

    async def admit(self, admission: Admission) -> Held | OutOfCredit | RateLimited | HoldConflict | Claimed:
        """Take a hold: limits and credit in one step. Nothing is written unless the answer is ``Held``.

        Precedence: the same hold again (its recorded answer), conflict, the claim, limits, credit.

        Raises:
            CounterUnavailable: nobody knows; should the hold have been taken, the counter voids it.
            ValueError: a number is negative or something is too long.
        """
        collector = self._collectors[0] if self.shards == 1 else self._collector_of(admission.org_id)
        answer = collector.ask(hold_words(admission), admission)
        try:
            return read_hold(await answer, admission, collector.call_epoch)
        except asyncio.CancelledError:
            collector.abandon(answer, admission)
            raise

    async def recall(self, org_id: str, claim: str, fingerprint: str) -> Recalled | None:
        """What an idempotency key stands for; ``None`` if it is free.

        Raises:
            CounterUnavailable: nobody knows.
        """
        return read_recall(await self._collector_of(org_id).ask(("recall", org_id, claim, fingerprint)))

    async def settle(self, settlement: Settlement) -> Settled | UnknownHold | OutOfCredit:
        """End a hold with a charge of min(amount, what it held + what is available). A repeat is harmless.

        ``OutOfCredit``: without leave to clamp, less than the amount could be charged; nothing was done.

        Raises:
            CounterUnavailable: nobody knows; repeat it.
        """
        return read_settle(await self._collector_of(settlement.org_id).ask(settle_words(settlement, "settle")))

    async def void(self, settlement: Settlement) -> Voided | Settled | UnknownHold:
        """End a hold without a charge; the settlement's amount does not count.

        ``Settled``: the hold had been charged before, and that stands. ``UnknownHold``: a tombstone was left.

        Raises:
            CounterUnavailable: nobody knows; repeat it.
        """
        return read_void(await self._collector_of(settlement.org_id).ask(settle_words(settlement, "void")))

    async def close_holds(
        self, settlements: Sequence[Settlement], clamps: Sequence[bool] | None = None
    ) -> list[Closing]:
        """Settle many at once (void those with amount 0); each has its own outcome, in the same order.

        Args:
            clamps: for each whether less will do; None is what they say themselves.

        What could not be asked is a ``CounterUnavailable`` in its place: repeat that one.
        """
        answers: list[asyncio.Future[Answer] | CounterUnavailable] = []
        collector, alone = self._collectors[0], self.shards == 1
        for place, settlement in enumerate(settlements):
            words = settle_words(
                settlement,
                "settle" if settlement.amount_nanos else "void",
                clamp=None if clamps is None else clamps[place],
            )
            try:
                answers.append((collector if alone else self._collector_of(settlement.org_id)).ask(words))
            except CounterUnavailable as error:
                answers.append(error)
        closings: list[Closing] = []
        for settlement, answer in zip(settlements, answers, strict=True):
            try:
                if isinstance(answer, CounterUnavailable):
                    closings.append(answer)
                    continue
                said = answer.result() if answer.done() else await answer
                closings.append(read_settle(said) if settlement.amount_nanos else read_void(said))
            except CounterUnavailable as error:
                closings.append(error)
            except asyncio.CancelledError:
                for other in answers:
                    if isinstance(other, asyncio.Future):
                        other.cancel()
                raise
        return closings

    async def heartbeat(self, beats: Sequence[Beat]) -> frozenset[str]:
        """Renew holds and record what was delivered so far. Answers the ids that are not HELD any more.

        Raises:
            CounterUnavailable: nobody knows; the next beat makes up for it.
        """
        by_shard: dict[int, list[Beat]] = {}
        for beat in beats:
            by_shard.setdefault(self.shard_of(beat.org_id), []).append(beat)
        chunks = [
            (shard, group[start : start + BEATS_PER_OPERATION])
            for shard, group in by_shard.items()
            for start in range(0, len(group), BEATS_PER_OPERATION)
        ]
        answers = await _all([self._collectors[shard].ask(beat_words(chunk)) for shard, chunk in chunks])
        return frozenset(
            chunk[position].hold_id
            for (_, chunk), positions in zip(chunks, answers, strict=True)
            for position in positions
        )

    async def extend(self, hold_id: str, org_id: str, *, total_nanos: int) -> Extended | OutOfCredit | UnknownHold:
        """Raise what a hold reserves to ``total_nanos`` (never lowers it; a repeat is harmless).

        Raises:
            CounterUnavailable: nobody knows; repeat it.
        """
        words = ("extend", hold_id, org_id, min(total_nanos, MOST_NANOS))
        answer = await self._collector_of(org_id).ask(words)
        if answer[0] == 0:
            return Extended(answer[1])
        if answer[0] == 1:
            return OutOfCredit(held_nanos=answer[1], available_nanos=answer[2], returned_nanos=answer[3])
        return UnknownHold()

    async def reap(self, limit: int = 100) -> int:
        """Close holds that have expired by Redis's clock, at what their last heartbeat had accrued.

        Args:
            limit: at most so many per shard.

        Returns:
            How many were reaped.

        Raises:
            CounterUnavailable: nobody knows; call it again.
        """
        answers = await _all([collector.ask(("reap", limit)) for collector in self._collectors])
        return sum(answer[0] for answer in answers)

    # Money from and to the ledger

    async def grant(self, org_id: str, grant_seq: int, amount_nanos: int, *, epoch: int | None = None) -> GrantVerdict:
        """Apply grant number ``grant_seq`` (from 1) of an organization and epoch (ours), once and in order.

        Raises:
            CounterUnavailable: nobody knows; send it again.
            ValueError: the amount is not from 1 to 2^52.
        """
        if not 0 < amount_nanos <= MOST_NANOS or grant_seq < 1 or not org_id:
            raise ValueError("A grant has a number from 1 and an amount from 1 to 2^52 nano-USD.")
        collector = self._collector_of(org_id)
        words = ("grant", org_id, grant_seq, amount_nanos, MOST_NANOS, collector.epoch if epoch is None else epoch)
        answer = await collector.ask(words)
        return _GRANT_VERDICTS[answer[0]]

    async def give_back(self, org_id: str, grant_seq: int, *, keep_nanos: int) -> int:
        """Return what is available beyond ``keep_nanos`` to Postgres (by an event), and say how much that was.

        Nothing is returned if a grant after ``grant_seq`` has come: somebody needs it. A repeat is harmless.

        Raises:
            CounterUnavailable: nobody knows.
        """
        answer = await self._collector_of(org_id).ask(("give_back", org_id, grant_seq, keep_nanos))
        returned: int = answer[0]
        return returned

    async def levels(self, org_ids: Sequence[str]) -> dict[str, Level]:
        """How much escrow each of these has in Redis, one call for each shard.

        Raises:
            CounterUnavailable: Redis could not be asked.
        """
        by_shard: dict[int, list[str]] = {}
        for org_id in org_ids:
            by_shard.setdefault(self.shard_of(org_id), []).append(org_id)
        answers = await _all([self._collectors[shard].ask(("levels", orgs)) for shard, orgs in by_shard.items()])
        return {
            org_id: Level(*row)
            for orgs, rows in zip(by_shard.values(), answers, strict=True)
            for org_id, row in zip(orgs, rows, strict=True)
        }

    # Reads

    async def account(self, org_id: str) -> AccountState:
        """An organization's account; all zero if Redis has none."""
        shard = self.shard_of(org_id)
        names = ("available", "held", "spent", "returned", "granted", "grant_seq")
        row = await self._read(shard, "HMGET", f"{self._prefix(shard)}acct:{org_id}", *names)
        return AccountState(*(int(value or 0) for value in row))

    async def accounts(self, shard: int = 0) -> dict[str, AccountState]:
        """All accounts of a shard, one by one and not at one moment. For the audit; slow."""
        prefix = f"{self._prefix(shard)}acct:"
        found: set[str] = set()
        async for keys in self._scan(shard, prefix):
            found.update(key.decode()[len(prefix) :] for key in keys)
        return {org: await self.account(org) for org in sorted(found)}

    async def open_holds(self) -> int:
        """How many holds are HELD, over all shards."""
        return sum([await self._read(shard, "ZCARD", f"{self._prefix(shard)}expiry") for shard in range(self.shards)])

    async def ping(self) -> None:
        """Ask Redis whether it is there, at our epoch, and lets callers in.

        Raises:
            CounterUnavailable: it is or does not.
        """
        for shard in range(self.shards):
            epoch, server = await self._read(shard, "HMGET", meta_key(shard), "epoch", "server")
            if epoch is None or int(epoch) != self.epoch_of(shard):
                found = "none" if epoch is None else epoch.decode()
                raise CounterUnavailable(
                    "fenced", f"shard {shard} is at epoch {found}, the ledger at {self.epoch_of(shard)}"
                )
            if (server or b"").decode() != self._reads[shard][0].run_id:
                raise CounterUnavailable("fenced", f"Redis was restarted and shard {shard} has not been checked yet")

    async def meta(self, shard: int) -> ShardMeta | None:
        """Where a shard stands; None if it was never begun."""
        epoch, seq = await self._read(shard, "HMGET", meta_key(shard), "epoch", "seq")
        return None if epoch is None else ShardMeta(int(epoch), int(seq or 0))

    async def is_blank(self) -> bool:
        """Whether Redis has no key of any shard."""
        for shard in range(self.shards):
            async with contextlib.aclosing(self._scan(shard, self._prefix(shard))) as pages:
                async for keys in pages:
                    if keys:
                        return False
        return True

    async def begin_epoch(self) -> None:
        """Open all shards at our epoch and load the script; a shard that has an epoch keeps it. Asks nobody.

        For a counter that stands alone. Beside a ledger this is the guardian's decision (``ledger.upkeep.guardian``).
        """
        for shard in range(self.shards):
            await self._read(shard, "HSETNX", meta_key(shard), "epoch", self.epoch_of(shard))
            await self.load_script(shard)

    async def load_script(self, shard: int) -> None:
        """Load the script and let callers in. Beside a ledger that is for ``ledger.upkeep.guardian`` alone."""
        await self._send(shard, functools.partial(let_in_words, shard, self.epoch_of(shard), 0))

    # The event stream, for the reconciler

    async def read_events(
        self, shard: int, after_id: str = "0-0", count: int = 1000, block_ms: int = 0
    ) -> list[LedgerEvent]:
        """Events after ``after_id``, oldest first; waits up to ``block_ms`` (0: not at all) for the first.

        Raises:
            CounterUnavailable: Redis could not be asked.
        """
        link, turn = self._event_reads[shard]
        block: tuple[str | int, ...] = ("BLOCK", block_ms) if block_ms > 0 else ()
        key = f"{self._prefix(shard)}events"
        command = pack("XREAD", "COUNT", min(count, MAX_EVENTS_PER_READ), *block, "STREAMS", key, after_id)
        async with turn:
            reply = await link.call(command, self.timeout_s + max(block_ms, 0) / 1000)
        return [read_event(entry_id, flat) for entry_id, flat in reply[0][1]] if reply else []

    async def stream_length(self, shard: int) -> int:
        """Events that were not trimmed yet."""
        length: int = await self._read(shard, "XLEN", f"{self._prefix(shard)}events")
        return length

    async def trim(self, shard: int, min_id: str) -> int:
        """Forget events before ``min_id`` (which stays). Returns how many."""
        trimmed: int = await self._read(shard, "XTRIM", f"{self._prefix(shard)}events", "MINID", "=", min_id)
        return trimmed

    # For metrics and the guardian

    @property
    def waiting(self) -> int:
        """Operations that wait to be sent, over all shards."""
        return sum(collector.waiting for collector in self._collectors)

    @property
    def orphans(self) -> int:
        """Holds without an owner that wait to be voided, over all shards."""
        return sum(collector.orphans for collector in self._collectors)

    def on_departure(self, tell: Callable[[], None]) -> None:
        """Have ``tell`` called a tick before operations leave for Redis: what is asked for then travels with them."""
        for collector in self._collectors:
            collector.on_departure = tell

    def on_unsure(self, tell: Callable[[int, int, int], None]) -> None:
        """Have ``tell(shard, epoch, highest event seen)`` called when a shard does not let a call in."""
        for collector in self._collectors:
            collector.on_unsure = tell

    @property
    def epoch(self) -> int:
        """The epoch of the first shard."""
        return self.epoch_of(0)

    def epoch_of(self, shard: int) -> int:
        """The epoch that this counter works under."""
        return self._collectors[shard].epoch

    def set_epoch(self, shard: int, number: int) -> None:
        """Work under another epoch, because the ledger has opened one."""
        self._collectors[shard].follow(number)

    def door(self, shard: int) -> ShardDoor:
        """The guardian's hand on a shard, with a connection of its own."""
        return ShardDoor(self._url, shard, timeout_s=self.timeout_s)

    def saw(self, shard: int, epoch: int, seq: int) -> None:
        """Remember that an event exists; a Redis without it has lost something."""
        collector = self._collectors[shard]
        if epoch == collector.epoch:
            collector.seen_seq = max(collector.seen_seq, seq)

    def seen_seq(self, shard: int) -> int:
        """The highest event number of the shard's epoch that this process knows of."""
        return self._collectors[shard].seen_seq

    def shard_of(self, org_id: str) -> int:
        """Where an organization's account is."""
        return 0 if self.shards == 1 else shard_of(org_id, self.shards)

    def _collector_of(self, org_id: str) -> Collector:
        return self._collectors[0] if self.shards == 1 else self._collectors[self.shard_of(org_id)]

    def _links(self) -> list[tuple[RedisLink, asyncio.Lock]]:
        return [(RedisLink(self._url, meta_key(shard)), asyncio.Lock()) for shard in range(self.shards)]

    @staticmethod
    def _prefix(shard: int) -> str:
        return meta_key(shard).removesuffix("meta")

    async def _read(self, shard: int, *words: str | bytes | int) -> Any:
        return await self._send(shard, pack(*words))

    async def _scan(self, shard: int, beginning: str) -> AsyncGenerator[list[bytes], None]:
        """The keys that begin so. In a cluster all of them, or ``CounterUnavailable``: never those of half a move."""
        link, turn = self._reads[shard]
        keys_that_stay = pack("EXISTS", *script_keys(shard)[1:])
        async with turn:
            await link.call(keys_that_stay, self.timeout_s)  # finds the node that has the slot, which SCAN does not
            generation, cursor = link.generation, b"0"
            while True:
                scan = pack("SCAN", cursor, "MATCH", _literal(beginning) + "*", "COUNT", 1000)
                cursor, keys = await link.call(scan, self.timeout_s, generation=generation)
                yield keys
                if cursor == b"0":
                    break
            await link.call(keys_that_stay, self.timeout_s, generation=generation)

    async def _send(self, shard: int, command: Command) -> Any:
        link, turn = self._reads[shard]
        async with turn:
            try:
                return await link.call(command, self.timeout_s)
            except UnknownScript:
                raise CounterUnavailable("busy", "Redis answered a read with NOSCRIPT") from None


async def _all(answers: Sequence[asyncio.Future[Answer]]) -> list[Answer]:
    """Await all; the first failure is raised once every one is done, so that none is left behind."""
    results = await asyncio.gather(*answers, return_exceptions=True)
    good: list[Answer] = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        good.append(result)
    return good


def _literal(text: str) -> str:
    """``text`` as a SCAN pattern that matches itself."""
    return "".join("\\" + letter if letter in "*?[]\\" else letter for letter in text)
