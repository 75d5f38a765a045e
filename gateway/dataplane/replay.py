"""Replay: answer a repeated POST with the outcome of its first run.

Floor: dataplane. Nothing is held and nothing charged; the repeat says so in ``X-Pareta-Billed`` and in
``Idempotent-Replayed``.
"""

from __future__ import annotations

from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.exchange import Exchange
from gateway.core.idempotency import claim_name, fingerprint, unpack
from gateway.dataplane.admit import claim_error
from gateway.dataplane.finish import finish_stream, finish_whole
from gateway.dataplane.reply import Reply
from ledger.counter import CounterUnavailable, CreditCounter

REPLAYED = b"Idempotent-Replayed: true\r\n"


async def replay(counter: CreditCounter, exchange: Exchange, reply: Reply, header: bytes, body: bytes) -> bool:
    """Claim-check a request that carries an idempotency key, and answer it if it was answered before.

    Args:
        header: the key as the client sent it.
        body: the raw request.

    Returns:
        Whether the request is answered. If not, ``exchange.claim`` is set and the hold has to claim it.

    Raises:
        Refused: 400 (no usable key), 409 (still running, or its answer was not kept), 422 (another request), 503.
    """
    assert exchange.key is not None
    exchange.claim = claim_name(exchange.route, header)
    try:
        known = await counter.recall(exchange.key.org_id, exchange.claim, fingerprint(body))
    except CounterUnavailable:
        raise Refused(errors.ledger_unavailable()) from None
    if known is None:
        return False
    if known.state != "done":
        raise Refused(claim_error(known.state))
    outcome = unpack(known.outcome)
    if outcome is None:
        raise Refused(errors.idempotency_not_kept())
    exchange.replayed = True
    exchange.status = 200
    if outcome.stream:
        reply.begin_stream(extra=REPLAYED)
        finish_stream(reply, billed_nanos=0, events=outcome.body)
    else:
        finish_whole(reply, outcome.body, billed_nanos=0, extra=REPLAYED)
    return True
