"""The file for records that nobody can read: kept for a person to look at, instead of being met at every start.

Floor: ``ledger`` edge. One line for each, durable when it returns, bounded.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

UNREADABLE_FILE = "unreadable.jsonl"
MAX_UNREADABLE_BYTES = 64 * 1024 * 1024


def set_aside(folder: Path, line: bytes) -> None:
    """Append a line to the folder's file. Blocks.

    Raises:
        OSError: the disk does not take it, or the file is at its bound.
    """
    descriptor = os.open(folder / UNREADABLE_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(descriptor).st_size
        if size + len(line) > MAX_UNREADABLE_BYTES:
            raise OSError(errno.EFBIG, f"more than {MAX_UNREADABLE_BYTES} bytes were set aside already")
        if os.write(descriptor, line + b"\n") != len(line) + 1:
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, "only a part was written")
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
