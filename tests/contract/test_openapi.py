"""The published document against the running gateway: Schemathesis finds no 5xx and no answer that is not described."""

from __future__ import annotations

import os
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.core import openapi, routes
from tests.services import run_apart
from tests.system.harness import Gateway, Tenant

CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
SEED = int(os.environ.get("SEED", "20261123"))
EXAMPLES = int(os.environ.get("EXAMPLES", "12"))
SCHEMA: Any = schemathesis.openapi.from_dict(orjson.loads(openapi.document("http://gateway")))
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]


@pytest.fixture(scope="module")
def owner(session_gateway: Gateway) -> Tenant:
    """An organization that may be left in any state."""
    return run_apart(session_gateway.tenant())


@pytest.mark.usefixtures("catalog")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method.upper()} {one.path}")
def test_every_answer_is_described(session_gateway: Gateway, owner: Tenant, operation: Any) -> None:
    """Whatever is sent, right or wrong: the status, the type and the shape of the answer stand in the document."""
    print(f"SEED={SEED}")
    ids = [owner.endpoint_id, "contract-key-fields", "nothing"]

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(), known=st.sampled_from(ids), as_it_is=st.booleans())
    def check(case: Any, known: str, as_it_is: bool) -> None:
        if case.path_parameters and not as_it_is:
            case.path_parameters = dict.fromkeys(case.path_parameters, known)
        if isinstance(case.body, dict) and "model" in case.body and operation.path.startswith("/v1/c") and not as_it_is:
            case.body["model"] = owner.endpoint_id
        response = case.call(
            base_url=session_gateway.base_url, headers={"Authorization": f"Bearer {owner.key}"}, timeout=60
        )
        case.validate_response(response, checks=CHECKS)
        assert response.headers["x-request-id"][0]

    check()


async def test_the_document_is_published_and_whole(gateway: Gateway) -> None:
    """Without a key, at /openapi.json; it names every route."""
    answer = await gateway.get("/openapi.json", None)
    assert answer.status == 200
    paths = answer.json["paths"]
    assert {(method.upper(), path) for path, found in paths.items() for method in found} >= {
        (route.method, route.template) for route in routes.PLATFORM
    }
    assert answer.json["servers"] == [{"url": gateway.settings.effective_public_url}]
