"""The collector: all operations of one event-loop tick travel to a shard in one script call.

Floor: ``ledger`` edge. A script call of its own costs a client about 140 µs of CPU whatever is in it; shared by the
requests of one tick it is a few. One call per shard is in flight; what is asked meanwhile gathers for the next.

* What can wait for a call may travel with one that leaves anyway: ``on_departure`` is told a tick before, and what
  is asked then goes along. In a call, what ends holds stands before what takes them, so that a client's next request
  finds the credit that its last one gave back.
* The queue is bounded: beyond ``MAX_WAITING`` an operation fails at once (``busy``).
* An answer or an error comes within 1.25 × ``timeout_s`` of the asking. When a call fails, so does all that waits
  behind it: a Redis that is not answering is not asked again on behalf of requests that have waited already.
* A caller that is cancelled takes nothing with it. An operation that was not sent yet is dropped if it was a hold;
  anything else is sent all the same, and its answer is nobody's.
* Holds that nobody owns. A hold whose caller was cancelled while it was in flight, or that was sent and not answered
  in time, may have been taken. The collector voids it: right after the answer, or with the first call that works
  again. A void that overtakes its hold leaves a tombstone, so the hold then fails. If this process dies first, the
  hold expires and is reaped at nothing.
* It never sends the script itself. A Redis that does not know it was restarted, failed over or flushed, and may have
  lost money; the guardian (``ledger.upkeep.guardian``) compares it with the books and only then loads the script. Until
  then a call waits, within its deadline. So it does for a Redis at another epoch, or one that lacks an event that this
  process saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import orjson

from ledger.counter.link import RedisLink, UnknownScript, pack
from ledger.counter.values import Admission, CounterUnavailable
from ledger.counter.words import undo_words

MAX_OPERATIONS_PER_CALL = 256
"""Bounds how long one call keeps Redis to itself (about 4 ms)."""

MAX_WAITING = 16_384
MAX_ORPHANS = 65_536
"""Holds waiting to be voided; beyond, the oldest are left to their expiry."""

ORPHANS_PER_CALL = 64
_ORPHAN_RETRY_S = (0.25, 0.5, 1.0, 2.0, 4.0)
_UNSURE_PAUSE_S = 0.05
"""Between two looks whether the guardian has let this Redis in."""

SCRIPT = (files("ledger") / "lua" / "ledger.lua").read_bytes()
# The hash names the script to Redis; nothing depends on its strength.
SCRIPT_SHA = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest()

Words = tuple[Any, ...]
"""An operation as the script reads it: its name, then its arguments."""

Answer = list[Any]


Operation = tuple[Words, asyncio.Future[Answer], Admission | None]
"""What is on its way: the words, the future of their answer, and of a hold the admission, so that it can be undone.

A plain tuple: this is made for every operation of every request."""


@dataclass(slots=True)
class CollectorCounts:
    """Counters since the start, for metrics."""

    calls: int = 0
    operations: int = 0
    failed_calls: int = 0
    unsure_calls: int = 0
    orphans_voided: int = 0
    orphans_dropped: int = 0


@dataclass(slots=True, eq=False)
class Collector:
    """Batches the operations of one shard. Use it from one event loop only."""

    url: str
    shard: int
    epoch: int
    keep_closed_s: float
    timeout_s: float
    counts: CollectorCounts = field(default_factory=CollectorCounts)
    seen_seq: int = 0
    """The highest event number of this epoch that this process knows of."""
    on_unsure: Callable[[int, int, int], None] | None = None
    """Told the shard, the epoch and the highest event seen in it when Redis does not let a call in; must not block."""
    on_departure: Callable[[], None] | None = None
    """Told that a call leaves in the next tick; must not block."""

    call_epoch: int = field(init=False)
    """The epoch of the call that was answered last."""
    _link: RedisLink = field(init=False)
    _loop: asyncio.AbstractEventLoop = field(init=False)
    _queue: deque[Operation] = field(init=False, default_factory=deque)
    _asked_at_s: float = field(init=False, default=0.0)
    """When the oldest operation of the queue was asked for, or earlier."""
    _orphans: deque[Words] = field(init=False, default_factory=deque)
    _wake: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _idle: asyncio.Event = field(init=False, default_factory=asyncio.Event)
    _pump: asyncio.Task[None] | None = field(init=False, default=None)
    _retry: asyncio.TimerHandle | None = field(init=False, default=None)
    _failures: int = field(init=False, default=0)
    _closed: bool = field(init=False, default=False)
    _head: bytes = field(init=False)

    def __post_init__(self) -> None:
        self._link = RedisLink(self.url, meta_key(self.shard))
        self.call_epoch = self.epoch
        self._idle.set()

    @property
    def waiting(self) -> int:
        """Operations that have not been sent yet."""
        return len(self._queue)

    @property
    def orphans(self) -> int:
        """Holds that wait to be voided because their caller is gone or got no answer."""
        return len(self._orphans)

    def ask(self, words: Words, hold: Admission | None = None) -> asyncio.Future[Answer]:
        """Queue an operation; its future gets the script's answer or ``CounterUnavailable``.

        Args:
            hold: of a hold, what is to be voided if nobody gets the answer.

        Raises:
            CounterUnavailable: the queue is full, or the collector was closed.
        """
        queue = self._queue
        if not queue:
            self._rouse()
            self._asked_at_s = self._loop.time()
        elif len(queue) >= MAX_WAITING:
            raise CounterUnavailable("busy", f"{MAX_WAITING} operations wait for Redis already")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        queue.append((words, answer, hold))
        return answer

    def abandon(self, answer: asyncio.Future[Answer], hold: Admission | None = None) -> None:
        """The caller was cancelled. If that was in the tick in which a hold was answered, void the hold."""
        if answer.cancelled() or not answer.done() or answer.exception() is not None:
            return
        if hold is not None and answer.result()[0] == 0:
            self._adopt(undo_words(hold))
            self._rouse()

    def follow(self, epoch: int) -> None:
        """Work under another epoch from the next call on."""
        if epoch != self.epoch:
            self.epoch, self.seen_seq = epoch, 0

    async def close(self) -> None:
        """Finish what waits, within the timeout, then disconnect. What is left fails."""
        self._closed = True
        if self._pump is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), self.timeout_s)
            self._pump.cancel()
            await asyncio.wait([self._pump])
        if self._retry is not None:
            self._retry.cancel()
        self._fail(list(self._queue), CounterUnavailable("unreachable", "this counter was closed"), sent=False)
        self._queue.clear()
        await self._link.close()

    def _rouse(self) -> None:
        if self._closed:
            raise CounterUnavailable("unreachable", "this counter was closed")
        if self._pump is None:
            self._loop = asyncio.get_running_loop()
            self._pump = self._loop.create_task(self._run(), name=f"credit-shard-{self.shard}")
        self._idle.clear()
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue or (self._orphans and self._retry is None):
                if self.on_departure is not None:
                    self.on_departure()
                    await asyncio.sleep(0)
                age_s = self._loop.time() - self._asked_at_s if self._queue else 0.0
                batch, undoing = self._take()
                if batch or undoing:
                    await self._flush(batch, undoing, max(self.timeout_s - age_s, self.timeout_s / 4))
            self._idle.set()

    def _take(self) -> tuple[list[Operation], list[Words]]:
        queue = self._queue
        # A hold that was never sent, for a caller that is gone, is not sent any more.
        if len(queue) <= MAX_OPERATIONS_PER_CALL:
            batch = [one for one in queue if one[2] is None or not one[1].cancelled()]
            queue.clear()
        else:
            batch = []
            while queue and len(batch) < MAX_OPERATIONS_PER_CALL:
                operation = queue.popleft()
                if operation[2] is None or not operation[1].cancelled():
                    batch.append(operation)
        batch.sort(key=_takes_credit)
        undoing: list[Words] = []
        # While the timer runs Redis is known to be away; only real operations try it.
        if self._orphans and (self._retry is None or batch):
            undoing = [self._orphans.popleft() for _ in range(min(len(self._orphans), ORPHANS_PER_CALL))]
        return batch, undoing

    async def _flush(self, batch: list[Operation], undoing: list[Words], timeout_s: float) -> None:
        try:
            answers = await self._call(self._encode(batch, undoing), timeout_s)
            if len(answers) != len(batch) + len(undoing):
                raise ValueError(f"{len(answers)} answers to {len(batch) + len(undoing)} operations")
        except CounterUnavailable as error:
            self._failed(batch, undoing, error)
        except asyncio.CancelledError:
            self._failed(batch, undoing, CounterUnavailable("unreachable", "this counter was closed"))
            raise
        except Exception as error:  # a bug or a reply that makes no sense: fail closed, and go on
            await self._link.close()
            self._failed(batch, undoing, CounterUnavailable("unreachable", f"{type(error).__name__}: {error}"))
        else:
            self._failures = 0
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._resolve(batch, answers)
            self.counts.orphans_voided += len(undoing)

    def _encode(self, batch: list[Operation], undoing: list[Words]) -> bytes:
        try:
            return orjson.dumps([words for words, _, _ in batch] + undoing)
        except TypeError:
            # One operation that can't be written (a lone surrogate, say) must not fail the others.
            good = []
            for operation in batch:
                try:
                    orjson.dumps(operation[0])
                    good.append(operation)
                except TypeError as error:
                    if not operation[1].done():
                        operation[1].set_exception(ValueError(f"This operation cannot be encoded: {error}"))
            batch[:] = good
            return orjson.dumps([words for words, _, _ in batch] + undoing)

    async def _call(self, operations: bytes, timeout_s: float) -> list[Answer]:
        """Have the script do it; while Redis is not known to be whole, wait for the guardian within the deadline."""
        self.counts.calls += 1
        deadline_s = self._loop.time() + timeout_s
        while True:
            epoch = self.epoch
            try:
                words = functools.partial(self._words, epoch, operations)
                reply = await self._link.call(words, deadline_s - self._loop.time())
                break
            except UnknownScript:
                error = CounterUnavailable("fenced", "Redis was restarted and has not been checked yet")
            except CounterUnavailable as refusal:
                if refusal.reason != "fenced":
                    raise
                error = refusal
            self.counts.unsure_calls += 1
            if self.on_unsure is not None:
                self.on_unsure(self.shard, epoch, self.seen_seq if epoch == self.epoch else 0)
            if self._loop.time() + 2 * _UNSURE_PAUSE_S > deadline_s:
                raise error
            await asyncio.sleep(_UNSURE_PAUSE_S)
        answers: list[Answer]
        seq, *answers = orjson.loads(reply)
        self.call_epoch = epoch
        if epoch == self.epoch:
            self.seen_seq = max(self.seen_seq, seq)
        return answers

    def _words(self, epoch: int, operations: bytes, run_id: str) -> bytes:
        keep_ms = int(self.keep_closed_s * 1000)
        keys = script_keys(self.shard)
        return pack("EVALSHA", SCRIPT_SHA, *keys, epoch, operations, keep_ms, self.seen_seq, run_id)

    def _resolve(self, batch: list[Operation], answers: list[Answer]) -> None:
        self.counts.operations += len(batch)
        for (_, future, hold), answer in zip(batch, answers, strict=False):  # the undone ones come after
            if future.done():
                if hold is not None and answer and answer[0] == 0:
                    self._adopt(undo_words(hold))
            elif answer and answer[0] == -1:
                future.set_exception(CounterUnavailable("busy", str(answer[1])[:300]))
            else:
                future.set_result(answer)

    def _failed(self, batch: list[Operation], undoing: list[Words], error: CounterUnavailable) -> None:
        self.counts.failed_calls += 1
        # A refusal that is sure to have come before any write leaves nothing to undo.
        self._fail(batch, error, sent=error.reason != "fenced")
        for words in undoing:
            self._adopt(words)
        waiting, self._queue = list(self._queue), deque()
        self._fail(waiting, error, sent=False)
        if self._orphans and self._retry is None and not self._closed:
            delay_s = _ORPHAN_RETRY_S[min(self._failures, len(_ORPHAN_RETRY_S) - 1)]
            self._retry = self._loop.call_later(delay_s, self._try_again)
        self._failures += 1

    def _fail(self, operations: list[Operation], error: CounterUnavailable, *, sent: bool) -> None:
        for _, answer, hold in operations:
            if sent and hold is not None:
                self._adopt(undo_words(hold))
            if not answer.done():
                answer.set_exception(CounterUnavailable(error.reason, error.detail))

    def _try_again(self) -> None:
        self._retry = None
        if self._orphans and not self._closed:
            self._rouse()

    def _adopt(self, undo: Words) -> None:
        if len(self._orphans) >= MAX_ORPHANS:
            self._orphans.popleft()
            self.counts.orphans_dropped += 1
        self._orphans.append(undo)


def _takes_credit(operation: Operation) -> bool:
    return operation[2] is not None


def let_in_words(shard: int, epoch: int, floor_seq: int, run_id: str) -> bytes:
    """Load the script and let callers in on this run of Redis, if it is at this epoch and has this event.

    By EVAL and never by SCRIPT LOAD: Redis 6.2 writes a SCRIPT LOAD into its append-only file, so that after a
    restart it would know the script.
    """
    return pack("EVAL", SCRIPT, *script_keys(shard), epoch, "[]", 0, floor_seq, run_id, "let in")


def meta_key(shard: int) -> str:
    """The key that names a shard to the script; the others share its hash tag."""
    return f"pareta:{{{shard}}}:meta"


def script_keys(shard: int) -> tuple[int, str, str, str]:
    """The keys that every call of the script names, and their number: the shard's meta, and two that never exist.

    Those two make a Redis Cluster refuse the call while the shard's slot is on its way from one node to another, on
    both sides and before anything is done. Without them it would run on the keys that happen to be there: an account
    that is still on the other node would look empty.
    """
    key = meta_key(shard)
    prefix = key.removesuffix("meta")
    return 3, key, f"{prefix}moving:1", f"{prefix}moving:2"
