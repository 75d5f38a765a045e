"""Documents of an eval set's rows: small ones in one request, large ones by an upload URL.

Floor: control. Contract: section 2.7. Whoever has an upload URL may send the bytes of one document once, for a
quarter of an hour, and nothing else: the URL's secret is stored hashed and bound to set, row, field, type and size.
Nothing that a caller sends is ever opened as an address.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import BodyPartReader, web

from gateway.control.api.caller import Call, Handler, answer, refusal
from gateway.control.api.evals import found_set, parts_of, text_of
from gateway.control.catalog import store as catalog
from gateway.control.database import StoreUnavailable
from gateway.control.evals import sets
from gateway.control.evals.blobs import MAX_BLOB_BYTES, Blobs, BlobTooLarge, new_blob_id
from gateway.control.evals.sets import Attached
from gateway.core import errors
from gateway.core.errors import Refused

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store
    from gateway.control.evals.values import EvalSet

MAX_INLINE_BYTES: Final = 16 * 1024 * 1024
"""Of a document inside a request; the SDKs send those below 5 MiB so."""
UPLOAD_FOR_S: Final = 15 * 60
SILENCE_S: Final = 60.0
"""How long an upload may send nothing."""
PIECE_BYTES: Final = 1024 * 1024
_MIME: Final = re.compile(r"(application/pdf|image/[A-Za-z0-9.+-]{1,60})", re.ASCII)
_SCHEME: Final = "blob:"
log = logging.getLogger("pareta.uploads")


class Documents:
    """The handlers that attach documents.

    Args:
        blobs: where they lie.
        upload_root: absolute URL of the listener that takes uploads, without a trailing slash.
    """

    def __init__(self, database: Store, blobs: Blobs, *, upload_root: str) -> None:
        self._database = database
        self._blobs = blobs
        self.upload_root = upload_root

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {
            ("POST", "/v1/eval-sets/{set_id}/attach-blob"): self.attach,
            ("POST", "/v1/eval-sets/{set_id}/blob-upload-url"): self.upload_url,
            ("POST", "/v1/eval-sets/{set_id}/blob-upload-complete"): self.complete,
        }

    async def attach(self, call: Call) -> web.StreamResponse:
        """Take a document with its bytes."""
        async with self._database.connection() as conn:
            await self._blob_set(conn, call)
        fields: dict[str, str] = {}
        blob_id, size, sent_as = "", 0, ""
        try:
            async for part in parts_of(call):
                if part.name == "file" and not blob_id:
                    sent_as = part.headers.get("Content-Type", "")
                    new_id = new_blob_id()
                    size = await self._blobs.put(new_id, _pieces(part), most_bytes=MAX_INLINE_BYTES)
                    blob_id = new_id
                elif part.name in ("idx", "field_name", "mime"):
                    fields[part.name] = await text_of(part)
            if not blob_id or not size:
                raise Refused(errors.unprocessable("file", "must be a file that is not empty"))
            mime = _mime(fields.get("mime") or sent_as)
            async with self._database.connection() as conn:
                eval_set = await self._blob_set(conn, call)
                idx, field_name = await self._place(conn, eval_set, _whole(fields.get("idx")), fields.get("field_name"))
                await self._attach(conn, eval_set, Attached(idx, field_name, mime, size, blob_id))
        except BlobTooLarge:
            raise Refused(
                errors.unprocessable("file", f"must not be larger than {MAX_INLINE_BYTES // 1024 // 1024} MiB here")
            ) from None
        except BaseException:
            if blob_id:
                await self._blobs.delete(blob_id)
            raise
        return _attached(blob_id, mime)

    async def upload_url(self, call: Call) -> web.StreamResponse:
        """Give the right to upload one document."""
        async with self._database.connection() as conn:
            eval_set = await self._blob_set(conn, call)
            body = await call.json()
            idx, field_name = await self._place(conn, eval_set, body.get("idx"), body.get("field_name"))
            mime, size = _mime(body.get("mime")), body.get("file_size")
            if type(size) is not int or not 0 < size <= MAX_BLOB_BYTES:
                raise Refused(
                    errors.unprocessable(
                        "file_size", f"must be a whole number of bytes, 1 to {MAX_BLOB_BYTES} (100 MiB)"
                    )
                )
            blob_id, secret = new_blob_id(), secrets.token_urlsafe(32)
            await self._forget_expired(conn)
            await conn.execute(
                "INSERT INTO control.eval_upload (blob_id, secret, set_id, idx, field_name, mime, size_bytes,"
                " expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7, now() + make_interval(secs => $8))",
                blob_id,
                _hash(secret),
                eval_set.id,
                idx,
                field_name,
                mime,
                size,
                UPLOAD_FOR_S,
            )
        return answer(
            {
                "upload_url": f"{self.upload_root}/uploads/{blob_id}/{secret}",
                "storage_uri": _SCHEME + blob_id,
                "expires_in_s": UPLOAD_FOR_S,
            }
        )

    async def complete(self, call: Call) -> web.StreamResponse:
        """Attach what was uploaded; a repeat changes nothing."""
        async with self._database.connection() as conn:
            eval_set = await self._blob_set(conn, call)
            body = await call.json()
            storage_uri = body.get("storage_uri")
            if not isinstance(storage_uri, str) or not storage_uri.startswith(_SCHEME):
                raise Refused(errors.upload_invalid())
            blob_id = storage_uri.removeprefix(_SCHEME)
            idx, field_name = await self._place(conn, eval_set, body.get("idx"), body.get("field_name"))
            row = await conn.fetchrow(
                "SELECT mime, size_bytes FROM control.eval_upload WHERE blob_id = $1 AND set_id = $2 AND idx = $3"
                " AND field_name = $4 AND state = 'there'",
                blob_id,
                eval_set.id,
                idx,
                field_name,
            )
            if row is None or body.get("mime", row["mime"]) != row["mime"]:
                raise Refused(errors.upload_invalid())
            await self._attach(conn, eval_set, Attached(idx, field_name, row["mime"], row["size_bytes"], blob_id))
        return _attached(blob_id, row["mime"])

    # -- the listener of uploads -------------------------------------------------------------------------------------

    def upload_application(self) -> web.Application:
        """What takes uploads: ``PUT /uploads/{blob_id}/{secret}`` and nothing else."""
        app = web.Application(client_max_size=MAX_BLOB_BYTES)
        app.router.add_put("/uploads/{blob_id}/{secret}", self._take)
        return app

    async def _take(self, request: web.Request) -> web.StreamResponse:
        """Take the bytes of one document."""
        request_id = f"up_{secrets.token_hex(10)}"
        try:
            response = await self._upload(request)
        except Refused as refused:
            response = refusal(refused.error, request_id)
        except StoreUnavailable:
            response = refusal(errors.platform_unavailable(), request_id)
        except Exception:
            log.exception("upload %s failed", request_id)
            response = refusal(errors.internal(), request_id)
        response.headers["x-request-id"] = request_id
        return response

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        blob_id, secret = request.match_info["blob_id"], request.match_info["secret"]
        async with self._database.connection() as conn:
            row = await conn.fetchrow(
                "SELECT secret, mime, size_bytes FROM control.eval_upload WHERE blob_id = $1 AND expires_at > now()"
                " AND state = 'open'",
                blob_id,
            )
            if row is None or not hmac.compare_digest(row["secret"], _hash(secret)):
                raise Refused(errors.route_not_found())
            size: int = row["size_bytes"]
            if request.content_length not in (None, size):
                raise Refused(errors.unprocessable("body", "has another size than was announced"))
            taken = await conn.fetchval(
                "UPDATE control.eval_upload SET state = 'taken' WHERE blob_id = $1 AND state = 'open' RETURNING true",
                blob_id,
            )
        if taken is None:
            raise Refused(errors.route_not_found())
        try:
            came = await self._blobs.put(blob_id, _patiently(request), most_bytes=size)
            if came != size:
                await self._blobs.delete(blob_id)
                raise Refused(errors.unprocessable("body", "has another size than was announced"))
        except BlobTooLarge:
            await self._set_state(blob_id, "open")
            raise Refused(errors.unprocessable("body", "has another size than was announced")) from None
        except BaseException:
            # Nothing was kept, so the right is still there.
            with contextlib.suppress(StoreUnavailable):
                await self._set_state(blob_id, "open")
            raise
        await self._set_state(blob_id, "there")
        return answer({"size": size}, status=201)

    async def _set_state(self, blob_id: str, state: str) -> None:
        async with self._database.connection() as conn:
            await conn.execute("UPDATE control.eval_upload SET state = $2 WHERE blob_id = $1", blob_id, state)

    # -- inside ------------------------------------------------------------------------------------------------------

    async def _blob_set(self, conn: Connection, call: Call) -> EvalSet:
        """The set of the path, if its task takes documents."""
        eval_set = await found_set(conn, call)
        task = await catalog.task(conn, eval_set.task_id)
        if task is None or not task.has_blob_input:
            raise Refused(errors.text_task())
        return eval_set

    async def _place(self, conn: Connection, eval_set: EvalSet, idx: Any, field_name: Any) -> tuple[int, str]:
        """A row and a field that take a document."""
        if type(idx) is not int or not 0 <= idx < eval_set.item_count:
            raise Refused(errors.unprocessable("idx", f"must be a row from 0 to {eval_set.item_count - 1}"))
        task = await catalog.task(conn, eval_set.task_id)
        assert task is not None
        known = [field["name"] for field in task.input_fields if field["type"] == "blob"]
        if not isinstance(field_name, str) or field_name not in known:
            raise Refused(errors.unprocessable("field_name", f"must be one of: {', '.join(known)}"))
        return idx, field_name

    async def _attach(self, conn: Connection, eval_set: EvalSet, document: Attached) -> None:
        earlier = await sets.attach(conn, eval_set.id, document)
        if earlier is not None:
            await self._blobs.delete(earlier)

    async def _forget_expired(self, conn: Connection) -> None:
        """Uploads that were begun and never attached."""
        for row in await conn.fetch(
            "DELETE FROM control.eval_upload u WHERE ctid IN (SELECT ctid FROM control.eval_upload"
            " WHERE expires_at < now() - interval '1 hour' ORDER BY expires_at LIMIT 100)"
            " RETURNING blob_id, EXISTS (SELECT 1 FROM control.eval_document d WHERE d.blob_id = u.blob_id) AS attached"
        ):
            if not row["attached"]:
                await self._blobs.delete(row["blob_id"])


def _attached(blob_id: str, mime: str) -> web.Response:
    return answer({"kind": "blob", "uri": _SCHEME + blob_id, "mime": mime})


def _mime(text: object) -> str:
    if not isinstance(text, str) or _MIME.fullmatch(text.partition(";")[0].strip().lower()) is None:
        raise Refused(errors.unprocessable("mime", "must be application/pdf or an image type such as image/png"))
    return text.partition(";")[0].strip().lower()


def _whole(text: str | None) -> int | None:
    return int(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 9 else None


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


async def _pieces(part: BodyPartReader) -> AsyncIterator[bytes]:
    while piece := await part.read_chunk(PIECE_BYTES):
        yield bytes(piece)


async def _patiently(request: web.Request) -> AsyncIterator[bytes]:
    """The body of an upload, piece by piece; one that falls silent is given up."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_S):
                piece = await request.content.read(PIECE_BYTES)
        except TimeoutError:
            raise Refused(errors.request_timeout()) from None
        if not piece:
            return
        yield piece
