"""Drivers: how a model gets addresses that serve it.

Floor: control. A driver turns what the operator registered into backends and says when one of them answers. Its errors
are sentences that a customer may read: no address, no engine, no real model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from backends.openai_http import HttpLimits, OpenAIHttpBackend
from backends.protocol import Backend
from gateway.control.deploys.store import Serving, ServingBackend
from gateway.control.endpoints import TRITON, kind_of

log = logging.getLogger("pareta.deploys")

PROBE_S: Final = 2.0
PAUSE_S: Final = 0.25


class CannotServe(Exception):
    """The model cannot be served; the text is a public sentence."""


class Driver(Protocol):
    """One way to serve models.

    Attributes:
        moves: whether addresses may change while a model is served, so that endpoints have to be pointed anew.
    """

    moves: bool

    async def addresses(self, serving: Serving) -> Sequence[ServingBackend]:
        """Make sure that engines run or are about to; their addresses.

        Raises:
            CannotServe: there will be none.
        """

    async def keep(self, wanted: Sequence[Serving]) -> None:
        """Have what these models need run, and end what nobody wants any more. Called every few seconds."""


class Static:
    """Engines that somebody else runs: ``{"backends": [url, …], "options": {…}}``."""

    moves = False

    async def addresses(self, serving: Serving) -> Sequence[ServingBackend]:
        """Those that were registered."""
        urls = serving.spec.get("backends")
        if not isinstance(urls, list) or not urls:
            raise CannotServe("This model has no capacity at the moment.")
        options = serving.spec.get("options", {})
        return [ServingBackend(url, kind_of(url), options) for url in urls]

    async def keep(self, wanted: Sequence[Serving]) -> None:
        """Somebody else takes care of them."""


async def until_one_answers(backends: Sequence[ServingBackend], model: str, *, patience_s: float) -> None:
    """Wait until one of the engines says that it is ready.

    Raises:
        CannotServe: none does in time.
    """
    probed = [backend_of(one, model) for one in backends]
    try:
        async with asyncio.timeout(patience_s):
            while not any(await asyncio.gather(*(one.probe(PROBE_S) for one in probed))):  # noqa: ASYNC110
                await asyncio.sleep(PAUSE_S)
    except TimeoutError:
        raise CannotServe("The model did not become ready in time.") from None
    finally:
        for one in probed:
            await one.close()


def backend_of(one: ServingBackend, model: str, *, context_tokens: int = 1, model_folders: str = "") -> Backend:
    """A backend that talks to this address, as a worker would make it.

    Args:
        context_tokens: of prompt and answer together; who only probes needs none.
        model_folders: where folders of models lie, each under its model's name (the setting).
    """
    if one.kind == TRITON:
        # Late: most installations have no Triton, and a client of it is large.
        from backends.triton_backend import TritonBackend
        from backends.triton_limits import TritonLimits

        beside = f"{model_folders}/{model}" if model_folders and ".." not in model else None
        folders = tuple(folder for folder in (one.options.get("model_folder"), beside) if folder)
        return TritonBackend(
            one.url, model=model, context_tokens=context_tokens, folders=folders, limits=TritonLimits()
        )
    return OpenAIHttpBackend(
        one.url,
        model=model,
        api_key=_key_in(one.options.get("api_key_file")),
        health_path=one.options.get("health_path", "/health"),
        limits=HttpLimits(),
    )


def _key_in(file: str | None) -> str | None:
    """What an engine wants to be shown; it lies in a file, never in the database."""
    if file is None:
        return None
    try:
        return Path(file).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        log.warning("The key file of a backend, %s, can't be read: %s.", file, type(error).__name__)
        return None
