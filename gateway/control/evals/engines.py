"""Asking models about rows: open ones on the engines that serve them, vendors' ones through their APIs.

Floor: control. An open model is asked through the same backends as customers' requests, on the same engines. What goes
wrong becomes a short public word: no address, no engine's text.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

import orjson

from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest, Kind
from backends.wire.usage import Observed
from gateway.control.deploys import store as deploys
from gateway.control.deploys.drivers import CannotServe, Driver, backend_of, until_one_answers
from gateway.control.evals.values import Candidate

if TYPE_CHECKING:
    from backends.protocol import Backend
    from gateway.control.database import Store

ITEM_DEADLINE_S: Final = 300.0
ATTEMPTS: Final = 3
PAUSE_S: Final = 0.5
_AGAIN: Final = frozenset({FailureCode.OVERLOADED, FailureCode.UNREACHABLE, FailureCode.TIMEOUT, FailureCode.BROKEN})
_NOT_THERE: Final = _AGAIN - {FailureCode.OVERLOADED}
_WORDS: Final = {
    FailureCode.CONTEXT_LENGTH: "The row is longer than the model's context.",
    FailureCode.INPUT_REFUSED: "The model cannot take this row.",
    FailureCode.OVERLOADED: "The model was too busy.",
    FailureCode.TIMEOUT: "The model did not answer in time.",
    FailureCode.TOO_LARGE: "The answer was too long.",
}


class AskFailed(Exception):
    """A model gave no answer; the text is a public sentence.

    Attributes:
        may_have_moved: its engines were not there, so they may be elsewhere by now.
    """

    def __init__(self, sentence: str, *, may_have_moved: bool = False) -> None:
        super().__init__(sentence)
        self.may_have_moved = may_have_moved


@dataclass(frozen=True, slots=True)
class ModelAnswer:
    """What a model said."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Asker(Protocol):
    """One model that can be asked."""

    async def ask(self, messages: list[dict[str, Any]], *, most_tokens: int) -> ModelAnswer:
        """One question, decided greedily.

        Raises:
            AskFailed.
        """

    async def close(self) -> None:
        """Let go of connections."""


class OpenModels:
    """Open models on their engines.

    Args:
        drivers: what brings engines up.
        patience_s: how long they may take.
        model_folders: where folders of models on Triton lie.
    """

    def __init__(
        self, database: Store, drivers: Mapping[str, Driver], *, patience_s: float, model_folders: str = ""
    ) -> None:
        self._database = database
        self._drivers = drivers
        self._patience_s = patience_s
        self._model_folders = model_folders

    async def open(self, candidate: Candidate) -> Asker:
        """Make sure that a model is served.

        Raises:
            AskFailed: it is not, and will not be.
        """
        async with self._database.connection() as conn:
            serving = await deploys.serving_of(conn, candidate.model_id)
        if serving is None or (driver := self._drivers.get(serving.driver)) is None:
            raise AskFailed("The model has no capacity at the moment.")
        try:
            addresses = await driver.addresses(serving)
            await until_one_answers(addresses, serving.upstream, patience_s=self._patience_s)
        except CannotServe as error:
            raise AskFailed(str(error)) from None
        backends = [
            backend_of(one, serving.upstream, context_tokens=serving.context_tokens, model_folders=self._model_folders)
            for one in addresses
        ]
        return _OpenModel(candidate.name, backends, most_tokens=serving.max_output_tokens)


class _OpenModel:
    """One open model: its replicas take turns."""

    def __init__(self, name: str, backends: list[Backend], *, most_tokens: int) -> None:
        self._name = name
        self._backends = backends
        self._most_tokens = most_tokens
        self._turn = 0

    async def ask(self, messages: list[dict[str, Any]], *, most_tokens: int) -> ModelAnswer:
        """See `Asker.ask`."""
        body = {"messages": messages, "temperature": 0, "max_tokens": min(most_tokens, self._most_tokens)}
        request = InferenceRequest(
            Kind.CHAT, body, False, False, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), self._name
        )
        failure = BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT)
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(failure.retry_after_s or PAUSE_S * 2**attempt)
            backend = self._backends[self._turn % len(self._backends)]
            self._turn += 1
            try:
                return await _answer(backend, request)
            except BackendFailure as error:
                failure = error
                if error.code not in _AGAIN:
                    break
        raise AskFailed(
            _WORDS.get(failure.code, "The model did not answer."), may_have_moved=failure.code in _NOT_THERE
        )

    async def close(self) -> None:
        """Let go of connections."""
        for backend in self._backends:
            await backend.close()


class _Collector:
    """A sink for one whole answer."""

    def __init__(self) -> None:
        self.done: asyncio.Future[tuple[bytes, Observed]] = asyncio.get_running_loop().create_future()

    def accepted(self) -> None:
        """Nothing to do: nobody watches the head of an eval's answer."""

    def events(self, data: bytes) -> None:
        """Never called: the answer is whole."""

    def allowance(self, seen: Observed) -> int:
        """No bound: the run holds enough for all that may be asked for."""
        return 1 << 30

    def finished(self, body: bytes, observed: Observed) -> None:
        """The answer is complete."""
        if not self.done.done():
            self.done.set_result((body, observed))

    def failed(self, failure: BackendFailure) -> None:
        """It broke off."""
        if not self.done.done():
            self.done.set_exception(failure)


async def _answer(backend: Backend, request: InferenceRequest) -> ModelAnswer:
    sink = _Collector()
    call = await backend.open(request, sink)
    try:
        async with asyncio.timeout(ITEM_DEADLINE_S):
            body, observed = await sink.done
    except TimeoutError:
        raise BackendFailure(FailureCode.TIMEOUT, Phase.BODY) from None
    finally:
        if not sink.done.done() or sink.done.cancelled():
            call.cancel()
    usage = observed.usage
    content = orjson.loads(body)["choices"][0]["message"].get("content")
    return ModelAnswer(
        content if isinstance(content, str) else "",
        usage.prompt if usage is not None else 0,
        usage.completion if usage is not None else 0,
    )
