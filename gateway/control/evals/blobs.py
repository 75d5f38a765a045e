"""Documents: the port to where they lie, and a folder of this host: written beside, synced, then named; read whole.

Floor: control. Ids are ours, never a caller's text, so no path can be reached through one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, Protocol

from gateway.control.database import StoreUnavailable

MAX_BLOB_BYTES: Final = 100 * 1024 * 1024
_ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class BlobTooLarge(Exception):
    """More bytes came than may."""


class BlobsUnavailable(StoreUnavailable):
    """The store of documents can't be reached. A retry is safe."""


class Blobs(Protocol):
    """Where documents lie."""

    async def put(self, blob_id: str, data: AsyncIterator[bytes], *, most_bytes: int) -> int:
        """Keep bytes under a new id; returns how many there were.

        Raises:
            BlobTooLarge; BlobsUnavailable; OSError. Nothing was kept, or it is not known to have been.
        """

    async def read(self, blob_id: str) -> bytes:
        """The bytes. Raises: FileNotFoundError; BlobsUnavailable."""

    async def delete(self, blob_id: str) -> None:
        """Forget them, if they are there. Raises: BlobsUnavailable."""


def new_blob_id() -> str:
    """An id that nobody can guess."""
    return secrets.token_hex(16)


def is_blob_id(text: str) -> bool:
    """Whether it has the form of an id."""
    return _ID.fullmatch(text) is not None


class LocalBlobs:
    """In a folder of this host.

    Args:
        folder: made when the first blob comes; only its owner can read it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def put(self, blob_id: str, data: AsyncIterator[bytes], *, most_bytes: int) -> int:
        """See `Blobs.put`."""
        path = self._path(blob_id)
        beside = path.with_suffix(f".{secrets.token_hex(4)}.part")
        file = await asyncio.to_thread(_open_new, beside)
        size = 0
        try:
            async for piece in data:
                size += len(piece)
                if size > most_bytes:
                    raise BlobTooLarge
                await asyncio.to_thread(_write_all, file, piece)
            await asyncio.to_thread(_finish, file, beside, path)
        except BaseException:
            os.close(file)
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        return size

    async def read(self, blob_id: str) -> bytes:
        """See `Blobs.read`."""
        return await asyncio.to_thread(self._path(blob_id).read_bytes)

    async def delete(self, blob_id: str) -> None:
        """See `Blobs.delete`."""
        await asyncio.to_thread(self._path(blob_id).unlink, missing_ok=True)

    def _path(self, blob_id: str) -> Path:
        if not is_blob_id(blob_id):
            raise FileNotFoundError(blob_id)
        # A folder of many thousand files is slow to look at.
        return self._folder / blob_id[:2] / blob_id


def _open_new(path: Path) -> int:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write_all(file: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(file, rest) :]


def _finish(file: int, beside: Path, path: Path) -> None:
    os.fsync(file)
    beside.rename(path)
    os.close(file)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
