"""Signing requests to S3 and whatever speaks like it: AWS Signature Version 4, in a header.

Floor: control (pure). Source: Amazon S3's API reference, "Authenticating Requests: Using the Authorization Header".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from urllib.parse import quote

EMPTY_SHA256: Final = hashlib.sha256(b"").hexdigest()
_ALGORITHM: Final = "AWS4-HMAC-SHA256"


@dataclass(frozen=True, slots=True)
class S3Access:
    """Who asks. ``session_token``: of credentials that end by themselves; else empty."""

    key_id: str
    secret: str = field(repr=False)
    session_token: str = field(default="", repr=False)


def signed_headers(
    access: S3Access,
    *,
    method: str,
    host: str,
    path: str,
    region: str,
    payload_sha256: str,
    at: datetime,
    headers: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """The headers that a request without a query needs besides those that it has; all of them are signed.

    Args:
        host: as it will stand in the header of this name, with the port if it is not the scheme's own.
        path: with a slash in front, percent-encoded by `encoded`.
        payload_sha256: of the body, in hexadecimal.
        at: now, in UTC; a server refuses what is a quarter of an hour off its own clock.
        headers: more that are to be signed, by names in lower case.
    """
    moment = at.strftime("%Y%m%dT%H%M%SZ")
    ours = {"x-amz-content-sha256": payload_sha256, "x-amz-date": moment}
    if access.session_token:
        ours["x-amz-security-token"] = access.session_token
    signed = {"host": host, **(headers or {}), **ours}
    names = ";".join(sorted(signed))
    request = "\n".join(
        (method, path, "", *(f"{name}:{signed[name].strip()}" for name in sorted(signed)), "", names, payload_sha256)
    )
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join((_ALGORITHM, moment, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = b"AWS4" + access.secret.encode()
    for step in (moment[:8], region, "s3", "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
    authorization = f"{_ALGORITHM} Credential={access.key_id}/{scope},SignedHeaders={names},Signature={signature}"
    return {**ours, "Authorization": authorization}


def encoded(path: str) -> str:
    """A path as it is signed and sent: each byte but the unreserved ones and the slash."""
    return quote(path, safe="/-_.~")
