"""The driver ``process``: engines that this host runs, from a command line of the operator's registry.

Floor: control. One engine for a model, shared by all endpoints and evals that want it; started when the first one does,
started again when it dies, stopped a while after the last one has gone. How programs are started is behind a port.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from gateway.control.deploys.drivers import CannotServe
from gateway.control.deploys.store import Serving, ServingBackend

PORT, MODEL = "{port}", "{model}"


class EngineFailed(Exception):
    """An engine could not be started. The text is for operators."""


class EngineHost(Protocol):
    """Starts programs on this host, keeps them running and ends them."""

    async def run(self, name: str, command: Callable[[int], Sequence[str]], environment: Mapping[str, str]) -> int:
        """Make sure that a program runs; returns its port, the same as last time where possible.

        Raises:
            EngineFailed: it can't be started.
        """

    async def end(self, name: str) -> None:
        """End a program, if it runs."""

    @property
    def running(self) -> frozenset[str]:
        """The names of all that are meant to run."""


class Process:
    """Engines of this host: ``{"command": [word, …], "env": {…}, "model": …, "options": {…}}``.

    A word may hold ``{port}`` and ``{model}``; no shell reads them.

    Args:
        host: starts programs.
        most: engines at once.
        linger_s: how long an engine that nobody wants runs on; who stops an endpoint and starts it need not wait.
    """

    moves = True

    def __init__(self, host: EngineHost, *, most: int, linger_s: float) -> None:
        self._linger_s = linger_s
        self._host = host
        self._most = most
        self._wanted_s: dict[str, float] = {}
        self._turn = asyncio.Lock()

    async def addresses(self, serving: Serving) -> Sequence[ServingBackend]:
        """The engine of a model, started if it does not run."""
        name = name_of(serving.model_id)
        words, environment = serving.spec.get("command"), serving.spec.get("env", {})
        if not isinstance(words, list) or not words:
            raise CannotServe("This model has no capacity at the moment.")
        self._wanted_s[name] = time.monotonic()
        async with self._turn:
            if name not in self._host.running and len(self._host.running) >= self._most:
                raise CannotServe("There is no room for this model at the moment.")
            try:
                port = await self._host.run(name, lambda port: command_of(words, port, serving.upstream), environment)
            except EngineFailed:
                raise CannotServe("The model could not be started.") from None
        return [ServingBackend(f"http://127.0.0.1:{port}", "openai", serving.spec.get("options", {}))]

    async def keep(self, wanted: Sequence[Serving]) -> None:
        """Have the engines of these models run, and end those that nobody has wanted for a while."""
        now_s = time.monotonic()
        for serving in wanted:
            self._wanted_s[name_of(serving.model_id)] = now_s
        for name in self._host.running:
            # One that a predecessor of this process has left is given the same time.
            if now_s - self._wanted_s.setdefault(name, now_s) > self._linger_s:
                await self._host.end(name)
                self._wanted_s.pop(name, None)


def name_of(model_id: str) -> str:
    """A name for the files and log lines of a model's engine. It does not tell the model's id."""
    return hashlib.sha256(model_id.encode()).hexdigest()[:16]


def command_of(words: Sequence[Any], port: int, model: str) -> list[str]:
    """A command line with its places filled in."""
    return [str(word).replace(PORT, str(port)).replace(MODEL, model) for word in words]
