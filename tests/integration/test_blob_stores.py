"""Documents in a folder and in a bucket: one set of promises for both, then what only a bucket can do wrong."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.control.database import StoreUnavailable
from gateway.control.evals import s3
from gateway.control.evals.blobs import Blobs, BlobsUnavailable, BlobTooLarge, new_blob_id
from gateway.control.evals.sigv4 import S3Access
from gateway.control.evals.storage import open_blobs
from tests.integration.s3_server import KEY_ID, SECRET, TOKEN, S3Server

ACCESS = S3Access(KEY_ID, SECRET)
MANY = os.urandom(3 * 1024 * 1024 + 7)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
async def server() -> AsyncIterator[S3Server]:
    async with S3Server().running() as server:
        yield server


@pytest.fixture
async def bucket(server: S3Server, tmp_path: Path) -> AsyncIterator[Blobs]:
    async with open_blobs(server.url("/of/evals"), ACCESS, folder=tmp_path) as blobs:
        yield blobs


@pytest.fixture(params=["default", "folder", "bucket"])
async def blobs(request: pytest.FixtureRequest, server: S3Server, tmp_path: Path) -> AsyncIterator[Blobs]:
    url = {"default": "", "folder": f"file://{tmp_path}/elsewhere", "bucket": server.url()}[request.param]
    async with open_blobs(url, ACCESS, folder=tmp_path) as blobs:
        yield blobs


async def pieces(data: bytes, *, of: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), of):
        await asyncio.sleep(0)
        yield data[start : start + of]


def left_over(folder: Path) -> list[Path]:
    """All files but those that have a blob's name."""
    return [path for path in folder.rglob("*") if path.is_file() and len(path.name) != 32]


# ----------------------------------------------------------------------------------------------------------- both kinds


@pytest.mark.parametrize("data", [b"", b"x", MANY], ids=["nothing", "a byte", "many"])
async def test_what_is_kept_is_read(blobs: Blobs, tmp_path: Path, data: bytes) -> None:
    """Byte for byte; deleted it is gone, and deleting it again is no error."""
    first, second = new_blob_id(), new_blob_id()
    for blob_id in (first, second):
        assert await blobs.put(blob_id, pieces(data), most_bytes=len(data)) == len(data)
        assert await blobs.read(blob_id) == data
    for _ in range(2):
        await blobs.delete(first)
        with pytest.raises(FileNotFoundError):
            await blobs.read(first)
    assert await blobs.read(second) == data
    assert left_over(tmp_path) == []


async def test_what_is_too_large_is_not_kept(blobs: Blobs, server: S3Server, tmp_path: Path) -> None:
    """Not one byte of it."""
    blob_id = new_blob_id()
    with pytest.raises(BlobTooLarge):
        await blobs.put(blob_id, pieces(MANY), most_bytes=len(MANY) - 1)
    with pytest.raises(FileNotFoundError):
        await blobs.read(blob_id)
    assert (left_over(tmp_path), server.objects) == ([], {})


@pytest.mark.parametrize("error", [ConnectionResetError, asyncio.CancelledError])
async def test_a_sender_that_breaks_off_leaves_nothing(
    blobs: Blobs, server: S3Server, tmp_path: Path, error: type[BaseException]
) -> None:
    """Neither a document nor a half of one."""

    async def broken() -> AsyncIterator[bytes]:
        yield MANY
        raise error

    blob_id = new_blob_id()
    with pytest.raises(error):
        await blobs.put(blob_id, broken(), most_bytes=2 * len(MANY))
    with pytest.raises(FileNotFoundError):
        await blobs.read(blob_id)
    assert (left_over(tmp_path), server.objects) == ([], {})


@pytest.mark.parametrize("blob_id", ["", "x", "../" * 10 + "etc/passwd", "0" * 31, "0" * 33, "A" * 32, "0" * 31 + "/"])
async def test_only_our_own_ids_are_places(blobs: Blobs, server: S3Server, tmp_path: Path, blob_id: str) -> None:
    """No path is made of anything else."""
    for call in (blobs.read(blob_id), blobs.delete(blob_id), blobs.put(blob_id, pieces(b"x"), most_bytes=1)):
        with pytest.raises(FileNotFoundError):
            await call
    assert (server.asked, [path for path in tmp_path.rglob("*") if path.is_file()]) == ([], [])


async def test_many_at_once(blobs: Blobs) -> None:
    """Each is its own."""
    ids = [new_blob_id() for _ in range(40)]
    await asyncio.gather(*(blobs.put(one, pieces(one.encode() * 100), most_bytes=10_000) for one in ids))
    assert await asyncio.gather(*(blobs.read(one) for one in ids)) == [one.encode() * 100 for one in ids]


# -------------------------------------------------------------------------------------------------------------- buckets


async def test_objects_stand_below_the_prefix(bucket: Blobs, server: S3Server) -> None:
    """Other things in the bucket are not ours."""
    server.objects["of/others"] = b"x"
    blob_id = new_blob_id()
    await bucket.put(blob_id, pieces(b"abc"), most_bytes=3)
    assert server.objects == {"of/others": b"x", f"of/evals/{blob_id}": b"abc"}


async def test_credentials_that_end_have_a_token(server: S3Server, tmp_path: Path) -> None:
    """It is signed like everything else."""
    async with open_blobs(server.url(), replace(ACCESS, session_token=TOKEN), folder=tmp_path) as blobs:
        assert await blobs.put(blob_id := new_blob_id(), pieces(b"abc"), most_bytes=3) == 3
        assert await blobs.read(blob_id) == b"abc"


@pytest.mark.parametrize(
    "failure",
    [(503, "SlowDown"), (500, "InternalError"), (502, ""), (400, "RequestTimeout"), (429, "TooManyRequests"), "cut"],
)
async def test_a_store_in_trouble_is_asked_again(
    bucket: Blobs, server: S3Server, failure: tuple[int, str] | str
) -> None:
    """With the whole document, from its start."""
    blob_id = new_blob_id()
    for _ in range(2):
        server.failures = [failure, failure]
        assert await bucket.put(blob_id, pieces(MANY), most_bytes=len(MANY)) == len(MANY)
    server.failures = [failure, failure]
    assert await bucket.read(blob_id) == MANY
    server.failures = [failure]
    await bucket.delete(blob_id)
    assert server.objects == {}
    assert len(server.asked) == 3 + 3 + 3 + 2


async def test_half_an_answer_is_none(bucket: Blobs, server: S3Server) -> None:
    """It is read again."""
    blob_id = new_blob_id()
    await bucket.put(blob_id, pieces(MANY), most_bytes=len(MANY))
    server.failures = ["half", "half"]
    assert await bucket.read(blob_id) == MANY


async def test_a_store_that_is_away_can_be_asked_later(server: S3Server, tmp_path: Path) -> None:
    """It is said so; that is no word about the document."""
    async with S3Server().running() as other:
        url, port = other.url(), int(other.endpoint.rpartition(":")[2])
    blob_id = new_blob_id()
    async with open_blobs(url, ACCESS, folder=tmp_path) as blobs:
        for call in (blobs.put(blob_id, pieces(b"x"), most_bytes=1), blobs.read(blob_id), blobs.delete(blob_id)):
            with pytest.raises(BlobsUnavailable) as caught:
                await call
            # What routes answer 503 to, and what runs wait for.
            assert isinstance(caught.value, StoreUnavailable)
        async with other.running(port):
            assert await blobs.put(blob_id, pieces(b"x"), most_bytes=1) == 1
    assert left_over(tmp_path) == []


async def test_a_silent_store_is_left_at_the_deadline(
    bucket: Blobs, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all attempts together."""
    monkeypatch.setattr(s3, "DEADLINE_S", 0.2)
    server.failures = ["silent"] * 10
    with pytest.raises(BlobsUnavailable):
        await bucket.read(new_blob_id())
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("access", "code"),
    [
        (S3Access("someone", SECRET), "InvalidAccessKeyId"),
        (S3Access(KEY_ID, "another secret"), "SignatureDoesNotMatch"),
        (S3Access(KEY_ID, SECRET, "an-old-token"), "InvalidAccessKeyId"),
    ],
)
async def test_wrong_credentials_are_the_operators(
    server: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture, access: S3Access, code: str
) -> None:
    """They are not tried again; the log has the store's code, and neither secrets nor the store's address."""
    async with open_blobs(server.url(), access, folder=tmp_path) as blobs:
        with caplog.at_level(logging.INFO, logger="pareta"), pytest.raises(BlobsUnavailable) as caught:
            await blobs.put(new_blob_id(), pieces(b"x"), most_bytes=1)
    assert server.asked == [("PUT", 403)]
    assert code in caplog.text
    told = f"{caplog.text} {caught.value!r}"
    assert not any(word in told for word in (access.secret, "an-old-token", "127.0.0.1", "words of the store"))


async def test_a_bucket_that_is_gone_loses_no_document(bucket: Blobs, server: S3Server) -> None:
    """404 for the bucket is not 404 for what is in it: the row is asked for again and not given up."""
    blob_id = new_blob_id()
    await bucket.put(blob_id, pieces(b"abc"), most_bytes=3)
    server.has_bucket = False
    with pytest.raises(BlobsUnavailable):
        await bucket.read(blob_id)
    server.has_bucket = True
    assert await bucket.read(blob_id) == b"abc"


async def test_an_object_that_grew_is_not_read(
    bucket: Blobs, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who else may write to the bucket cannot fill our memory."""
    monkeypatch.setattr(s3, "MAX_BLOB_BYTES", 1000)
    blob_id = new_blob_id()
    server.objects[f"of/evals/{blob_id}"] = b"x" * 1001
    with pytest.raises(BlobsUnavailable):
        await bucket.read(blob_id)
    server.objects[f"of/evals/{blob_id}"] = b"x" * 1000
    assert await bucket.read(blob_id) == b"x" * 1000
