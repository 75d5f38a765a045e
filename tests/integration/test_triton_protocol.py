"""What a Triton server may do that the real one of the tests can't be made to do: a server of our own says it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from backends.triton_stubs import messages
from backends.wire.failure import FailureCode, Phase
from backends.wire.triton import pack_bytes
from tests.integration.triton_tools import Told, ask, backend_at, request

SERVICE = "inference.GRPCInferenceService"
Answer = Callable[[Any, grpc.aio.ServicerContext], AsyncIterator[Any]]

TEXT, BOOL, INT32, FP32 = 13, 1, 8, 11
INPUTS = {"text_input": TEXT, "max_tokens": INT32, "stream": BOOL, "temperature": FP32, "top_k": INT32, "top_p": FP32}


def config_of(name: str, *, decoupled: bool = True, step: str = "") -> Any:
    """The configuration of a model with the tensors of the ensemble that nobody can do without."""
    answer = messages.ModelConfigResponse()
    config = answer.config
    config.name = name
    config.model_transaction_policy.decoupled = decoupled
    for tensor, datatype in INPUTS.items():
        config.input.add(name=tensor, data_type=datatype, dims=[1], optional=tensor not in ("text_input", "max_tokens"))
    config.output.add(name="text_output", data_type=TEXT, dims=[-1])
    if step:
        config.ensemble_scheduling.step.add(model_name=step)
    return answer


def said(text: str, *, final: bool = False) -> Any:
    """A response with a text."""
    response = messages.ModelStreamInferResponse()
    inner = response.infer_response
    inner.outputs.add(name="text_output", datatype="BYTES", shape=[1])
    inner.raw_output_contents.append(pack_bytes([text.encode()]))
    inner.parameters["triton_final_response"].bool_param = final
    return response


def final() -> Any:
    """The empty response that ends a stream."""
    response = messages.ModelStreamInferResponse()
    response.infer_response.parameters["triton_final_response"].bool_param = True
    return response


@asynccontextmanager
async def serving(answer: Answer, *configs: Any) -> AsyncIterator[str]:
    """A server that answers every stream so. Yields the URL of its model ``ensemble``."""
    known = {config.config.name: config for config in configs or (config_of("ensemble"),)}

    async def config(asked: Any, context: grpc.aio.ServicerContext) -> Any:
        if asked.name not in known:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{asked.name}' is not found")
        return known[asked.name]

    async def infer(incoming: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        asked = [one async for one in incoming]  # ends, because the request is half-closed
        assert len(asked) == 1
        assert asked[0].parameters["triton_enable_empty_final_response"].bool_param
        async for response in answer(asked[0], context):
            yield response

    handlers = {
        "ModelConfig": grpc.unary_unary_rpc_method_handler(
            config,
            request_deserializer=messages.ModelConfigRequest.FromString,
            response_serializer=messages.ModelConfigResponse.SerializeToString,
        ),
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            infer,
            request_deserializer=messages.ModelInferRequest.FromString,
            response_serializer=messages.ModelStreamInferResponse.SerializeToString,
        ),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"triton://127.0.0.1:{port}/ensemble"
    finally:
        await server.stop(None)


async def told_by(answer: Answer, **limits: Any) -> Told:
    async with serving(answer) as url, backend_at(url, **limits) as backend:
        return await ask(backend, request("x"))


@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize(
    ("status", "details", "before", "inside"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "full", FailureCode.OVERLOADED, FailureCode.OVERLOADED),
        (grpc.StatusCode.UNAVAILABLE, "going away", FailureCode.UNREACHABLE, FailureCode.BROKEN),
        (grpc.StatusCode.INVALID_ARGUMENT, "no", FailureCode.INPUT_REFUSED, FailureCode.INPUT_REFUSED),
        (grpc.StatusCode.NOT_FOUND, "no", FailureCode.MISCONFIGURED, FailureCode.MISCONFIGURED),
        (grpc.StatusCode.INTERNAL, "secret", FailureCode.BROKEN, FailureCode.BROKEN),
        (grpc.StatusCode.CANCELLED, "secret", FailureCode.BROKEN, FailureCode.BROKEN),
    ],
)
async def test_a_status_is_a_failure(
    status: grpc.StatusCode, details: str, before: FailureCode, inside: FailureCode, after: int
) -> None:
    """A stream that ends with a status is a failure of its kind, and of the phase it had come to."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        for _ in range(after):
            yield said("word ")
        await context.abort(status, details)

    told = await told_by(answer)
    assert told.failure is not None
    assert told.failure.code is (inside if after else before)
    assert told.failure.phase is (Phase.BODY if after else Phase.HEAD)


async def test_a_stream_without_a_final_response_ends_with_its_call() -> None:
    """A server that knows nothing of the empty final response is understood too."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        yield said("one ")
        yield said("two")

    told = await told_by(answer)
    assert told.failure is None
    assert told.text == "one two"


async def test_the_final_response_ends_the_answer_before_its_call() -> None:
    """The client does not wait for a call that the server does not close; it is cancelled some time later."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        yield said("one")
        yield final()
        await asyncio.sleep(60)

    async with serving(answer) as url, backend_at(url) as backend:
        async with asyncio.timeout(3):
            told = await ask(backend, request("x"))
        assert told.text == "one"


async def test_tensors_that_do_not_match_are_a_broken_protocol() -> None:
    """A response with more tensors than contents is no answer, and what it breaks is only its own."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        broken = said("one")
        broken.infer_response.outputs.add(name="more", datatype="BYTES", shape=[1])
        yield broken

    told = await told_by(answer)
    assert told.failure is not None
    assert told.failure.code is FailureCode.PROTOCOL


async def test_a_tensor_of_an_unknown_type_is_left_out() -> None:
    """Outputs that we never read may have types that we don't know."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        odd = said("one", final=True)
        odd.infer_response.outputs.add(name="logits", datatype="BF16", shape=[1])
        odd.infer_response.raw_output_contents.append(b"\x00\x00")
        yield odd

    told = await told_by(answer)
    assert told.text == "one"


async def test_a_response_beyond_the_bound_is_too_large() -> None:
    """It is not even taken into memory."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        yield said("x" * 20_000)

    told = await told_by(answer, max_answer_bytes=10_000)
    assert told.failure is not None
    assert told.failure.code is FailureCode.TOO_LARGE


async def test_an_ensemble_streams_if_one_of_its_models_does() -> None:
    """The configuration of an ensemble need not say itself that it answers more than once."""

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        yield said("one", final=True)

    configs = (config_of("ensemble", decoupled=False, step="inner"), config_of("inner"))
    async with serving(answer, *configs) as url, backend_at(url) as backend:
        assert (await ask(backend, request("x"))).text == "one"


async def test_many_first_requests_learn_the_model_once() -> None:
    """Requests that come together wait for the same description; one that is given up stops no other."""
    asked_for = 0

    async def answer(asked: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        nonlocal asked_for
        asked_for += 1
        yield said("one", final=True)

    async with serving(answer) as url, backend_at(url) as backend:
        first = asyncio.create_task(ask(backend, request("x")))
        rest = [asyncio.create_task(ask(backend, request("x"))) for _ in range(9)]
        await asyncio.sleep(0)
        first.cancel()
        assert {(await one).text for one in rest} == {"one"}
    assert asked_for in (9, 10)
