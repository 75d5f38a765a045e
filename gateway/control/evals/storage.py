"""The store that documents go to.

Floor: control.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.control.evals.blobs import Blobs, LocalBlobs
from gateway.control.evals.s3 import S3Blobs
from gateway.control.evals.sigv4 import S3Access
from gateway.core.blob_url import Folder, read_blob_url


@asynccontextmanager
async def open_blobs(url: str, access: S3Access, *, folder: Path) -> AsyncIterator[Blobs]:
    """The store that a URL names, for the life of a process.

    Args:
        url: see `gateway.core.blob_url`; empty is a folder below ``folder``.
        access: to buckets.
        folder: of this installation; documents on their way to a bucket are kept below it.

    Raises:
        BlobUrlInvalid.
    """
    place = read_blob_url(url) if url else Folder(str(folder / "documents"))
    if isinstance(place, Folder):
        yield LocalBlobs(Path(place.path))
        return
    async with S3Blobs.open(place, access, spool=folder / "spool") as blobs:
        yield blobs
