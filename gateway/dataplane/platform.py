"""Platform: passes on what is not inference to the control process, and its answer to the client.

Floor: dataplane. A worker lets the caller in (key, scope, route) and relays; what a route means is the control
process's business. That one may be slow, or away: then these routes answer 503 and inference goes on.
"""

from __future__ import annotations

import asyncio

from gateway.core import errors, routes
from gateway.core.errors import Refused
from gateway.core.exchange import Exchange
from gateway.core.ports import Platform, PlatformAnswer, PlatformAsk, PlatformUnavailable
from gateway.core.state import Scope
from gateway.dataplane.reply import Reply
from gateway.dataplane.server import Request


def template_of(path: str) -> str | None:
    """What the platform calls a path; ``None`` if it is none of its paths."""
    found = routes.find(path)
    return found[0] if found is not None else None


def check(exchange: Exchange, request: Request) -> None:
    """Whether this key may call this route.

    Raises:
        Refused: 404, 405, 403.
    """
    found = routes.find(request.path)
    if found is None:
        raise Refused(errors.route_not_found())
    _, methods = found
    route = methods.get("GET" if request.method == "HEAD" else request.method)
    if route is None:
        raise Refused(errors.method_not_allowed(", ".join(sorted(methods))))
    assert exchange.key is not None
    if route.scope is Scope.FULL and exchange.key.scope is not Scope.FULL:
        raise Refused(errors.forbidden())


async def relay(platform: Platform, exchange: Exchange, request: Request, reply: Reply) -> None:
    """Ask the control process and answer with what it says.

    Raises:
        Refused: 503, it does not answer.
    """
    assert exchange.key is not None
    header = request.headers.get
    ask = PlatformAsk(
        method="GET" if request.method == "HEAD" else request.method,
        target=request.path + request.query,
        body=request.body,
        content_type=header(b"content-type", b"").decode("latin-1"),
        request_id=exchange.request_id,
        key=exchange.key,
        idempotency_key=_text(header(b"idempotency-key")),
    )
    try:
        async with platform.ask(ask) as answer:
            exchange.status, exchange.error_code = answer.status, answer.error_code
            if answer.is_stream:
                await _stream(answer, reply)
            else:
                lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items()).encode("latin-1")
                body = await answer.read()
                reply.send(answer.status, body, extra=lines, content_type=answer.content_type)
    except PlatformUnavailable:
        raise Refused(errors.platform_unavailable()) from None


async def _stream(answer: PlatformAnswer, reply: Reply) -> None:
    """Pass events on as they come, as fast as the client takes them."""
    may_write = asyncio.Event()
    may_write.set()
    reply.on_pause, reply.on_resume = may_write.clear, may_write.set
    reply.begin_stream()
    try:
        async for piece in answer.pieces():
            await may_write.wait()
            reply.write(piece)
    except PlatformUnavailable:
        # Its head was sent, so only a broken connection can still say that this is not all.
        reply.abort()
        return
    reply.end_stream(b"")


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")
