"""Where documents go, and how a request to a bucket is signed."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.control.evals.sigv4 import EMPTY_SHA256, S3Access, encoded, signed_headers
from gateway.core.blob_url import BlobUrlInvalid, Bucket, Folder, read_blob_url
from gateway.settings import SettingsError, load

# The worked examples of Amazon S3's API reference, "Authenticating Requests: Using the Authorization Header".
EXAMPLE = S3Access("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
THEN = datetime(2013, 5, 24, tzinfo=UTC)
WELCOME = hashlib.sha256(b"Welcome to Amazon S3.").hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "sha256", "headers", "names", "signature"),
    [
        (
            "GET",
            "/test.txt",
            EMPTY_SHA256,
            {"range": "bytes=0-9"},
            "host;range;x-amz-content-sha256;x-amz-date",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT",
            "/test$file.text",
            WELCOME,
            {"date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            "date;host;x-amz-content-sha256;x-amz-date;x-amz-storage-class",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
    ],
)
def test_amazons_own_examples(
    method: str, path: str, sha256: str, headers: dict[str, str], names: str, signature: str
) -> None:
    """The signatures that the reference gives."""
    signed = signed_headers(
        EXAMPLE,
        method=method,
        host="examplebucket.s3.amazonaws.com",
        path=encoded(path),
        region="us-east-1",
        payload_sha256=sha256,
        at=THEN,
        headers=headers,
    )
    assert signed == {
        "x-amz-content-sha256": sha256,
        "x-amz-date": "20130524T000000Z",
        "Authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,"
        f"SignedHeaders={names},Signature={signature}",
    }


def test_a_session_is_signed_too() -> None:
    """Credentials that end by themselves come with a token; no repr shows it or the secret."""
    access = S3Access("id", "the-secret", "the-token")
    signed = signed_headers(access, method="GET", host="h", path="/x", region="r", payload_sha256=EMPTY_SHA256, at=THEN)
    assert signed["x-amz-security-token"] == "the-token"
    assert ";x-amz-security-token," in signed["Authorization"]
    assert "the-" not in repr(access)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("file:///srv/documents", Folder("/srv/documents")),
        ("file:///srv/with%20space", Folder("/srv/with space")),
        ("s3://papers", Bucket("https://papers.s3.us-east-1.amazonaws.com", "us-east-1")),
        ("s3://papers/", Bucket("https://papers.s3.us-east-1.amazonaws.com", "us-east-1")),
        (
            "s3://papers/a/b?region=eu-west-1",
            Bucket("https://papers.s3.eu-west-1.amazonaws.com", "eu-west-1", "a/b/"),
        ),
        ("s3://my.papers?region=eu-west-1", Bucket("https://s3.eu-west-1.amazonaws.com/my.papers", "eu-west-1")),
        (
            "s3://papers/a?endpoint=http://127.0.0.1:9000&region=x",
            Bucket("http://127.0.0.1:9000/papers", "x", "a/"),
        ),
        (
            "s3://papers?endpoint=https%3A%2F%2Fstore.example:443%2Fs3%2F",
            Bucket("https://store.example/s3/papers", "us-east-1"),
        ),
        ("s3://papers?endpoint=http://[::1]:80", Bucket("http://[::1]/papers", "us-east-1")),
    ],
)  # fmt: skip
def test_a_place_is_read(url: str, place: Folder | Bucket) -> None:
    """Amazon's own by bucket and region, any other by its endpoint."""
    assert read_blob_url(url) == place


WRONG = [
    "", "x", "/srv/documents", "file://host/srv", "file:srv", "file:///srv?x=1", "http://papers", "s3://", "s3://a",
    "s3://Papers", "s3://papers:9000", "s3://me@papers", "s3://papers?region=", "s3://papers?region=EU_1",
    "s3://papers?endpoint=store.example", "s3://papers?endpoint=ftp://store.example", "s3://papers?other=1",
    "s3://papers?region=a&region=b", "s3://papers/../other", "s3://papers/a//b", "s3://papers/a%20b", "s3://papers/./a",
    "s3://papers?endpoint=http://key:secret@store.example", "s3://papers?endpoint=http://store.example:x",
    "s3://papers?endpoint=http://store.example?x=1", "s3://[papers",
]  # fmt: skip


@pytest.mark.parametrize("url", WRONG)
def test_what_is_no_place_is_refused(url: str) -> None:
    """With a sentence, and as a setting too."""
    with pytest.raises(BlobUrlInvalid, match=r"\.$"):
        read_blob_url(url)
    if url:
        with pytest.raises(SettingsError, match="blob_store_url cannot be used"):
            load({"BLOB_STORE_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})


@given(text=st.text(max_size=30), scheme=st.sampled_from(["", "s3://", "file://", "s3://papers?endpoint="]))
def test_any_text_is_a_place_or_refused(text: str, scheme: str) -> None:
    """Nothing else is raised."""
    try:
        place = read_blob_url(scheme + text)
    except BlobUrlInvalid:
        return
    assert isinstance(place, Bucket) or place.path.startswith("/")


def test_a_bucket_needs_a_key() -> None:
    """It is said at the start, not at the first upload."""
    with pytest.raises(SettingsError, match="aws_secret_access_key"):
        load({"BLOB_STORE_URL": "s3://papers", "AWS_ACCESS_KEY_ID": "a"})
    settings = load({"BLOB_STORE_URL": "s3://papers", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "the-secret"})
    assert settings.blob_store_url == "s3://papers"
    assert "the-secret" not in repr(settings)
