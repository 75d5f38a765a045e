"""The judging model: one of a vendor, or an open one on its engines, opened when it is first asked.

Floor: control. What it costs is the platform's; it is counted with what it judged.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway.control.catalog import store as catalog
from gateway.control.deploys import store as deploys
from gateway.control.evals.engines import Asker, AskFailed, ModelAnswer, OpenModels
from gateway.control.evals.prices import item_micros
from gateway.control.evals.values import Candidate

if TYPE_CHECKING:
    from gateway.control.database import Store


OPEN_S: Final = 20.0
"""Its engines are started with the control process and kept; an answer may wait so long for them."""
AGAIN_S: Final = 30.0
_AWAY: Final = "The judging model cannot be asked at the moment."


class Vendors(Protocol):
    """The vendors' models."""

    async def open_model(self, candidate: Candidate) -> Asker:
        """A model that can be asked. Raises: AskFailed."""


class JudgeModel:
    """A model that grades; see `gateway.control.evals.engines.Asker`.

    Args:
        model_id: of the frontier roster, or the real id of an open model.
    """

    def __init__(self, database: Store, open_models: OpenModels, vendors: Vendors, model_id: str) -> None:
        self._database = database
        self._open_models = open_models
        self._vendors = vendors
        self._model_id = model_id
        self._asker: Asker | None = None
        self._candidate: Candidate | None = None
        self._turn = asyncio.Lock()
        self._not_before_s = 0.0

    async def ask(self, messages: list[dict[str, Any]], *, most_tokens: int) -> ModelAnswer:
        """See `Asker.ask`."""
        asker = await self._opened()
        try:
            return await asker.ask(messages, most_tokens=most_tokens)
        except AskFailed as failure:
            if failure.may_have_moved:
                async with self._turn:
                    if self._asker is asker:
                        self._asker = None  # the next question looks where it is
                        await asker.close()
            raise

    async def close(self) -> None:
        """Let go of connections."""
        if self._asker is not None:
            await self._asker.close()

    def micros(self, answer: ModelAnswer) -> int:
        """What an answer costs the platform at list price; an open model's engine is paid for anyhow."""
        if self._candidate is None or self._candidate.vendor is None:
            return 0
        return item_micros(
            self._candidate, prompt_tokens=answer.prompt_tokens, completion_tokens=answer.completion_tokens
        )

    async def _opened(self) -> Asker:
        loop = asyncio.get_running_loop()
        async with self._turn:
            if self._asker is None:
                if loop.time() < self._not_before_s:
                    raise AskFailed(_AWAY)
                try:
                    async with asyncio.timeout(OPEN_S):
                        self._asker = await self._open()
                except (AskFailed, TimeoutError) as failure:
                    # Those who wait for their turn must not each wait as long: evals of others stand behind them.
                    self._not_before_s = loop.time() + AGAIN_S
                    raise AskFailed(_AWAY) from failure
            return self._asker

    async def _open(self) -> Asker:
        self._candidate = candidate = await self._find()
        if candidate.vendor is not None:
            return await self._vendors.open_model(candidate)
        return await self._open_models.open(candidate)

    async def _find(self) -> Candidate:
        async with self._database.connection() as conn:
            for one in await catalog.vendor_models(conn, needs_vision=False):
                if one.id == self._model_id:
                    return Candidate(
                        0,
                        one.id,
                        "frontier",
                        one.id,
                        vendor=one.vendor,
                        prompt_rate_nanos=one.prompt_rate_nanos,
                        completion_rate_nanos=one.completion_rate_nanos,
                    )
            if await deploys.serving_of(conn, self._model_id) is not None:
                return Candidate(0, "judge", "open", self._model_id)
        raise AskFailed("The judging model is neither on the roster nor served.")
