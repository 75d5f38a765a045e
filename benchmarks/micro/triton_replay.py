"""A gRPC server that answers with recorded shapes: what Triton's three interfaces send, without a model behind it.

Run as ``python -m benchmarks.micro.triton_replay`` by `benchmarks.micro.triton`; prints ``ready replay PORT``. Every
stream gets ``max_tokens`` responses, each written as soon as flow control lets it, or one every ``<<itl N>>``
milliseconds where the prompt says so. Responses are encoded before they are needed, so that this server costs less for
a message than Triton's Python backend does. Configurations and tensors are those of `backends.triton_server`.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import struct
from collections.abc import AsyncIterator
from functools import cache
from typing import Any

import grpc
import grpc.aio
from google.protobuf import text_format

from backends.triton_server.interfaces import INTERFACES
from backends.triton_server.repository import config_text
from backends.triton_stubs import messages
from backends.wire.triton import DataType, pack_bytes, pack_numbers
from benchmarks.processes import end_with_parent

SERVICE = "inference.GRPCInferenceService"
MODELS = ("ensemble", "vllm", "llmapi")
WORDS = (" the", " sea", " is", " wide", " and", " a", " ship", " sails", ",", " on", " it", " to", " an", " Küste")
PROMPT_TOKENS = 24
_PACE = re.compile(rb"<<itl (\d+)>>")
_MAX_TOKENS = re.compile(r'"max_tokens":\s*(\d+)')


def main() -> None:
    """Serve until the parent ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parent", type=int, default=0)
    end_with_parent(parser.parse_args().parent)
    asyncio.run(_serve())


async def _serve() -> None:
    handlers = {
        "ModelConfig": grpc.unary_unary_rpc_method_handler(
            _config,
            request_deserializer=messages.ModelConfigRequest.FromString,
            response_serializer=messages.ModelConfigResponse.SerializeToString,
        ),
        "ModelReady": grpc.unary_unary_rpc_method_handler(
            _ready,
            request_deserializer=messages.ModelReadyRequest.FromString,
            response_serializer=messages.ModelReadyResponse.SerializeToString,
        ),
        # Responses are bytes already.
        "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(
            _infer, request_deserializer=messages.ModelInferRequest.FromString
        ),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready replay {port}", flush=True)
    await server.wait_for_termination()


async def _config(asked: Any, context: grpc.aio.ServicerContext) -> Any:
    if asked.name not in MODELS:
        await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{asked.name}' is not found")
    answer = messages.ModelConfigResponse()
    text_format.Parse(config_text(INTERFACES[asked.name], {}), answer.config)
    return answer


async def _ready(asked: Any, context: grpc.aio.ServicerContext) -> Any:
    del asked, context
    return messages.ModelReadyResponse(ready=True)


async def _infer(incoming: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    del context
    async for asked in incoming:
        pace = _PACE.search(b"".join(asked.raw_input_contents))
        pause_s = int(pace[1]) / 1000 if pace else 0.0
        heading = _heading(asked.model_name, asked.id)
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        for body in _bodies(asked.model_name, _tokens_of(asked)):
            if pause_s:
                due_s += pause_s
                await asyncio.sleep(due_s - loop.time())
            yield _framed(heading, body)


def _tokens_of(asked: Any) -> int:
    """The bound on the answer, wherever the interface has it."""
    for place, tensor in enumerate(asked.inputs):
        raw = asked.raw_input_contents[place]
        if tensor.name in ("max_tokens", "sampling_param_max_tokens"):
            return int(struct.unpack("<i", raw)[0])
        if tensor.name == "sampling_parameters" and (found := _MAX_TOKENS.search(raw[4:].decode())):
            return int(found[1])
    raise ValueError("the request has no bound")


def _heading(model: str, request_id: str) -> bytes:
    """The fields that stand first in each response of a stream."""
    answer: bytes = messages.ModelInferResponse(model_name=model, model_version="1", id=request_id).SerializeToString()
    return answer


def _framed(heading: bytes, body: bytes) -> bytes:
    """A ``ModelStreamInferResponse``: its second field, of two encodings that follow each other."""
    return b"\x12" + _varint(len(heading) + len(body)) + heading + body


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


@cache
def _bodies(model: str, tokens: int) -> list[bytes]:
    """All responses of an answer, without what is the request's own."""
    texts = [WORDS[number % len(WORDS)].encode() for number in range(tokens)]
    if model == "llmapi":  # all there is so far, each time
        texts = [b"".join(texts[: number + 1]) for number in range(tokens)]
    return [_body(model, text, is_last=number == tokens - 1) for number, text in enumerate(texts)]


def _body(model: str, text: bytes, *, is_last: bool) -> bytes:
    answer = messages.ModelInferResponse()
    answer.parameters["triton_final_response"].bool_param = is_last
    for name, datatype, shape, raw in _tensors(model, text, is_last=is_last):
        answer.outputs.add(name=name, datatype=datatype.value, shape=shape)
        answer.raw_output_contents.append(raw)
    encoded: bytes = answer.SerializeToString()
    return encoded


def _tensors(model: str, text: bytes, *, is_last: bool) -> list[tuple[str, DataType, tuple[int, ...], bytes]]:
    one = pack_numbers(DataType.INT32, [1])
    prompt = pack_numbers(DataType.INT32, [PROMPT_TOKENS])
    reason = pack_bytes([b"length" if is_last else b"None"])
    if model == "ensemble":
        batch = (1, 1)
        zero = pack_numbers(DataType.INT32, [0])
        return [
            ("num_input_tokens", DataType.INT32, batch, prompt),
            ("batch_index", DataType.INT32, batch, zero),
            ("text_output", DataType.BYTES, batch, pack_bytes([text])),
            ("sequence_index", DataType.INT32, batch, zero),
            ("num_output_tokens", DataType.INT32, batch, one),
        ]
    told: list[tuple[str, DataType, tuple[int, ...], bytes]] = [
        ("text_output", DataType.BYTES, (1,), pack_bytes([text])),
        ("finish_reason", DataType.BYTES, (1,), reason),
    ]
    if model == "llmapi":
        return told
    return [
        *told,
        ("num_input_tokens", DataType.UINT32, (1,), prompt),
        ("num_output_tokens", DataType.UINT32, (1,), one),
    ]


if __name__ == "__main__":
    main()
