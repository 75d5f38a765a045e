"""Triton's gRPC protocol: one channel, the calls on it, and their errors translated.

Floor: edge. The only module besides `backends.triton_control` that knows grpc. Loading it costs a worker 20 MB, so
`backends.triton_backend` loads it when the first Triton endpoint is called.

A stream of Triton's takes many requests; ours takes one and is half-closed at once, which on the wire is the same as a
call with one request and many responses, and is made as such.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio

from backends.triton_limits import TritonLimits
from backends.triton_stubs import messages
from backends.wire.failure import BackendFailure, FailureCode, Phase
from backends.wire.triton.errors import in_band_failure, transport_failure
from backends.wire.triton.metadata import ModelInfo, TensorInfo
from backends.wire.triton.tensors import DataType, InputTensor, OutputTensor

SERVICE = "/inference.GRPCInferenceService/"
FINAL_RESPONSE = "triton_final_response"
ASK_FINAL_RESPONSE = "triton_enable_empty_final_response"
_KNOWN_TYPES = {datatype.value: datatype for datatype in DataType}


@dataclass(frozen=True, slots=True)
class StreamedResponse:
    """One response of a stream. A tensor of a type that we don't know counts as absent."""

    outputs: Mapping[str, OutputTensor]
    is_final: bool


class TritonChannel:
    """The connection of one process to one server; gRPC makes and mends it by itself.

    Args:
        target: ``host:port``.
        limits: bounds.
    """

    def __init__(self, target: str, limits: TritonLimits) -> None:
        self._limits = limits
        self._channel = grpc.aio.insecure_channel(target, options=_options(limits))
        self._infer = self._channel.unary_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )

    def infer(self, model: str, request_id: str, inputs: Iterable[InputTensor]) -> InferStream:
        """Send one request, whose responses are to be read."""
        request = messages.ModelInferRequest(model_name=model, id=request_id)
        request.parameters[ASK_FINAL_RESPONSE].bool_param = True
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw)
        return InferStream(self._infer(request, timeout=self._limits.deadline_s))

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

    async def close(self) -> None:
        """Close the connection; calls that still run are cancelled."""
        await self._channel.close()


class InferStream:
    """The responses to one request."""

    __slots__ = ("_rpc",)

    def __init__(self, rpc: Any) -> None:
        self._rpc = rpc

    async def read(self, phase: Phase) -> StreamedResponse | None:
        """The next response; ``None`` after the last.

        Args:
            phase: where the request stands; a failure bears it.

        Raises:
            BackendFailure: the model or the server failed.
        """
        try:
            message = await self._rpc.read()
        except grpc.aio.AioRpcError as error:
            raise _translated(error, phase) from None
        if message is grpc.aio.EOF:
            return None
        if message.error_message:
            raise in_band_failure(message.error_message, phase)
        return _response(message.infer_response)

    def cancel(self) -> None:
        """Stop the model: it sees that its request is cancelled."""
        self._rpc.cancel()


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


class _Outputs(Mapping[str, OutputTensor]):
    """The tensors of a response, each made when it is asked for: most are of no interest, and there are thousands of
    responses a second."""

    __slots__ = ("_contents", "_tensors")

    def __init__(self, answer: Any) -> None:
        self._contents = answer.raw_output_contents
        self._tensors = {tensor.name: (place, tensor) for place, tensor in enumerate(answer.outputs)}

    def __getitem__(self, name: str) -> OutputTensor:
        place, tensor = self._tensors[name]
        return OutputTensor(_KNOWN_TYPES[tensor.datatype], tuple(tensor.shape), self._contents[place])

    def get(self, name: str, default: Any = None) -> Any:
        """As of any mapping, without an exception for what is absent."""
        found = self._tensors.get(name)
        datatype = None if found is None else _KNOWN_TYPES.get(found[1].datatype)
        if found is None or datatype is None:
            return default
        place, tensor = found
        return OutputTensor(datatype, tuple(tensor.shape), self._contents[place])

    def __contains__(self, name: object) -> bool:
        found = self._tensors.get(name) if isinstance(name, str) else None
        return found is not None and found[1].datatype in _KNOWN_TYPES

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _response(answer: Any) -> StreamedResponse:
    if len(answer.raw_output_contents) != len(answer.outputs):
        raise BackendFailure(FailureCode.PROTOCOL, Phase.BODY)
    parameters = answer.parameters
    return StreamedResponse(_Outputs(answer), FINAL_RESPONSE in parameters and parameters[FINAL_RESPONSE].bool_param)


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
