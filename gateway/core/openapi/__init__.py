"""The OpenAPI document that the gateway publishes at ``/openapi.json``.

Floor: core (pure). `schemas` has the shapes, `operations` what each route takes and answers; the table of routes
(`gateway.core.routes`) is walked, so that a route without a description is an error when the document is made.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import orjson

from gateway.core import routes
from gateway.core.openapi.operations import INFERENCE, PLATFORM, Operation
from gateway.core.openapi.schemas import SCHEMAS
from gateway.core.state import Scope


@lru_cache(maxsize=4)
def document(server_url: str) -> bytes:
    """The document as JSON.

    Args:
        server_url: absolute root that customers reach the gateway at.
    """
    return orjson.dumps(_document(server_url))


def _document(server_url: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for (method, template), operation in INFERENCE.items():
        paths.setdefault(template, {})[method.lower()] = operation.to_json(template)
    for route in routes.PLATFORM:
        operation = PLATFORM[route.method, route.template]
        paths.setdefault(route.template, {})[route.method.lower()] = operation.to_json(
            route.template, needs_full=route.scope is Scope.FULL, is_platform=True
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Pareta Gateway",
            "version": "1",
            "description": "OpenAI-compatible inference on deployed endpoints, and the platform around it. Amounts of"
            " money are whole micro-USD. Every answer bears `x-request-id`.",
        },
        "servers": [{"url": server_url}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A key such as `pareta_sk_….…`."}
            },
            "schemas": SCHEMAS,
        },
    }


__all__ = ["Operation", "document"]
