"""Route: from an endpoint to a replica that can take the request.

Floor: dataplane. Keeps one `Replica` per backend of the endpoints that were called, forgets those that the operator
changed or removed. The policy itself is pure and stands in ``gateway.core.routing``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

from backends.replica import Replica
from gateway.core.routing import least_outstanding
from gateway.core.state import BackendSpec, Endpoint

ReplicaFactory = Callable[[BackendSpec], Replica]


class Router:
    """The replicas that this worker knows.

    Args:
        make_replica: builds the backend that a specification names.
    """

    def __init__(self, make_replica: ReplicaFactory) -> None:
        self._make_replica = make_replica
        self._replicas: dict[BackendSpec, Replica] = {}
        self._specs_of: dict[str, tuple[BackendSpec, ...]] = {}
        self._last_seen: dict[str, tuple[Endpoint, list[Replica]]] = {}
        """By endpoint id. The same endpoint object has the same backends, so that nothing needs to be compared."""
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = 0

    def pick(self, endpoint: Endpoint, tried: Collection[str] = ()) -> Replica | None:
        """A healthy replica that was not tried yet, the one with the fewest open requests; ``None`` if none is left."""
        candidates = [r for r in self._replicas_of(endpoint) if r.breaker.is_up and r.id not in tried]
        if not candidates:
            return None
        if len(candidates) == 1:
            return candidates[0]
        self._turn += 1
        return least_outstanding(candidates, self._turn)

    def has_live(self, endpoint: Endpoint) -> bool:
        """Whether any replica seems able to answer. Those that are down are watched, so that they can come back."""
        replicas = self._replicas_of(endpoint)
        for replica in replicas:
            if replica.breaker.is_up:
                return True
        for replica in replicas:
            replica.watch()
        return False

    def forget(self, endpoint_id: str) -> None:
        """The endpoint changed or is gone: drop what was known of its replicas. Requests in progress go on."""
        self._last_seen.pop(endpoint_id, None)
        for spec in self._specs_of.pop(endpoint_id, ()):
            replica = self._replicas.pop(spec, None)
            if replica is not None:
                task = asyncio.get_running_loop().create_task(replica.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Stop all probes and drop idle connections."""
        for endpoint_id in list(self._specs_of):
            self.forget(endpoint_id)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _replicas_of(self, endpoint: Endpoint) -> list[Replica]:
        seen = self._last_seen.get(endpoint.id)
        if seen is not None and seen[0] is endpoint:
            return seen[1]
        if self._specs_of.get(endpoint.id) != endpoint.backends:
            self.forget(endpoint.id)
            self._specs_of[endpoint.id] = endpoint.backends
            for spec in endpoint.backends:
                self._replicas[spec] = self._make_replica(spec)
        replicas = [self._replicas[spec] for spec in endpoint.backends]
        self._last_seen[endpoint.id] = endpoint, replicas
        return replicas
