"""A store that speaks like S3, as strict as that: for tests of who keeps objects there.

It checks each request's signature with the steps of the specification, the clock, the body's length and checksum; what
is not right gets the refusal that S3 gives, in its XML. An object is there when all of it has come, and never before.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from aiohttp import web

KEY_ID, SECRET, TOKEN, REGION, BUCKET = "AKIATEST", "the/secret+of=ours", "the-token", "eu-test-1", "papers"
_AUTHORIZATION: Final = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([a-z0-9-]+)/s3/aws4_request,SignedHeaders=([a-z0-9;-]+),"
    r"Signature=([0-9a-f]{64})"
)


class S3Server:
    """One bucket.

    Attributes:
        objects: by key.
        asked: method and answer's status of each request.
        failures: what is answered to the next requests instead: a status with a code, or a break of the connection at
            that many bytes of the request's body (``cut``) or of the answer's (``half``).
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.failures: list[tuple[int, str] | str] = []
        self.has_bucket = True
        self.endpoint = ""

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[S3Server]:
        """Serve on a port of the system's choice, or on this one."""
        app = web.Application(client_max_size=200 * 1024 * 1024)
        app.router.add_route("*", "/{tail:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
            self.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    def url(self, prefix: str = "") -> str:
        """For BLOB_STORE_URL."""
        return f"s3://{BUCKET}{prefix}?endpoint={self.endpoint}&region={REGION}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        failure = self.failures.pop(0) if self.failures else None
        if failure == "cut":
            assert request.transport is not None
            await request.content.readany()
            request.transport.abort()
            self.asked.append((request.method, 0))
            return web.Response()
        if failure == "silent":
            self.asked.append((request.method, 0))
            await asyncio.sleep(60)
        if isinstance(failure, tuple):
            await request.read()
            response: web.StreamResponse = _refused(*failure)
        else:
            response = await self._do(request)
        self.asked.append((request.method, response.status))
        if failure == "half" and isinstance(response, web.Response):
            assert isinstance(response.body, bytes)
            half = web.StreamResponse(status=response.status)
            half.content_length = len(response.body)
            await half.prepare(request)
            await half.write(response.body[: len(response.body) // 2])
            assert request.transport is not None
            request.transport.close()
            return half
        return response

    async def _do(self, request: web.Request) -> web.Response:
        if (code := _wrong(request)) is not None:
            return _refused(403, code)
        if request.method == "PUT" and "Content-Length" not in request.headers:
            return _refused(411, "MissingContentLength")
        body = await request.read()
        if hashlib.sha256(body).hexdigest() != request.headers["x-amz-content-sha256"]:
            return _refused(400, "XAmzContentSHA256Mismatch")
        bucket, _, key = request.path.lstrip("/").partition("/")
        if bucket != BUCKET or not self.has_bucket:
            return _refused(404, "NoSuchBucket")
        match request.method:
            case "PUT":
                self.objects[key] = body
                return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
            case "DELETE":
                self.objects.pop(key, None)
                return web.Response(status=204)
            case "GET":
                if key not in self.objects:
                    return _refused(404, "NoSuchKey")
                return web.Response(body=self.objects[key], content_type="application/octet-stream")
            case _:
                return _refused(405, "MethodNotAllowed")


def _wrong(request: web.Request) -> str | None:
    """What is wrong with a request's signature."""
    headers = request.headers
    found = _AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
    if found is None:
        return "AccessDenied"
    key_id, day, region, names, signature = found.groups()
    if key_id != KEY_ID or headers.get("x-amz-security-token", TOKEN) != TOKEN:
        return "InvalidAccessKeyId"
    if region != REGION:
        return "AuthorizationHeaderMalformed"
    at = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if abs((datetime.now(UTC) - at).total_seconds()) > 15 * 60 or headers["x-amz-date"][:8] != day:
        return "RequestTimeTooSkewed"
    must = {"host", *(name.lower() for name in headers if name.lower().startswith("x-amz-"))}
    if not must <= set(names.split(";")):
        return "AccessDenied"
    raw_path, _, query = request.raw_path.partition("?")
    canonical = [request.method, raw_path, query]
    canonical += [f"{name}:{' '.join(headers[name].split())}" for name in names.split(";")]
    canonical += ["", names, headers["x-amz-content-sha256"]]
    digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{day}/{region}/s3/aws4_request\n{digest}"
    secret = f"AWS4{SECRET}".encode()
    for step in (day, region, "s3", "aws4_request"):
        secret = hmac.new(secret, step.encode(), hashlib.sha256).digest()
    right = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
    return None if hmac.compare_digest(right, signature) else "SignatureDoesNotMatch"


def _refused(status: int, code: str) -> web.Response:
    error = f"<Error><Code>{code}</Code><Message>words of the store</Message></Error>"
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{error}'
    return web.Response(status=status, text=body, content_type="application/xml")
