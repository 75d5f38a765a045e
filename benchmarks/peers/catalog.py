"""All peers, in the order of the tables, and those that are left out, with the reason."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.peers.direct import Direct
from benchmarks.peers.gateway_stack import MeteredGateway, UnmeteredGateway
from benchmarks.peers.litellm import LiteLlm
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.peer import Peer
from benchmarks.peers.portkey import Portkey
from benchmarks.peers.sglang_router import SglangRouter

DIRECT, NGINX, GATEWAY, UNMETERED = Direct.name, Nginx.name, MeteredGateway.name, UnmeteredGateway.name
SGLANG, PORTKEY, LITELLM = SglangRouter.name, Portkey.name, LiteLlm.name

LEFT_OUT: Mapping[str, str] = {
    "Bifrost": "its npm package fetches a program when it is started, which no lock file pins, so it is not run here.",
}


def all_peers() -> list[Peer]:
    """One of each."""
    return [Direct(), Nginx(), MeteredGateway(), UnmeteredGateway(), SglangRouter(), Portkey(), LiteLlm()]
