"""``GET /v1/models``: what can be called now.

Floor: dataplane, without I/O. Only live endpoints, oldest first, and only the four fields that the contract names.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import orjson

from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.exchange import Exchange
from gateway.core.ports import StateView
from gateway.core.state import Endpoint, EndpointStatus


def list_models(state: StateView, exchange: Exchange) -> bytes:
    """The list as JSON."""
    assert exchange.key is not None
    endpoints = state.endpoints_of(exchange.key.org_id)
    live = [endpoint for endpoint in endpoints if endpoint.status is EndpointStatus.LIVE]
    return orjson.dumps({"object": "list", "data": [_record(endpoint) for endpoint in live]})


def retrieve_model(state: StateView, exchange: Exchange, model_id: str) -> bytes:
    """One record as JSON.

    Raises:
        Refused: 404.
    """
    model_id = unquote(model_id)
    assert exchange.key is not None
    endpoint = state.endpoint(model_id)
    if endpoint is None or endpoint.org_id != exchange.key.org_id or endpoint.status is not EndpointStatus.LIVE:
        raise Refused(errors.model_not_found(model_id))
    return orjson.dumps(_record(endpoint))


def _record(endpoint: Endpoint) -> dict[str, Any]:
    return {"id": endpoint.id, "object": "model", "created": endpoint.created_s, "owned_by": "pareta"}
