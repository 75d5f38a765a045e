"""The local journal of one worker: what was appended is on the disk when the answer comes.

Floor: edge. Knows bytes, numbers and files (``ledger.outbox.segment_files``); nothing of settlements or Redis.

* One folder per worker slot, locked with ``flock``: the kernel frees the lock when the process dies, however it dies.
* Group commit: everything that arrived while the last group was being written goes out in one ``write`` and one
  ``fdatasync``, in a thread, so the event loop never waits for the disk.
* Segments: a new one after ``segment_bytes`` or ``segment_age_s``; one whose records are all confirmed is deleted.
  Confirmations are written into the journal as well, without a sync: should a power cut lose them, the records are
  delivered once more, which is harmless.
* What is not confirmed costs memory of a bit a record, and 21 bytes above its payload on the disk. Records are read
  back one segment at a time, so the journal may be far larger than the memory.
* A disk that refuses (full, broken, too large a file): the group fails with ``JournalUnavailable``, the file is cut
  back to its last good byte and closed, and the next group tries a new file. After a failed sync nothing is assumed
  about the pages that were written. A record of a failed group may still turn up at the next start; it was never
  called durable, and delivering it is harmless.
* A file that somebody deletes while it is written to is noticed by the next group and written again. One that is
  deleted later is only noticed when it is read; its records are then lost from the disk, which is said.
* Damage found at the start never stops the start. A torn tail was never called durable. A flipped bit costs the record
  it hit: the file is kept under ``damaged/``, counted and logged, and the hold of that record is charged by the reaper
  at what its last heartbeat had delivered.
"""

from __future__ import annotations

import asyncio
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from ledger.core.number_set import NumberSet
from ledger.outbox import segment_files as files
from ledger.outbox.disk_thread import DiskThread
from ledger.outbox.journal_format import frame_marks, frame_record
from ledger.outbox.segment_files import Segment

MAX_WAITING_BYTES = 64 * 1024 * 1024
MARKS_DELAY_S = 1.0
REFUSED_PAUSE_S = 0.25
"""After a refusal the disk is left alone for this long."""

_LOCK_RETRY_S = 0.05

T = TypeVar("T")

_log = logging.getLogger(__name__)

Written = Callable[[int, "JournalUnavailable | None"], None]
"""Called in the event loop, in order: the record's number, and None if it is durable."""


_Group = list[tuple[int, bytes, Written]]


class JournalUnavailable(Exception):
    """The record is not durable; the disk or a bound refused it. The text is a sentence."""


class JournalLocked(JournalUnavailable):
    """Another process holds this journal."""


@dataclass(frozen=True, slots=True)
class ReadBack:
    """A piece of the journal, read from the disk: all that is unconfirmed from some number to ``last``.

    ``lost``: numbers that were durable once and are not on the disk any more, or make no sense.
    """

    records: dict[int, bytes]
    lost: tuple[int, ...]
    last: int


class Journal:
    """An open, locked journal. Make it with :meth:`open`; use it from one event loop."""

    def __init__(self, folder: Path, lock: int, *, segment_bytes: int, segment_age_s: float) -> None:
        self.folder = folder
        self.damaged_places = 0
        self.torn_tails = 0
        self.refusals = 0
        self.first_new = 1
        """Records below this number are of earlier runs."""
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._loop = asyncio.get_running_loop()
        # One thread, so that writes, syncs and deletions keep their order.
        self._disk = DiskThread(self._loop)
        self._next_number = 1
        self._segments: list[Segment] = []
        """Those that are needed, by their first number; the one that is written to is the last."""
        self._current: Segment | None = None
        self._unconfirmed = 0
        self._waiting: list[tuple[int, bytes, Written]] = []
        self._waiting_bytes = 0
        self._marks = NumberSet()
        self._marks_timer: asyncio.TimerHandle | None = None
        self._is_committing = False
        self._quiet = asyncio.Event()
        """Nothing waits and nothing is being written."""
        self._quiet.set()
        self._refused_until_s = 0.0
        self._closed = False

    @classmethod
    async def open(
        cls,
        folder: Path,
        *,
        wait_s: float = 0.0,
        segment_bytes: int = 8 * 1024 * 1024,
        segment_age_s: float = 60.0,
    ) -> Self:
        """Lock the folder (made if need be) and find what is not confirmed.

        Args:
            wait_s: how long to wait for another process to let go of it.

        Raises:
            JournalLocked: another process holds it.
            JournalUnavailable: the folder can't be made or read.
        """
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + wait_s
        while (lock := await loop.run_in_executor(None, _take_lock, folder)) is None:
            if loop.time() >= deadline_s:
                raise JournalLocked(f"The journal {folder} belongs to a process that is running.")
            await asyncio.sleep(_LOCK_RETRY_S)
        journal = cls(folder, lock, segment_bytes=segment_bytes, segment_age_s=segment_age_s)
        try:
            await journal._in_thread(journal._recover)
        except BaseException:
            await journal.close()
            raise
        return journal

    @property
    def unconfirmed(self) -> int:
        """Durable records that were not confirmed yet."""
        return self._unconfirmed

    def append(self, payload: bytes, written: Written) -> None:
        """Queue a record; ``written`` is called when it is durable or refused.

        Raises:
            JournalUnavailable: at once, if too much waits, the disk refused a moment ago, or the journal is closed.
            ValueError: the payload is too large.
        """
        if self._closed:
            raise JournalUnavailable("The journal is closed.")
        if self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
            raise JournalUnavailable("The disk is too slow: too much waits for the journal.")
        if self._refused_until_s and self._loop.time() < self._refused_until_s:
            raise JournalUnavailable("The disk refused the journal a moment ago.")
        number = self._next_number
        frame = frame_record(number, payload)
        self._waiting.append((number, frame, written))
        self._waiting_bytes += len(frame)
        self._next_number = number + 1
        if not self._is_committing:
            self._is_committing = True
            self._quiet.clear()
            self._loop.call_soon(self._commit)  # what else is appended in this tick goes with it

    async def write(self, payload: bytes) -> int:
        """Append a record and wait until it is durable. Returns its number.

        Raises:
            JournalUnavailable: it is not durable.
        """
        done: asyncio.Future[int] = self._loop.create_future()

        def written(number: int, error: JournalUnavailable | None) -> None:
            if not done.done():
                if error is None:
                    done.set_result(number)
                else:
                    done.set_exception(error)

        self.append(payload, written)
        return await done

    def confirm(self, first: int, last: int | None = None) -> None:
        """The records from ``first`` to ``last`` are not needed any more. Numbers that are not open are ignored."""
        last = first if last is None else last
        wanted = last - first + 1
        for segment in self._segments_of(first, last):
            taken = segment.open.take_run(first, last)
            if not taken:
                continue
            wanted -= len(taken)
            segment.done.update(taken)
            self._marks.update(taken)
            self._unconfirmed -= len(taken)
            if not segment.open and segment is not self._current and not self._closed:
                self._segments.remove(segment)
                self._disk.submit(partial(files.discard, segment))
            if not wanted:
                break
        if self._marks and self._marks_timer is None and not self._closed:
            self._marks_timer = self._loop.call_later(MARKS_DELAY_S, self._write_marks)

    async def read_back(self, start: int) -> ReadBack | None:
        """The unconfirmed records from number ``start`` on, oldest first, to the end of the segment that has them.

        Returns:
            None if there are none.

        Raises:
            JournalUnavailable: the disk does not give them back now.
        """
        found = self._open_from(start)
        if found is None:
            return None
        segment, wanted = found
        try:
            content = await asyncio.to_thread(files.read_file, segment.path)
            records = content.records
        except FileNotFoundError:
            records = {}
        except OSError as error:
            raise JournalUnavailable(f"The journal segment {segment.path} can't be read: {error.strerror}.") from error
        # What was confirmed meanwhile is not wanted any more, and its segment may be gone.
        wanted = [number for number in wanted if number in segment.open]
        lost = tuple(number for number in wanted if number not in records)
        if lost:
            segment.damaged = True
        last = wanted[-1] if wanted else start
        return ReadBack({number: records[number] for number in wanted if number in records}, lost, last)

    async def close(self) -> None:
        """Write what waits, and let go of the folder. With nothing unconfirmed, no segment stays behind."""
        if self._closed:
            return
        await self._quiet.wait()
        self._closed = True
        if self._marks_timer is not None:
            self._marks_timer.cancel()
        await self._in_thread(self._finish)
        self._disk.shutdown(wait=False)

    # Committing: decided in the loop, done in the thread.

    def _commit(self) -> None:
        """Have all that waits written as one group; `_committed` goes on."""
        group, self._waiting, self._waiting_bytes = self._waiting, [], 0
        segment = self._segment_for(group[0][0])
        pieces = [frame for _, frame, _ in group]
        if self._marks:
            marks, self._marks = self._marks, NumberSet()
            pieces.insert(0, frame_marks(marks.runs()))
        self._disk.submit(partial(files.put, segment, b"".join(pieces)), partial(self._committed, segment, group))

    def _committed(self, segment: Segment, group: _Group, error: Exception | None) -> None:
        if error is not None:  # whatever it is, nobody may wait for ever
            self._refuse(group, error)
            self._seal(segment)
        else:
            segment.open.add_run(group[0][0], group[-1][0])  # the numbers of a group have no hole
            self._unconfirmed += len(group)
            for number, _, written in group:
                try:
                    written(number, None)
                except Exception:
                    _log.exception("A listener of the journal failed; the others of its group are told all the same.")
        if self._waiting:
            self._commit()
        else:
            self._is_committing = False
            self._quiet.set()

    def _segment_for(self, number: int) -> Segment:
        """The segment that the next group belongs to; a new one when the current one is large or old."""
        now_s = self._loop.time()
        current = self._current
        if current is not None:
            if current.good_bytes < self._segment_bytes and now_s - current.born_at_s < self._segment_age_s:
                return current
            self._seal(current)
        # The newest segment knows all confirmations, so that an older one may go before the oldest.
        self._marks = NumberSet()
        for segment in self._segments:
            self._marks.update(segment.done)
        self._current = Segment(files.segment_path(self.folder, number), number, born_at_s=now_s)
        self._segments.append(self._current)
        return self._current

    def _seal(self, segment: Segment) -> None:
        """Nothing more is written to this segment; it goes as soon as nothing in it is needed."""
        self._current = None
        if segment.open:
            self._disk.submit(partial(files.close_file, segment))
        else:
            self._segments.remove(segment)
            self._disk.submit(partial(files.discard, segment))

    def _refuse(self, group: _Group, error: Exception) -> None:
        self.refusals += 1
        self._refused_until_s = self._loop.time() + REFUSED_PAUSE_S
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        text = f"The disk refused the journal: {reason}."
        _log.error("%s %d records are not durable.", text, len(group))
        for number, _, written in group:
            try:
                written(number, JournalUnavailable(text))
            except Exception:
                _log.exception("A listener of the journal failed; the others of its group are told all the same.")

    def _write_marks(self) -> None:
        self._marks_timer = None
        if not self._is_committing and self._marks and self._current is not None:
            marks, self._marks = self._marks, NumberSet()
            self._disk.submit(partial(files.put_marks, self._current, frame_marks(marks.runs())))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._disk.call(work)

    # Finding

    def _segments_of(self, first: int, last: int) -> list[Segment]:
        """The segments in which these records may be open, the likeliest first."""
        begin = max(0, bisect_right(self._segments, first, key=_first) - 1)
        end = bisect_right(self._segments, last, begin, key=_first)
        # The others only if somebody has put a file under another name into the folder.
        return self._segments[begin:end] + self._segments[:begin] + self._segments[end:]

    def _open_from(self, start: int) -> tuple[Segment, list[int]] | None:
        at = max(0, bisect_right(self._segments, start, key=_first) - 1)
        for segment in self._segments[at:]:
            wanted = [n for first, last in segment.open.runs(start) for n in range(first, last + 1)]
            if wanted:
                return segment, wanted
        return None

    # In the thread

    def _recover(self) -> None:
        runs: list[tuple[int, int]] = []
        seen = NumberSet()
        for path, content in files.read_folder(self.folder):
            segment = Segment(path, files.first_number(path), damaged=bool(content.damaged or content.torn_bytes))
            if content.records:
                segment.first = min(content.records)
            self.damaged_places += content.damaged
            self.torn_tails += bool(content.torn_bytes)
            if segment.damaged:
                _log.error(
                    "The journal segment %s: %d damaged places, %d bytes of torn tail, %d good records.",
                    path,
                    content.damaged,
                    content.torn_bytes,
                    len(content.records),
                )
            for first, last in _runs_of(content.records):
                segment.open.add_run(first, last)
            segment.open.remove_all(seen)  # should somebody have copied a file
            seen.update(segment.open)
            runs += content.confirmed
            self._next_number = max(
                self._next_number,
                files.first_number(path) + 1,
                max(content.records, default=0) + 1,
                max((last for _, last in content.confirmed), default=0) + 1,
            )
            self._segments.append(segment)
        self._settle(_joined(runs))
        self.first_new = self._next_number

    def _settle(self, confirmed: list[tuple[int, int]]) -> None:
        """Take the confirmed records out of the segments, and delete segments with nothing else."""
        for segment in self._segments:
            runs = list(segment.open.runs())
            at = bisect_left(confirmed, runs[0][0], key=_last) if runs else len(confirmed)
            while at < len(confirmed) and confirmed[at][0] <= runs[-1][1]:
                segment.done.update(segment.open.take_run(*confirmed[at]))
                at += 1
            if not segment.open:
                files.discard(segment)
        self._segments = sorted((segment for segment in self._segments if segment.open), key=_first)
        self._unconfirmed = sum(len(segment.open) for segment in self._segments)

    def _finish(self) -> None:
        if self._current is not None:
            if self._marks and self._unconfirmed:
                files.put_marks(self._current, frame_marks(self._marks.runs()))
            if self._unconfirmed:
                files.close_file(self._current)
            else:
                files.discard(self._current)
        os.close(self._lock)


def _first(segment: Segment) -> int:
    return segment.first


def _last(run: tuple[int, int]) -> int:
    return run[1]


def _runs_of(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Numbers, mostly ascending without a hole, as runs."""
    runs: list[tuple[int, int]] = []
    first = last = -1
    for number in numbers:
        if number != last + 1:
            if first >= 0:
                runs.append((first, last))
            first = number
        last = number
    if first >= 0:
        runs.append((first, last))
    return runs


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same numbers in as few runs as it takes, ascending and apart."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(runs):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        elif first <= last:
            joined.append((first, last))
    return joined


def _take_lock(folder: Path) -> int | None:
    try:
        return files.take_lock(folder)
    except OSError as error:
        raise JournalUnavailable(f"The journal folder {folder} can't be used: {error.strerror}.") from error
