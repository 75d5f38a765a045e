"""Documents in a bucket of S3, or of a store that speaks like it.

Floor: control. A document is kept whole on this host's disk first: a store wants to know length and checksum before the
first byte, and what is sent with its checksum arrives as it was or not at all. An object is there when its upload has
succeeded and never before, so nothing half-written is ever read.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final, Literal, Self
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from gateway.control.evals.blobs import MAX_BLOB_BYTES, BlobsUnavailable, BlobTooLarge, is_blob_id
from gateway.control.evals.sigv4 import EMPTY_SHA256, S3Access, encoded, signed_headers
from gateway.core.blob_url import Bucket

CONNECT_S: Final = 10.0
SILENCE_S: Final = 60.0
"""How long a store may neither take nor give a byte."""
DEADLINE_S: Final = 300.0
"""Of one document with all attempts."""
ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.5
CONNECTIONS: Final = 32
PIECE_BYTES: Final = 1024 * 1024
_MAX_ERROR_BYTES: Final = 64 * 1024
_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_PASSES: Final = frozenset({408, 429, 500, 502, 503, 504})
log = logging.getLogger("pareta.blobs")


class S3Blobs:
    """In a bucket. See `gateway.control.evals.blobs.Blobs`.

    Args:
        spool: folder of this host for documents on their way.
    """

    def __init__(self, session: aiohttp.ClientSession, bucket: Bucket, access: S3Access, *, spool: Path) -> None:
        self._session = session
        self._bucket = bucket
        self._access = access
        self._spool = spool
        parts = urlsplit(bucket.root)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._host = parts.netloc
        self._base = parts.path.rstrip("/")

    @classmethod
    @asynccontextmanager
    async def open(cls, bucket: Bucket, access: S3Access, *, spool: Path) -> AsyncIterator[Self]:
        """One for the life of a process."""
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
            headers={"User-Agent": "pareta-gateway", "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            yield cls(session, bucket, access, spool=spool)

    async def put(self, blob_id: str, data: AsyncIterator[bytes], *, most_bytes: int) -> int:
        """See `Blobs.put`."""
        path = self._path(blob_id)
        file = await asyncio.to_thread(_open_spool, self._spool)
        try:
            digest, size = hashlib.sha256(), 0
            async for piece in data:
                size += len(piece)
                if size > most_bytes:
                    raise BlobTooLarge
                digest.update(piece)
                await asyncio.to_thread(file.write, piece)
            await self._ask("PUT", path, digest.hexdigest(), file, size)
        finally:
            await asyncio.to_thread(file.close)
        return size

    async def read(self, blob_id: str) -> bytes:
        """See `Blobs.read`."""
        return await self._ask("GET", self._path(blob_id), EMPTY_SHA256)

    async def delete(self, blob_id: str) -> None:
        """See `Blobs.delete`."""
        path = self._path(blob_id)
        with contextlib.suppress(FileNotFoundError):
            await self._ask("DELETE", path, EMPTY_SHA256)

    async def _ask(
        self,
        method: Literal["PUT", "GET", "DELETE"],
        path: str,
        sha256: str,
        file: IO[bytes] | None = None,
        size: int = 0,
    ) -> bytes:
        """The answer to a request. All three may be repeated: once or twice comes to the same.

        Raises:
            FileNotFoundError: there is no such object.
            BlobsUnavailable: after some attempts.
        """
        said = "nothing"
        try:
            async with asyncio.timeout(DEADLINE_S):
                for attempt in range(ATTEMPTS):
                    if attempt:
                        await asyncio.sleep(FIRST_PAUSE_S * 2 ** (attempt - 1))
                    try:
                        status, body = await self._send(method, path, sha256, file, size)
                    except (aiohttp.ClientError, OSError) as error:
                        # Only its kind: the text may name the address.
                        said = type(error).__name__
                        continue
                    if status in (200, 204):
                        return body
                    said = f"{status} {(code := _code(body))}"
                    # A bucket that is not there answers 404 for every object, and none of them is lost.
                    if status == 404 and code == "NoSuchKey":
                        raise FileNotFoundError(path)
                    if status not in _PASSES and code != "RequestTimeout":
                        break
        except TimeoutError:
            said = f"{said}, until time was up"
        log.warning("The store of documents does not take a %s: %s.", method, said)
        raise BlobsUnavailable("The store of documents cannot be reached, or refuses us.")

    async def _send(self, method: str, path: str, sha256: str, file: IO[bytes] | None, size: int) -> tuple[int, bytes]:
        headers: Mapping[str, str] = signed_headers(
            self._access,
            method=method,
            host=self._host,
            path=path,
            region=self._bucket.region,
            payload_sha256=sha256,
            at=datetime.now(UTC),
        )
        data = None
        if file is not None:
            # Known, so that it is not sent in chunks, which stores refuse.
            headers = {**headers, "Content-Length": str(size), "Content-Type": "application/octet-stream"}
            data = _pieces(file) if size else b""
        async with self._session.request(
            method, URL(self._origin + path, encoded=True), headers=headers, data=data, allow_redirects=False
        ) as response:
            most_bytes = MAX_BLOB_BYTES if response.status == 200 else _MAX_ERROR_BYTES
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > most_bytes:
                    raise aiohttp.ClientPayloadError
            return response.status, bytes(body)

    def _path(self, blob_id: str) -> str:
        if not is_blob_id(blob_id):
            raise FileNotFoundError(blob_id)
        return encoded(f"{self._base}/{self._bucket.prefix}{blob_id}")


def _code(body: bytes) -> str:
    """The word of an error's XML."""
    found = _CODE.search(body)
    return found.group(1).decode() if found is not None else ""


def _open_spool(folder: Path) -> IO[bytes]:
    """A file without a name, so that a process which is killed leaves nothing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    await asyncio.to_thread(file.seek, 0)
    while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
        yield piece
