"""The least that a client of Triton's has to do: generated stub, ``grpc.aio``, the text of each response decoded.

Run as ``python -m benchmarks.micro.triton_stub TARGET`` by `benchmarks.micro.triton`. Each line of its input is an
order, ``MODEL STREAMS REQUESTS TOKENS ITL_MS``; the answer to it is a line with the messages that came and the CPU
seconds of all of its threads. It has the event loop and the channel options of a gateway's worker, writes nothing,
counts nothing and heeds no stop text.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import uvloop

from backends.triton_limits import TritonLimits
from backends.triton_server.interfaces import INTERFACES, Interface
from backends.triton_stubs import messages
from backends.wire.sampling import Sampling
from backends.wire.triton import ModelInfo, TensorInfo, detect
from benchmarks.processes import end_with_parent

METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"


def main() -> None:
    """Follow orders until there are no more."""
    end_with_parent(os.getppid())
    uvloop.run(_follow(sys.argv[1]))


async def _follow(target: str) -> None:
    bound = TritonLimits().max_answer_bytes
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", bound)]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        # As the generated class makes it.
        infer = channel.stream_stream(
            METHOD,
            request_serializer=messages.ModelInferRequest.SerializeToString,
            response_deserializer=messages.ModelStreamInferResponse.FromString,
        )
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            model, *numbers = line.split()
            count, spent_s = await _carry_out(infer, model, *map(int, numbers))
            print(count, spent_s, flush=True)


async def _carry_out(
    infer: Any, model: str, streams: int, requests: int, tokens: int, itl_ms: int
) -> tuple[int, float]:
    left = requests
    request = _request(model, tokens, itl_ms)
    count = 0

    async def lane() -> None:
        nonlocal left, count
        while left > 0:
            left -= 1
            async for response in infer(iter([request])):
                answer = response.infer_response
                for place, tensor in enumerate(answer.outputs):
                    if tensor.name == "text_output":
                        answer.raw_output_contents[place][4:].decode()
                count += 1
                if answer.parameters["triton_final_response"].bool_param:
                    break

    begun_s = time.process_time()
    await asyncio.gather(*[lane() for _ in range(streams)])
    return count, time.process_time() - begun_s


def _request(model: str, tokens: int, itl_ms: int) -> Any:
    """Asks for what the gateway asks for."""
    dialect = detect(_info(INTERFACES[model]))
    request = messages.ModelInferRequest(model_name=model, id="bare")
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for tensor in dialect.encode(prompt(itl_ms, tokens), Sampling(max_tokens=tokens), stream=True):
        request.inputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
        request.raw_input_contents.append(tensor.raw)
    return request


def prompt(itl_ms: int, tokens: int) -> str:
    """What both sides ask: it says the pace to the replay, and to the models of a real server how long to speak."""
    pace = f"<<itl {itl_ms}>>" if itl_ms else ""
    return f'Tell me of the sea. {pace}<<sim {{"tokens": {tokens}, "itl_ms": {itl_ms}}}>>'


def _info(interface: Interface) -> ModelInfo:
    return ModelInfo(
        name=interface.name,
        inputs=dict(_tensors(interface.inputs)),
        outputs=dict(_tensors(interface.outputs)),
        decoupled=True,
        max_batch_size=interface.max_batch_size,
    )


def _tensors(declared: Any) -> Iterator[tuple[str, TensorInfo]]:
    for tensor in declared:
        word = tensor.datatype.removeprefix("TYPE_")
        datatype = "BYTES" if word == "STRING" else word
        yield tensor.name, TensorInfo(tensor.name, datatype, tensor.dims, getattr(tensor, "optional", False))


if __name__ == "__main__":
    main()
