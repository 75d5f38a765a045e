"""The local journal of one worker: what was appended is on the disk when the answer comes.

Floor: ``ledger`` edge. Knows bytes, numbers and files; nothing of settlements or Redis.

* One folder per worker slot, locked with ``flock``: the kernel frees the lock when the process dies, however it dies.
* Group commit: everything that arrived while the last group was being written goes out in one ``write`` and one
  ``fdatasync``, in a thread, so the event loop never waits for the disk.
* Segments: a new one after ``segment_bytes`` or ``segment_age_s``; one whose records are all confirmed is deleted.
  Confirmations are written into the journal as well, without a sync: should a power cut lose them, the records are
  delivered once more, which is harmless.
* A disk that refuses (full, broken, too large a file): the group fails with ``JournalUnavailable``, the file is cut
  back to its last good byte and closed, and the next group tries a new file. After a failed sync nothing is assumed
  about the pages that were written. A record of a failed group may still turn up at the next start; it was never
  called durable, and delivering it is harmless.
* Damage found at the start never stops the start. A torn tail was never called durable. A flipped bit costs the record
  it hit: the file is kept under ``damaged/``, counted and logged, and the hold of that record is charged by the reaper
  at what its last heartbeat had delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

from ledger.journal_format import SegmentContent, frame_marks, frame_record, read_segment

MAX_WAITING_BYTES = 64 * 1024 * 1024
MARKS_DELAY_S = 1.0
REFUSED_PAUSE_S = 0.25
"""After a refusal the disk is left alone for this long."""

MAX_DAMAGED_FILES = 32
_LOCK_RETRY_S = 0.05
_SUFFIX = ".seg"

T = TypeVar("T")

_log = logging.getLogger(__name__)

Written = Callable[[int, "JournalUnavailable | None"], None]
"""Called in the event loop, in order: the record's number, and None if it is durable."""


class JournalUnavailable(Exception):
    """The record is not durable; the disk or a bound refused it. The text is a sentence."""


class JournalLocked(JournalUnavailable):
    """Another process holds this journal."""


@dataclass(slots=True, eq=False)
class _Segment:
    path: Path
    descriptor: int = -1
    good_bytes: int = 0
    unconfirmed: int = 0
    confirmed: list[int] = field(default_factory=list)
    born_at_s: float = 0.0
    damaged: bool = False


class Journal:
    """An open, locked journal. Make it with :meth:`open`; use it from one event loop."""

    def __init__(self, folder: Path, lock: int, *, segment_bytes: int, segment_age_s: float) -> None:
        self.folder = folder
        self.damaged_places = 0
        self.torn_tails = 0
        self.refusals = 0
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._segment_age_s = segment_age_s
        self._loop = asyncio.get_running_loop()
        # One thread, so that writes, syncs and deletions keep their order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._next_number = 1
        self._segment: _Segment | None = None
        self._sealed: set[_Segment] = set()
        """Earlier segments in which something is not confirmed."""
        self._unconfirmed: dict[int, _Segment] = {}
        self._recovered: dict[int, bytes] = {}
        self._waiting: list[tuple[int, bytes, Written]] = []
        self._waiting_bytes = 0
        self._marks: list[int] = []
        self._marks_timer: asyncio.TimerHandle | None = None
        self._committing: asyncio.Task[None] | None = None
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
        """Lock the folder (made if need be) and read what is not confirmed.

        Args:
            wait_s: how long to wait for another process to let go of it.

        Raises:
            JournalLocked: another process holds it.
            JournalUnavailable: the folder can't be made or read.
        """
        loop = asyncio.get_running_loop()
        lock = await loop.run_in_executor(None, _take_lock, folder)
        deadline_s = loop.time() + wait_s
        while lock is None:
            if loop.time() >= deadline_s:
                raise JournalLocked(f"The journal {folder} belongs to a process that is running.")
            await asyncio.sleep(_LOCK_RETRY_S)
            lock = await loop.run_in_executor(None, _take_lock, folder)
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
        return len(self._unconfirmed)

    def recovered(self) -> dict[int, bytes]:
        """The unconfirmed records of earlier runs, by number, oldest first. Handed out once."""
        found, self._recovered = self._recovered, {}
        return found

    async def reread(self) -> dict[int, bytes]:
        """All unconfirmed records, read back from the disk, oldest first."""
        found = await self._in_thread(lambda: _read_all(self.folder)[1])
        return {number: payload for number, payload in sorted(found.items()) if number in self._unconfirmed}

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
        frame = frame_record(self._next_number, payload)
        self._waiting.append((self._next_number, frame, written))
        self._waiting_bytes += len(frame)
        self._next_number += 1
        if self._committing is None:
            self._committing = self._loop.create_task(self._commit(), name="journal-commit")

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

    def confirm(self, number: int) -> None:
        """The record is not needed any more. A number that is not open is ignored."""
        segment = self._unconfirmed.pop(number, None)
        if segment is None:
            return
        segment.unconfirmed -= 1
        segment.confirmed.append(number)
        self._marks.append(number)
        if segment.unconfirmed == 0 and segment is not self._segment and not self._closed:
            self._sealed.discard(segment)
            self._disk.submit(_discard, segment)
        if self._marks_timer is None and not self._closed:
            self._marks_timer = self._loop.call_later(MARKS_DELAY_S, self._write_marks)

    async def close(self) -> None:
        """Write what waits, and let go of the folder. With nothing unconfirmed, no segment stays behind."""
        if self._closed:
            return
        if self._committing is not None:
            await asyncio.wait([self._committing])
        self._closed = True
        if self._marks_timer is not None:
            self._marks_timer.cancel()
        await self._in_thread(self._finish)
        self._disk.shutdown(wait=False)

    # Committing: decided in the loop, done in the thread.

    async def _commit(self) -> None:
        try:
            while self._waiting:
                group, self._waiting, self._waiting_bytes = self._waiting, [], 0
                segment = self._segment_for(group[0][0])
                marks, self._marks = self._marks, []
                data = b"".join([frame_marks(marks), *(frame for _, frame, _ in group)])
                try:
                    await self._in_thread(partial(_put, segment, data))
                except Exception as error:  # whatever it is, nobody may wait for ever
                    self._refuse(group, error)
                    self._seal(segment)
                    continue
                segment.unconfirmed += len(group)
                for number, _, written in group:
                    self._unconfirmed[number] = segment
                    _tell(written, number, None)
        finally:
            self._committing = None

    def _segment_for(self, number: int) -> _Segment:
        """The segment that the next group belongs to; a new one when the current one is large or old."""
        now_s = self._loop.time()
        current = self._segment
        if current is not None:
            if current.good_bytes < self._segment_bytes and now_s - current.born_at_s < self._segment_age_s:
                return current
            self._seal(current)
        self._segment = _Segment(self.folder / f"{number:020d}{_SUFFIX}", born_at_s=now_s)
        # The newest segment knows all confirmations, so that an older one may go before the oldest.
        self._marks = [number for sealed in self._sealed for number in sealed.confirmed]
        return self._segment

    def _seal(self, segment: _Segment) -> None:
        """Nothing more is written to this segment; it goes as soon as nothing in it is needed."""
        self._segment = None
        if segment.unconfirmed:
            self._sealed.add(segment)
            self._disk.submit(_close_file, segment)
        else:
            self._disk.submit(_discard, segment)

    def _refuse(self, group: list[tuple[int, bytes, Written]], error: Exception) -> None:
        self.refusals += 1
        self._refused_until_s = self._loop.time() + REFUSED_PAUSE_S
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        text = f"The disk refused the journal: {reason}."
        _log.error("%s %d records are not durable.", text, len(group))
        for number, _, written in group:
            _tell(written, number, JournalUnavailable(text))

    def _write_marks(self) -> None:
        self._marks_timer = None
        if self._committing is None and self._marks and self._segment is not None:
            marks, self._marks = self._marks, []
            self._disk.submit(_put_marks, self._segment, frame_marks(marks))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._disk, work)

    # In the thread

    def _recover(self) -> None:
        contents, _ = _read_all(self.folder)
        confirmed = set().union(*(content.confirmed for _, content in contents))
        for path, content in contents:
            segment = _Segment(path, damaged=bool(content.damaged or content.torn_bytes))
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
            for number, payload in content.records.items():
                if number in confirmed:
                    segment.confirmed.append(number)
                else:
                    self._recovered[number] = payload
                    self._unconfirmed[number] = segment
                    segment.unconfirmed += 1
            self._next_number = max(
                self._next_number, _first_number(path) + 1, *(n + 1 for n in (*content.records, *content.confirmed))
            )
            if segment.unconfirmed:
                self._sealed.add(segment)
            else:
                _discard(segment)
        self._recovered = dict(sorted(self._recovered.items()))

    def _finish(self) -> None:
        if self._segment is not None:
            if self._marks and self._unconfirmed:
                _put_marks(self._segment, frame_marks(self._marks))
            if self._unconfirmed:
                _close_file(self._segment)
            else:
                _discard(self._segment)
        os.close(self._lock)


def _tell(written: Written, number: int, error: JournalUnavailable | None) -> None:
    try:
        written(number, error)
    except Exception:
        _log.exception("A listener of the journal failed; the other records of its group are told all the same.")


def _take_lock(folder: Path) -> int | None:
    """The locked descriptor, or None while another process has it."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise JournalUnavailable(f"The journal folder {folder} can't be used: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        raise JournalUnavailable(f"The journal folder {folder} can't be locked: {error.strerror}.") from error
    return descriptor


def _put(segment: _Segment, data: bytes) -> None:
    """Append and sync. On a refusal the file ends at its last good byte and is closed."""
    try:
        if segment.descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            segment.descriptor = os.open(segment.path, flags, 0o600)
            _sync_folder(segment.path.parent)
        _write_all(segment.descriptor, data)
        os.fdatasync(segment.descriptor)
    except OSError:
        if segment.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(segment.descriptor, segment.good_bytes)
        _close_file(segment)
        raise
    segment.good_bytes += len(data)


def _put_marks(segment: _Segment, data: bytes) -> None:
    """Append without a sync. A refusal is ignored: the next group will meet it too."""
    if segment.descriptor < 0:
        return
    try:
        _write_all(segment.descriptor, data)
        segment.good_bytes += len(data)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(segment.descriptor, segment.good_bytes)


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _close_file(segment: _Segment) -> None:
    descriptor, segment.descriptor = segment.descriptor, -1
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _discard(segment: _Segment) -> None:
    """Delete a segment that nobody needs; keep a damaged one for whoever wants to know why."""
    _close_file(segment)
    with contextlib.suppress(OSError):
        if segment.damaged:
            attic = segment.path.parent / "damaged"
            attic.mkdir(mode=0o700, exist_ok=True)
            if len(list(attic.iterdir())) < MAX_DAMAGED_FILES:
                segment.path.rename(attic / segment.path.name)
                return
        segment.path.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_all(folder: Path) -> tuple[list[tuple[Path, SegmentContent]], dict[int, bytes]]:
    contents: list[tuple[Path, SegmentContent]] = []
    records: dict[int, bytes] = {}
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            content = read_segment(path.read_bytes())
        except OSError as error:  # left where it is; the others are read
            _log.error("The journal segment %s can't be read: %s.", path, error.strerror)
            continue
        contents.append((path, content))
        records.update(content.records)
    return contents, records


def _first_number(path: Path) -> int:
    try:
        return int(path.name.removesuffix(_SUFFIX))
    except ValueError:
        return 0
