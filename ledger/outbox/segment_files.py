"""The files of a journal, as its thread sees them: append and sync, close, delete, read back, and the folder's lock.

Floor: ``ledger`` edge, below ``ledger.outbox.journal``. Every function blocks; none knows the event loop.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ledger.core.number_set import NumberSet
from ledger.outbox.journal_format import SegmentContent, read_segment

SUFFIX = ".seg"
MAX_DAMAGED_FILES = 32

_log = logging.getLogger("ledger.journal")


@dataclass(slots=True, eq=False)
class Segment:
    """One file of a journal. ``open`` and ``done`` are the records in it that are not, and that are, confirmed."""

    path: Path
    first: int
    descriptor: int = -1
    good_bytes: int = 0
    open: NumberSet = field(default_factory=NumberSet)
    done: NumberSet = field(default_factory=NumberSet)
    born_at_s: float = 0.0
    damaged: bool = False


def segment_path(folder: Path, number: int) -> Path:
    """Where a segment that begins with this record belongs."""
    return folder / f"{number:020d}{SUFFIX}"


def take_lock(folder: Path) -> int | None:
    """Lock a folder, made if need be. The descriptor, or None while another process has it.

    Raises:
        OSError: it can't be made or locked.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):  # held, or taken away in between
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def put(segment: Segment, data: bytes) -> None:
    """Append and sync. On a refusal the file ends at its last good byte and is closed.

    Raises:
        OSError: nothing of ``data`` is durable.
    """
    try:
        if segment.descriptor < 0:
            segment.descriptor = _create(segment.path)
        _write_all(segment.descriptor, data)
        os.fdatasync(segment.descriptor)
        if os.fstat(segment.descriptor).st_nlink == 0:
            _put_again(segment, segment.good_bytes + len(data))
    except OSError:
        if segment.descriptor >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(segment.descriptor, segment.good_bytes)
        close_file(segment)
        raise
    segment.good_bytes += len(data)


def put_marks(segment: Segment, data: bytes) -> None:
    """Append without a sync. A refusal is ignored: the next group will meet it too."""
    if segment.descriptor < 0:
        return
    try:
        _write_all(segment.descriptor, data)
        segment.good_bytes += len(data)
    except OSError:
        with contextlib.suppress(OSError):
            os.ftruncate(segment.descriptor, segment.good_bytes)


def close_file(segment: Segment) -> None:
    """Close it, should it be open."""
    descriptor, segment.descriptor = segment.descriptor, -1
    if descriptor >= 0:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def discard(segment: Segment) -> None:
    """Delete a segment that nobody needs; keep a damaged one for whoever wants to know why."""
    close_file(segment)
    with contextlib.suppress(OSError):
        if segment.damaged:
            attic = segment.path.parent / "damaged"
            attic.mkdir(mode=0o700, exist_ok=True)
            if len(list(attic.iterdir())) < MAX_DAMAGED_FILES:
                segment.path.rename(attic / segment.path.name)
                return
        segment.path.unlink()


def read_file(path: Path) -> SegmentContent:
    """Read a segment file.

    Raises:
        OSError: the disk does not give it back.
    """
    return read_segment(path.read_bytes())


def read_folder(folder: Path) -> Iterator[tuple[Path, SegmentContent]]:
    """Read the segments of a folder, one after the other, oldest first."""
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            yield path, read_file(path)
        except OSError as error:  # left where it is; the others are read
            _log.error("The journal segment %s can't be read: %s.", path, error.strerror)


def first_number(path: Path) -> int:
    """The number that a segment's name begins with; 0 if its name is not ours."""
    try:
        return int(path.name.removesuffix(SUFFIX))
    except ValueError:
        return 0


def _create(path: Path) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        _sync_folder(path.parent)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _put_again(segment: Segment, size: int) -> None:
    """Somebody deleted the file while it was open: write it once more, while its bytes can still be read."""
    _log.error("The journal segment %s was deleted while it was written to; it is written again.", segment.path)
    descriptor = _create(segment.path)
    try:
        at = 0
        while at < size:
            piece = os.pread(segment.descriptor, min(1024 * 1024, size - at), at)
            if not piece:
                raise OSError(5, "The bytes of a deleted file can't be read")
            _write_all(descriptor, piece)
            at += len(piece)
        os.fdatasync(descriptor)
    except OSError:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            segment.path.unlink()
        raise
    close_file(segment)
    segment.descriptor = descriptor


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
