"""Resolve: from what a client calls the model to an endpoint that may be called.

Floor: dataplane, without I/O. Order of the verdicts: 404, then 409, then 400 for a kind of work the endpoint does not
do, then 503.
"""

from __future__ import annotations

from backends.wire.request import Kind
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.ports import StateView, Uses
from gateway.core.state import Endpoint, EndpointStatus

CAPABILITY = {Kind.CHAT: "chat", Kind.COMPLETION: "completion", Kind.EMBEDDING: "embedding"}
STARTING_RETRY_S = 5
_UNDER_WAY = (EndpointStatus.STARTING, EndpointStatus.DEPLOYING)


def resolve(state: StateView, uses: Uses, org_id: str, model: str, kind: Kind) -> Endpoint:
    """Find the endpoint; one that sleeps is woken.

    Raises:
        Refused: it is unknown, ambiguous, a seed, of another kind, or not live.
    """
    endpoint = state.endpoint(model)
    if endpoint is None or endpoint.org_id != org_id:
        endpoint = _by_name(state, org_id, model)
    if endpoint.status is EndpointStatus.SEED:
        raise Refused(errors.seed_endpoint())
    if CAPABILITY[kind] not in endpoint.capabilities:
        raise Refused(errors.invalid("model", f"names an endpoint that does not serve /v1/{kind}"))
    if endpoint.status in _UNDER_WAY:
        raise Refused(errors.endpoint_not_ready(retry_after_s=endpoint.starts_in_s or STARTING_RETRY_S))
    if endpoint.asleep:
        uses.wanted(endpoint.id)
        raise Refused(errors.endpoint_not_ready(retry_after_s=endpoint.starts_in_s or STARTING_RETRY_S))
    if endpoint.status is not EndpointStatus.LIVE:
        raise Refused(errors.endpoint_not_ready(retry_after_s=None))
    return endpoint


def _by_name(state: StateView, org_id: str, name: str) -> Endpoint:
    """The endpoint that the organization calls so, else the only one that serves an alias."""
    named = state.endpoint_named(org_id, name)
    if named is not None:
        return named
    serving = state.endpoints_serving(org_id, name)
    live = [endpoint for endpoint in serving if endpoint.status is EndpointStatus.LIVE]
    # One that sleeps or is on its way will answer; one that its owner stopped will not.
    chosen = live or [endpoint for endpoint in serving if endpoint.asleep or endpoint.status in _UNDER_WAY] or serving
    if not chosen:
        raise Refused(errors.model_not_found(name))
    if len(chosen) > 1:
        raise Refused(errors.alias_is_ambiguous())
    return chosen[0]
