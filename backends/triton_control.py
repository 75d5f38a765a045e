"""Control of the models of one Triton server: what is there, load, unload, wait, statistics, load.

Floor: edge. For operators and the control plane, never in a request's way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

import orjson

from backends.load import Load, LoadSource
from backends.triton_grpc import TritonChannel, said_of
from backends.triton_limits import TritonLimits
from backends.triton_stubs import messages
from backends.wire.failure import BackendFailure, FailureCode

POLL_S = 0.1


class ModelState(StrEnum):
    """Where a model stands in its life on a server; ``ABSENT`` is one that was never loaded."""

    ABSENT = ""
    UNKNOWN = "UNKNOWN"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"
    UNAVAILABLE = "UNAVAILABLE"


class ModelNotLoaded(Exception):
    """A model could not be loaded, unloaded or found in time. The text is the server's own: for operators only."""


@dataclass(frozen=True, slots=True)
class IndexedModel:
    """One version of a model in the server's repository; ``reason`` says why it is in its state, if the server does."""

    name: str
    version: str
    state: ModelState
    reason: str


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a server has counted of a model, summed over its versions. Times are of all requests together.

    Attributes:
        requests: ended well.
        failures: ended badly.
        queue_nanos: spent before work began.
        compute_nanos: spent working.
    """

    requests: int
    failures: int
    queue_nanos: int
    compute_nanos: int


class TritonControl:
    """The models of one server.

    Args:
        target: ``host:port`` of its gRPC.
        limits: bounds of the calls; loading has a deadline of its own.
        load: reads how busy the server is, if it says so.
    """

    def __init__(self, target: str, *, limits: TritonLimits | None = None, load: LoadSource | None = None) -> None:
        self._limits = limits or TritonLimits()
        self._channel = TritonChannel(target, self._limits)
        self._load = load

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        if self._load is not None:
            await self._load.close()
        await self._channel.close()

    async def index(self) -> list[IndexedModel]:
        """All models of the repository, loaded or not, by name. Raises: BackendFailure."""
        answer = await self._ask("RepositoryIndex", messages.RepositoryIndexRequest())
        return [IndexedModel(m.name, m.version, ModelState(m.state), m.reason) for m in answer.models]

    async def load(self, model: str, *, config: Mapping[str, Any] | None = None, timeout_s: float) -> None:
        """Load a model, or load it anew. What runs on the old one goes on; when it fails the old one goes on serving.

        Args:
            config: a whole model configuration in the place of the repository's own.

        Raises:
            ModelNotLoaded: the server says why.
            BackendFailure: the server can't be asked.
        """
        request = messages.RepositoryModelLoadRequest(model_name=model)
        if config is not None:
            request.parameters["config"].string_param = orjson.dumps(dict(config)).decode()
        await self._command("RepositoryModelLoad", request, timeout_s)

    async def unload(self, model: str, *, timeout_s: float) -> None:
        """Take a model, and those that only it uses, out of service and wait until it is. Running requests end first.

        Raises:
            ModelNotLoaded: it did not go in time. BackendFailure: the server can't be asked.
        """
        request = messages.RepositoryModelUnloadRequest(model_name=model)
        request.parameters["unload_dependents"].bool_param = True
        async with _deadline(timeout_s, f"The model {model} is still loaded after {timeout_s:g} s."):
            await self._command("RepositoryModelUnload", request, timeout_s)
            while any(m.name == model for m in await self._loaded()):  # noqa: ASYNC110 - a server tells only who asks
                await asyncio.sleep(POLL_S)

    async def is_ready(self, model: str) -> bool:
        """Whether the server takes requests for a model. It may be wrong: see `TritonBackend.probe`."""
        return await self._channel.is_ready(model, timeout_s=self._limits.call_timeout_s)

    async def wait_ready(self, model: str, *, timeout_s: float) -> None:
        """Until a model is ready; also while its server is still starting.

        Raises:
            ModelNotLoaded: it is not in time.
        """
        async with _deadline(timeout_s, f"The model {model} is not ready after {timeout_s:g} s."):
            while not await self.is_ready(model):  # noqa: ASYNC110
                await asyncio.sleep(POLL_S)

    async def config(self, model: str) -> dict[str, Any]:
        """A loaded model's configuration, with what the server has completed. Raises: BackendFailure."""
        from google.protobuf.json_format import MessageToDict

        answer = await self._ask("ModelConfig", messages.ModelConfigRequest(name=model))
        fields: dict[str, Any] = MessageToDict(answer.config, preserving_proto_field_name=True)
        return fields

    async def statistics(self, model: str) -> ModelStatistics:
        """What the server has counted of a model. Raises: BackendFailure."""
        answer = await self._ask("ModelStatistics", messages.ModelStatisticsRequest(name=model))
        found = [version.inference_stats for version in answer.model_stats]
        return ModelStatistics(
            requests=sum(stats.success.count for stats in found),
            failures=sum(stats.fail.count for stats in found),
            queue_nanos=sum(stats.queue.ns for stats in found),
            compute_nanos=sum(stats.compute_infer.ns for stats in found),
        )

    async def read_load(self, timeout_s: float = 5.0) -> Load | None:
        """How busy the server is; ``None`` if it does not say."""
        return None if self._load is None else await self._load.read(timeout_s)

    # -- inside --------------------------------------------------------------------------------------------------------

    async def _loaded(self) -> list[IndexedModel]:
        gone = (ModelState.ABSENT, ModelState.UNAVAILABLE)
        return [model for model in await self.index() if model.state not in gone]

    async def _ask(self, method: str, request: Any) -> Any:
        return await self._channel.ask(method, request, timeout_s=self._limits.call_timeout_s)

    async def _command(self, method: str, request: Any, timeout_s: float) -> None:
        try:
            await self._channel.ask(method, request, timeout_s=timeout_s)
        except BackendFailure as failure:
            if failure.code is FailureCode.UNREACHABLE:
                raise
            # Only here its words matter: the operator has to know what is wrong with the model.
            raise ModelNotLoaded(said_of(failure)) from None


@asynccontextmanager
async def _deadline(timeout_s: float, sentence: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise ModelNotLoaded(sentence) from None
