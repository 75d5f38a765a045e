"""What a Triton server says of models of each interface, and how tests read and write their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.wire.sampling import Sampling
from backends.wire.triton import DataType, Dialect, ModelInfo, OutputTensor, TensorInfo, pack_bytes, pack_numbers
from backends.wire.triton.tensors import read_bytes, read_numbers

ENSEMBLE_INPUTS = {
    "text_input": "BYTES", "decoder_text_input": "BYTES", "max_tokens": "INT32", "num_return_sequences": "INT32",
    "bad_words": "BYTES", "stop_words": "BYTES", "exclude_input_in_output": "BOOL", "end_id": "INT32",
    "pad_id": "INT32", "top_k": "INT32", "top_p": "FP32", "temperature": "FP32", "length_penalty": "FP32",
    "repetition_penalty": "FP32", "min_tokens": "INT32", "presence_penalty": "FP32", "frequency_penalty": "FP32",
    "seed": "UINT64", "return_log_probs": "BOOL", "return_context_logits": "BOOL", "return_generation_logits": "BOOL",
    "return_perf_metrics": "BOOL", "return_num_input_tokens": "BOOL", "return_num_output_tokens": "BOOL",
    "beam_width": "INT32", "stream": "BOOL", "prompt_table_extra_id": "UINT64", "embedding_bias_words": "BYTES",
    "embedding_bias_weights": "FP32", "lora_task_id": "UINT64", "guided_decoding_guide_type": "BYTES",
    "guided_decoding_guide": "BYTES",
}  # fmt: skip
ENSEMBLE_OUTPUTS = {
    "text_output": "BYTES", "cum_log_probs": "FP32", "output_log_probs": "FP32", "batch_index": "INT32",
    "sequence_index": "INT32", "num_input_tokens": "INT32", "num_output_tokens": "INT32",
}  # fmt: skip
LLMAPI_INPUTS = {
    "text_input": "BYTES", "streaming": "BOOL", "sampling_param_best_of": "INT32",
    "sampling_param_temperature": "FP32", "sampling_param_top_k": "INT32", "sampling_param_top_p": "FP32",
    "sampling_param_frequency_penalty": "FP32", "sampling_param_presence_penalty": "FP32",
    "sampling_param_max_tokens": "INT32", "sampling_param_stop": "BYTES", "sampling_param_seed": "UINT64",
    "sampling_param_exclude_input_from_output": "BOOL", "sampling_param_return_perf_metrics": "BOOL",
    "return_finish_reason": "BOOL", "return_stop_reason": "BOOL", "return_cumulative_logprob": "BOOL", "stop": "BOOL",
}  # fmt: skip
LLMAPI_OUTPUTS = {"text_output": "BYTES", "finish_reason": "BYTES", "stop_reason": "BYTES"}
VLLM_INPUTS = {
    "text_input": "BYTES", "image": "BYTES", "stream": "BOOL", "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL", "return_finish_reason": "BOOL", "return_cumulative_logprob": "BOOL",
    "return_logprobs": "BOOL", "return_num_input_tokens": "BOOL", "return_num_output_tokens": "BOOL",
}  # fmt: skip
VLLM_OUTPUTS = {
    "text_output": "BYTES", "finish_reason": "BYTES", "cumulative_logprob": "FP32", "logprobs": "BYTES",
    "num_input_tokens": "UINT32", "num_output_tokens": "UINT32",
}  # fmt: skip
REQUIRED = {"text_input", "max_tokens"}


def model(
    name: str,
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
    *,
    without: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    decoupled: bool = True,
    max_batch_size: int = 0,
    parameters: Mapping[str, str] | None = None,
) -> ModelInfo:
    """A model with these tensors, except for those it shall be ``without``."""
    return ModelInfo(
        name=name,
        inputs={
            tensor: TensorInfo(tensor, datatype, (1,), optional=tensor not in REQUIRED and tensor not in required)
            for tensor, datatype in inputs.items()
            if tensor not in without
        },
        outputs={
            tensor: TensorInfo(tensor, datatype, (-1,)) for tensor, datatype in outputs.items() if tensor not in without
        },
        decoupled=decoupled,
        max_batch_size=max_batch_size,
        parameters=parameters or {},
    )


def ensemble(**change: Any) -> ModelInfo:
    """TensorRT-LLM's ensemble, batching as it does by default."""
    extra = change.pop("extra", {})
    return model("ensemble", {**ENSEMBLE_INPUTS, **extra}, ENSEMBLE_OUTPUTS, **{"max_batch_size": 4, **change})


def bls(**change: Any) -> ModelInfo:
    """TensorRT-LLM's business logic model, which has inputs for a draft."""
    inputs = {**ENSEMBLE_INPUTS, "num_draft_tokens": "INT32", "use_draft_logits": "BOOL"}
    return model("tensorrt_llm_bls", inputs, ENSEMBLE_OUTPUTS, **{"max_batch_size": 4, **change})


def llmapi(**change: Any) -> ModelInfo:
    """TensorRT-LLM's LLM API model."""
    extra = change.pop("extra", {})
    return model("tensorrt_llm", {**LLMAPI_INPUTS, **extra}, LLMAPI_OUTPUTS, **change)


def vllm(**change: Any) -> ModelInfo:
    """A model of vLLM's backend."""
    return model("vllm_model", VLLM_INPUTS, VLLM_OUTPUTS, **change)


def sent(dialect: Dialect, sampling: Sampling, *, stream: bool = True, prompt: str = "Hello") -> dict[str, list[Any]]:
    """What is sent, by the tensors' names."""
    values: dict[str, list[Any]] = {}
    for tensor in dialect.encode(prompt, sampling, stream=stream):
        assert tensor.name not in values, f"{tensor.name} is sent twice"
        output = OutputTensor(tensor.datatype, tensor.shape, tensor.raw)
        values[tensor.name] = read_bytes(output) if tensor.datatype is DataType.BYTES else read_numbers(output)
    return values


def texts(*elements: bytes) -> OutputTensor:
    """BYTES [n]."""
    return OutputTensor(DataType.BYTES, (len(elements),), pack_bytes(elements))


def numbers(datatype: DataType, *elements: float, shape: tuple[int, ...] | None = None) -> OutputTensor:
    """Numbers, [n] unless told otherwise."""
    return OutputTensor(datatype, (len(elements),) if shape is None else shape, pack_numbers(datatype, elements))
