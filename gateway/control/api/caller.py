"""Who calls, how a refusal is answered, and how input is read: what all handlers of the platform's routes share.

Floor: control. A handler gets a `Call`, raises `gateway.core.errors.Refused` for what it refuses, and returns a
response.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson
from aiohttp import web

from gateway.control.claims import Claim
from gateway.control.database import StoreUnavailable
from gateway.core import errors, idempotency, inner, routes
from gateway.core.errors import ApiError, Refused

log = logging.getLogger("pareta.control")

MAX_QUERY_LETTERS: Final = 4096


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a caller whom a worker has let in.

    Attributes:
        ids: those in the path, by the names of the route's template.
        request: for its body.
    """

    org_id: str
    key_id: str
    request_id: str
    ids: Mapping[str, str]
    request: web.Request

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises:
            Refused: 400, it is none.
        """
        try:
            body = orjson.loads(await self.request.read())
        except orjson.JSONDecodeError:
            raise Refused(errors.malformed_json()) from None
        if not isinstance(body, dict):
            raise Refused(errors.malformed_json())
        return body

    def query_text(self, name: str) -> str | None:
        """A parameter of the query; the last one if it is repeated."""
        values = self.request.query.getall(name, [])
        return values[-1] if values else None


def claim_of(call: Call, what: bytes) -> Claim | None:
    """The client's idempotency key, if it sent one.

    Args:
        what: the request, whose repeat is told from another one by it.

    Raises:
        Refused: 400, it is no usable key.
    """
    header = call.request.headers.get("Idempotency-Key")
    if header is None:
        return None
    name = idempotency.claim_name(call.request.path, header.encode("utf-8", "surrogateescape"))
    return Claim(name, idempotency.fingerprint(what))


Handler = Callable[[Call], Awaitable[web.StreamResponse]]


def answer(body: object, *, status: int = 200) -> web.Response:
    """A JSON answer."""
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


def application(
    handlers: Mapping[tuple[str, str], Handler],
    secret: str,
    *,
    hears: Mapping[str, Callable[[bytes], Awaitable[None]]] | None = None,
) -> web.Application:
    """An application that answers the platform's routes for whoever knows the secret.

    Args:
        handlers: by method and template of `gateway.core.routes.PLATFORM`; every one of them.
        hears: what our own processes tell, by path; none of the platform's routes.

    Raises:
        ValueError: a route has no handler, or a handler no route.
    """
    wanted = {(route.method, route.template) for route in routes.PLATFORM}
    if wanted != handlers.keys():
        raise ValueError(f"Routes and handlers differ: {sorted(wanted ^ handlers.keys())}")

    told = hears or {}

    async def serve(request: web.Request) -> web.StreamResponse:
        if not hmac.compare_digest(request.headers.get(inner.SECRET, "").encode(), secret.encode()):
            return web.Response(status=403)
        request_id = request.headers.get(inner.REQUEST, "")
        if (hear := told.get(request.path)) is not None:
            await hear(await request.read())
            return web.Response(status=204)
        try:
            found = routes.find(request.path)
            if found is None:
                raise Refused(errors.route_not_found())
            template, _ = found
            handler = handlers.get((request.method, template))
            if handler is None:
                raise Refused(errors.method_not_allowed("GET"))
            call = Call(
                org_id=request.headers.get(inner.ORGANIZATION, ""),
                key_id=request.headers.get(inner.KEY, ""),
                request_id=request_id,
                ids=routes.ids_in(template, request.path),
                request=request,
            )
            return await handler(call)
        except Refused as refused:
            return refusal(refused.error, request_id)
        except StoreUnavailable as error:
            log.warning("request %s: %s", request_id, error)
            return refusal(errors.platform_unavailable(), request_id)
        except Exception:
            log.exception("request %s failed", request_id)
            return refusal(errors.internal(), request_id)

    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{path:.*}", serve)
    return app


def refusal(error: ApiError, request_id: str) -> web.Response:
    """The answer to what is refused."""
    headers = {inner.ERROR: error.code}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.should_retry is not None:
        headers["x-should-retry"] = "true" if error.should_retry else "false"
    if error.allow is not None:
        headers["Allow"] = error.allow
    body = errors.encode(error, request_id)
    return web.Response(body=body, status=error.status, content_type="application/json", headers=headers)
