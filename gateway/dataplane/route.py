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
        self._closing: set[asyncio.Task[None]] = set()
        self._turn = 0

    def pick(self, endpoint: Endpoint, tried: Collection[str] = ()) -> Replica | None:
        """A healthy replica that was not tried yet, the one with the fewest open requests; ``None`` if none is left."""
        candidates = [r for r in self._replicas_of(endpoint) if r.is_up and r.id not in tried]
        if not candidates:
            return None
        self._turn += 1
        return least_outstanding(candidates, self._turn)

    def has_live(self, endpoint: Endpoint) -> bool:
        """Whether any replica seems able to answer. Those that are down are watched, so that they can come back."""
        replicas = self._replicas_of(endpoint)
        if any(replica.is_up for replica in replicas):
            return True
        for replica in replicas:
            replica.watch()
        return False

    def forget(self, endpoint_id: str) -> None:
        """The endpoint changed or is gone: drop what was known of its replicas. Requests in progress go on."""
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
        specs = self._specs_of.get(endpoint.id)
        if specs != endpoint.backends:
            self.forget(endpoint.id)
            self._specs_of[endpoint.id] = endpoint.backends
            for spec in endpoint.backends:
                self._replicas[spec] = self._make_replica(spec)
        return [self._replicas[spec] for spec in endpoint.backends]
