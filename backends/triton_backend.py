"""A backend on a Triton server: TensorRT-LLM's two interfaces and vLLM's.

Floor: edge. Light on purpose: what speaks gRPC, renders templates and counts tokens is loaded when the first request
comes, in a thread, so that a worker without such an endpoint stays small.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from backends.protocol import Sink
from backends.triton_limits import TritonLimits
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.request import InferenceRequest

if TYPE_CHECKING:
    from backends.triton_call import TritonCall
    from backends.triton_grpc import TritonChannel
    from backends.triton_model import PreparedRequest, TritonModel
    from backends.wire.triton import ModelInfo

log = logging.getLogger("pareta.triton")

DEFAULT_PORT = 8001
METRICS_PORT = 8002
BIG_PROMPT_CHARS = 50_000
"""From here on a prompt is rendered and counted in a thread: it would hold up every stream of the worker."""
FORGETS = frozenset({FailureCode.MISCONFIGURED, FailureCode.UNREACHABLE})
"""After these the model may have been loaded anew, with other tensors."""
PREPROCESSING = "preprocessing"
"""The model of TensorRT-LLM's ensemble that knows where its tokenizer lies."""


@dataclass(frozen=True, slots=True)
class TritonAddress:
    """Where a model is: ``triton://host:8001/model``. Without a path the endpoint's model id names it."""

    target: str
    model: str

    @property
    def metrics_url(self) -> str:
        """Where a server tells of itself unless it was told otherwise."""
        return f"http://{self.target.rpartition(':')[0]}:{METRICS_PORT}/metrics"

    @classmethod
    def parse(cls, url: str, *, model: str) -> TritonAddress:
        """Raises: ValueError: it is no such address."""
        parts = urlsplit(url)
        if parts.scheme != "triton" or not parts.hostname:
            raise ValueError(f"{url!r} is no address of a model on Triton")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(f"{host}:{parts.port or DEFAULT_PORT}", unquote(parts.path.strip("/")) or model)


class TritonBackend:
    """One model on one server; see `backends.protocol.Backend`.

    Args:
        url: ``triton://host:port/model``.
        model: the endpoint's real model id, where the address has no path.
        context_tokens: of prompt and answer together.
        folders: where the model's folder may lie, best first; the server's own word comes after these.
        limits: bounds.

    Raises:
        ValueError: the address is none.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        context_tokens: int,
        folders: tuple[str, ...] = (),
        limits: TritonLimits,
    ) -> None:
        self._address = TritonAddress.parse(url, model=model)
        self._context_tokens = context_tokens
        self._folders = folders
        self._limits = limits
        self._channel: TritonChannel | None = None
        self._model: TritonModel | None = None
        self._loading: asyncio.Task[TritonModel] | None = None
        self._running: set[TritonCall | asyncio.Task[None]] = set()
        self._is_closed = False
        self._is_suspect = False
        self._complaint = ""

    async def open(self, request: InferenceRequest, sink: Sink) -> TritonCall:
        """Send a request.

        Raises:
            Unsupported: names what the model cannot honour.
            BackendFailure: the model can't be asked.
        """
        model = self._model or await self._load_model()
        prepared = await _prepared(model, request)
        channel = self._channel
        if channel is None or self._is_closed:
            raise BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT)  # closed meanwhile
        from backends.triton_call import TritonCall

        call = TritonCall(
            partial(channel.infer, self._address.model, request.answer_id, prepared.inputs),
            request=request,
            reader=model.reader(prepared),
            writer=model.writer(request, prepared, sink.allowance),
            sink=sink,
            idle_s=self._limits.idle_s,
            deadline_s=self._limits.deadline_s,
            max_answer_bytes=self._limits.max_answer_bytes,
            heard=self._has_spoken,
            broke=self._has_failed,
            gone=self._call_ended,
        )
        self._running.add(call)
        return call

    async def probe(self, timeout_s: float) -> bool:
        """Whether the model is ready and, after it was silent for too long, whether it really speaks.

        A server whose model's process was killed goes on to call it ready.
        """
        try:
            async with asyncio.timeout(timeout_s):
                await self._connect()
                assert self._channel is not None
                if not await self._channel.is_ready(self._address.model, timeout_s=timeout_s):
                    self._forget()
                    return False
                return not self._is_suspect or await self._speaks()
        except (TimeoutError, BackendFailure):
            return False

    @property
    def running(self) -> int:
        """Calls whose streams have not ended, which is a moment after their answers; and what is left to be closed."""
        return len(self._running)

    async def close(self) -> None:
        """Keep no connection any more; running calls go on."""
        self._is_closed = True
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        if not self._running:
            await self._disconnect()

    # -- what is known of the model ------------------------------------------------------------------------------------

    async def _load_model(self) -> TritonModel:
        """Ask the server what the model is. Requests that come meanwhile wait for the same answer."""
        if self._loading is None or self._loading.done():
            self._loading = asyncio.get_running_loop().create_task(self._learn())
            self._loading.add_done_callback(_retrieved)
        loading = self._loading
        try:
            return await asyncio.shield(loading)
        except asyncio.CancelledError:
            asked_by = asyncio.current_task()
            if loading.cancelled() and asked_by is not None and not asked_by.cancelling():
                raise BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT) from None  # closed meanwhile
            raise

    async def _learn(self) -> TritonModel:
        await self._connect()
        assert self._channel is not None
        timeout_s = self._limits.call_timeout_s
        try:
            info = await self._channel.describe(self._address.model, timeout_s=timeout_s)
        except BackendFailure as failure:
            raise _before_sending(failure) from None
        preprocessing = await self._preprocessing()
        told = (parameters.get("tokenizer_dir") for parameters in (info.parameters, preprocessing))
        folders = [*self._folders, *(folder for folder in told if folder)]
        adds_begin = preprocessing.get("add_special_tokens", "").lower() not in ("false", "0", "no", "n", "f", "off")
        from backends.wire.triton import UnknownInterface

        try:
            self._model = await asyncio.to_thread(self._build, info, folders, adds_begin)
        except UnknownInterface as error:
            self._complain(error)
            raise BackendFailure(FailureCode.MISCONFIGURED, Phase.CONNECT) from None
        self._complaint = ""
        return self._model

    async def _preprocessing(self) -> Mapping[str, str]:
        """The parameters of the model that tokenizes for TensorRT-LLM's ensemble, if there is one: where the tokenizer
        lies, perhaps on a disk that this machine shares, and what it adds."""
        assert self._channel is not None
        try:
            return (await self._channel.describe(PREPROCESSING, timeout_s=self._limits.call_timeout_s)).parameters
        except BackendFailure:
            return {}

    def _build(self, info: ModelInfo, folders: list[str], adds_begin: bool) -> TritonModel:
        from backends.triton_model import TritonModel, find_folder

        return TritonModel(info, find_folder(folders), context_tokens=self._context_tokens, adds_begin=adds_begin)

    def _complain(self, error: Exception) -> None:
        """Tell the operator, once for each reason."""
        sentence = str(error)
        if sentence != self._complaint:
            self._complaint = sentence
            log.error("The model %s on %s can't be used. %s", self._address.model, self._address.target, sentence)

    def _forget(self) -> None:
        self._model = None

    # -- whether it lives ----------------------------------------------------------------------------------------------

    def _has_spoken(self) -> None:
        self._is_suspect = False

    def _has_failed(self, failure: BackendFailure) -> None:
        if failure.code is FailureCode.TIMEOUT:
            self._is_suspect = True
        if failure.code in FORGETS:
            self._forget()

    async def _speaks(self) -> bool:
        """Whether it generates a token."""
        model = self._model or await self._load_model()
        from backends.triton_model import ask_for_one_token

        assert self._channel is not None
        if not await self._channel.answers(self._address.model, ask_for_one_token(model)):
            return False
        self._is_suspect = False
        return True

    # -- the connection ------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        if self._is_closed:
            raise BackendFailure(FailureCode.UNREACHABLE, Phase.CONNECT)
        if self._channel is None:
            module: Any = await asyncio.to_thread(_load_libraries)
            if self._channel is None:  # nobody was faster
                self._channel = module.TritonChannel(self._address.target, self._limits)

    def _call_ended(self, call: TritonCall) -> None:
        self._running.discard(call)
        if self._is_closed and not self._running:
            if self._channel is not None:
                self._channel.hang_up()
            closing = asyncio.get_running_loop().create_task(self._disconnect())
            self._running.add(closing)
            closing.add_done_callback(self._running.discard)

    async def _disconnect(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


async def _prepared(model: TritonModel, request: InferenceRequest) -> PreparedRequest:
    if _size(request.body) < BIG_PROMPT_CHARS:
        return model.prepare(request)
    return await asyncio.to_thread(model.prepare, request)


def _size(value: Any) -> int:
    """About as many characters as a value of JSON holds."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_size, value.values())) + len(value)
    if isinstance(value, list):
        return sum(map(_size, value)) + len(value)
    return 1


def _before_sending(failure: BackendFailure) -> BackendFailure:
    """Nothing of the request was sent yet. A server that does not even say what it has can't be reached."""
    is_gone = failure.code in (FailureCode.UNREACHABLE, FailureCode.TIMEOUT)
    return BackendFailure(failure.code, Phase.CONNECT if is_gone else Phase.HEAD)


def _load_libraries() -> Any:
    importlib.import_module("backends.triton_model")
    importlib.import_module("backends.triton_call")
    return importlib.import_module("backends.triton_grpc")


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Whoever asked may have gone; a failure that nobody fetched is no news."""
    if not task.cancelled():
        task.exception()
