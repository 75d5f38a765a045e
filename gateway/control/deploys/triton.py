"""The driver ``triton``: models in the repository of a Triton server, loaded when they are wanted.

Floor: control. ``{"url": "triton://host:port/model", "options": {…}}``. A model is loaded for the first endpoint or
eval that wants it, and unloaded a while after the last one has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from gateway.control.deploys.drivers import CannotServe
from gateway.control.deploys.store import Serving, ServingBackend
from gateway.control.endpoints import TRITON

LOAD_S: Final = 600.0
UNLOAD_S: Final = 30.0


class Triton:
    """Models on Triton servers.

    Args:
        linger_s: how long a model that nobody wants stays loaded.
    """

    moves = False

    def __init__(self, *, linger_s: float) -> None:
        self._linger_s = linger_s
        self._wanted: dict[str, tuple[float, str]] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def addresses(self, serving: Serving) -> Sequence[ServingBackend]:
        """The server with the model loaded."""
        # Late: most installations have no Triton, and a client of it is large.
        from backends.triton_backend import TritonAddress
        from backends.triton_control import ModelNotLoaded, TritonControl
        from backends.wire.failure import BackendFailure

        url = serving.spec.get("url")
        if not isinstance(url, str):
            raise CannotServe("This model has no capacity at the moment.")
        address = TritonAddress.parse(url, model=serving.upstream)
        self._wanted[url] = (time.monotonic(), serving.upstream)
        try:
            # One at a time: a model that is loaded twice is loaded anew.
            async with self._turns.setdefault(url, asyncio.Lock()), TritonControl(address.target) as control:
                if not await control.is_ready(address.model):
                    await control.load(address.model, timeout_s=LOAD_S)
                    await control.wait_ready(address.model, timeout_s=LOAD_S)
        except (ModelNotLoaded, BackendFailure, TimeoutError):
            raise CannotServe("The model could not be loaded.") from None
        return [ServingBackend(url, TRITON, serving.spec.get("options", {}))]

    async def keep(self, wanted: Sequence[Serving]) -> None:
        """Unload what nobody has wanted for a while. What is wanted is loaded when it is asked for."""
        from backends.triton_backend import TritonAddress
        from backends.triton_control import ModelNotLoaded, TritonControl
        from backends.wire.failure import BackendFailure

        now_s = time.monotonic()
        for serving in wanted:
            if isinstance(url := serving.spec.get("url"), str):
                self._wanted[url] = (now_s, serving.upstream)
        for url, (wanted_s, model) in list(self._wanted.items()):
            if now_s - wanted_s <= self._linger_s:
                continue
            del self._wanted[url]
            address = TritonAddress.parse(url, model=model)
            try:
                async with TritonControl(address.target) as control:
                    await control.unload(address.model, timeout_s=UNLOAD_S)
            except (ModelNotLoaded, BackendFailure, TimeoutError):
                continue  # it is gone with its server, or somebody else takes care of it
