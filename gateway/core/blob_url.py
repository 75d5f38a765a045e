"""Which store documents go to, as its URL says: a folder of a host, or a bucket of S3 or of what speaks like it.

Floor: core (pure). ``file:///srv/documents``; ``s3://bucket/prefix?region=eu-west-1``;
``s3://bucket?endpoint=https://store.example&region=…`` for a store that is not Amazon's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
_REGION: Final = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_PREFIX: Final = re.compile(r"([A-Za-z0-9._-]+/)*", re.ASCII)
DEFAULT_REGION: Final = "us-east-1"


@dataclass(frozen=True, slots=True)
class Folder:
    """``path``: absolute."""

    path: str


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where objects lie.

    Attributes:
        root: ``http(s)://host[:port]``, a path if the store has one, and the bucket where it is not part of the host.
        prefix: of every object's name; empty, or it ends in a slash.
    """

    root: str
    region: str
    prefix: str = ""


class BlobUrlInvalid(ValueError):
    """It names no store. The text is a sentence for the operator."""


def read_blob_url(url: str) -> Folder | Bucket:
    """The place that a URL names.

    Raises:
        BlobUrlInvalid.
    """
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise BlobUrlInvalid("It is no URL.") from None
    if parts.scheme == "file" and not parts.netloc and not query and parts.path.startswith("/"):
        return Folder(unquote(parts.path))
    if parts.scheme != "s3":
        raise BlobUrlInvalid("It must be file:///folder or s3://bucket/prefix?endpoint=…&region=….")
    if set(query) - {"endpoint", "region"} or any(len(values) != 1 for values in query.values()):
        raise BlobUrlInvalid("After the question mark there may be endpoint and region, once each.")
    name, prefix = parts.netloc, parts.path.strip("/")
    region = query.get("region", [DEFAULT_REGION])[0]
    if _BUCKET.fullmatch(name) is None:
        raise BlobUrlInvalid("A bucket's name has 3 to 63 lower-case letters, digits, dots and hyphens.")
    if _REGION.fullmatch(region) is None:
        raise BlobUrlInvalid("A region has lower-case letters, digits and hyphens.")
    prefix = f"{prefix}/" if prefix else ""
    if _PREFIX.fullmatch(prefix) is None or ".." in prefix.split("/") or "." in prefix.split("/"):
        raise BlobUrlInvalid("A prefix has letters, digits, dots, hyphens and underscores between its slashes.")
    if "endpoint" in query:
        return Bucket(f"{_endpoint(query['endpoint'][0])}/{name}", region, prefix)
    if "." in name:
        # No certificate covers such a name as part of the host.
        return Bucket(f"https://s3.{region}.amazonaws.com/{name}", region, prefix)
    return Bucket(f"https://{name}.s3.{region}.amazonaws.com", region, prefix)


def _endpoint(text: str) -> str:
    """Root of a store, without the port where it is the scheme's own: what will stand in the header Host."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise BlobUrlInvalid("The endpoint is no URL.") from None
    is_plain = parts.username is None and not parts.query and not parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        raise BlobUrlInvalid("The endpoint must be an address such as https://store.example:9000.")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    own = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{'' if port in (None, own) else f':{port}'}{parts.path.rstrip('/')}"
