"""Triton's gRPC protocol: one channel, the calls on it, and their errors translated.

Floor: edge. The only module besides `backends.triton_control` that knows grpc. Loading it costs a worker 20 MB, so
`backends.triton_backend` loads it when the first Triton endpoint is called.

grpc's library serves the calls with one answer. Streams go by `backends.triton_connection`. A stream of Triton's takes
many requests; ours takes one and is half-closed at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc
import grpc.aio

from backends.triton_connection import InferStream, TritonConnections
from backends.triton_limits import TritonLimits
from backends.triton_responses import ResponseParser
from backends.triton_stubs import messages
from backends.wire.failure import BackendFailure, Phase
from backends.wire.triton.errors import transport_failure
from backends.wire.triton.grpc_messages import MessageReceiver
from backends.wire.triton.metadata import ModelInfo, TensorInfo
from backends.wire.triton.tensors import InputTensor

SERVICE = "/inference.GRPCInferenceService/"
ASK_FINAL_RESPONSE = "triton_enable_empty_final_response"


class TritonChannel:
    """What one process has with one server: gRPC's connection, and those of the streams.

    Args:
        target: ``host:port``.
        limits: bounds.
    """

    def __init__(self, target: str, limits: TritonLimits) -> None:
        self._limits = limits
        self._channel = grpc.aio.insecure_channel(target, options=_options(limits))
        self._streams = TritonConnections(target, limits)

    def infer(
        self, model: str, request_id: str, inputs: Iterable[InputTensor], receiver: MessageReceiver
    ) -> InferStream:
        """Send one request, whose responses ``receiver`` hears; they are `backends.triton_responses`' to parse."""
        request = messages.ModelInferRequest(model_name=model, id=request_id)
        request.parameters[ASK_FINAL_RESPONSE].bool_param = True
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw)
        return self._streams.infer(request.SerializeToString(), receiver)

    async def answers(self, model: str, inputs: Iterable[InputTensor]) -> bool:
        """Whether a model gives one good response to a request; what else it would say is cut off.

        Raises:
            BackendFailure: what it did instead.
        """
        first = _First()
        stream = self.infer(model, "probe", inputs, first)
        try:
            return await first.came
        finally:
            stream.cancel()

    async def ask(self, method: str, request: Any, *, timeout_s: float) -> Any:
        """One of the protocol's unary calls; ``request`` is ``<method>Request``.

        Raises:
            BackendFailure: phase ``connect``, where nobody answered, or ``head``.
        """
        call = self._channel.unary_unary(
            SERVICE + method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=getattr(messages, f"{method}Response").FromString,
        )
        try:
            return await call(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _translated(error, Phase.HEAD) from error

    async def is_ready(self, model: str, *, timeout_s: float) -> bool:
        """Whether the server says that this model can be asked; the server's own readiness says less."""
        try:
            answer = await self.ask("ModelReady", messages.ModelReadyRequest(name=model), timeout_s=timeout_s)
        except BackendFailure:
            return False
        return bool(answer.ready)

    async def describe(self, model: str, *, timeout_s: float) -> ModelInfo:
        """What the server says of a model.

        Raises:
            BackendFailure: as `ask`.
        """
        config = await self._config(model, timeout_s)
        info = _model_info(config)
        for step in config.ensemble_scheduling.step:
            if info.decoupled:
                break
            # An ensemble need not say itself that one of its models answers more than once.
            decoupled = (await self._config(step.model_name, timeout_s)).model_transaction_policy.decoupled
            info = replace(info, decoupled=decoupled)
        return info

    async def _config(self, model: str, timeout_s: float) -> Any:
        answer = await self.ask("ModelConfig", messages.ModelConfigRequest(name=model), timeout_s=timeout_s)
        return answer.config

    def hang_up(self) -> None:
        """Close the streams' connections now; `close` is to follow."""
        self._streams.hang_up()

    async def close(self) -> None:
        """Close the connections; calls that still run are cancelled."""
        await self._streams.close()
        await self._channel.close()


class _First:
    """Waits for the first response of a stream."""

    def __init__(self) -> None:
        self.came: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def message(self, data: bytes) -> None:
        if not self.came.done():
            try:
                ResponseParser().parse(data, Phase.HEAD)
            except BackendFailure as failure:
                self.came.set_exception(failure)
            else:
                self.came.set_result(True)

    def settled(self) -> None:
        """Nothing waits for it."""

    def ended(self, status: str, details: str) -> None:
        if self.came.done():
            return
        if status == "OK":
            self.came.set_result(False)
        else:
            self.came.set_exception(transport_failure(status, details, Phase.HEAD))


def _options(limits: TritonLimits) -> list[tuple[str, int]]:
    return [
        # Channels with equal options would share a connection, and one flow-control window, with other backends' ones.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", limits.max_answer_bytes),
        ("grpc.max_send_message_length", -1),
        # A restarted server shall be found soon. The least backoff is also how long a connection attempt may take.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", round(limits.connect_timeout_s * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(max(limits.connect_timeout_s, 1.0) * 1000)),
    ]


def _translated(error: grpc.aio.AioRpcError, phase: Phase) -> BackendFailure:
    return transport_failure(error.code().name, error.details() or "", phase)


def said_of(failure: BackendFailure) -> str:
    """The server's own words for a failure of `TritonChannel.ask`: for operators, never for customers."""
    cause = failure.__cause__
    return (cause.details() if isinstance(cause, grpc.aio.AioRpcError) else None) or str(failure)


def _model_info(config: Any) -> ModelInfo:
    return ModelInfo(
        name=config.name,
        inputs={i.name: TensorInfo(i.name, _datatype(i), tuple(i.dims), i.optional) for i in config.input},
        outputs={o.name: TensorInfo(o.name, _datatype(o), tuple(o.dims)) for o in config.output},
        decoupled=config.model_transaction_policy.decoupled,
        max_batch_size=config.max_batch_size,
        parameters={name: value.string_value for name, value in config.parameters.items()},
    )


def _datatype(tensor: Any) -> str:
    """The type's name in the protocol, which the configuration writes in another way."""
    name: str = type(tensor).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number[tensor.data_type].name
    word = name.removeprefix("TYPE_")
    return "BYTES" if word == "STRING" else word
