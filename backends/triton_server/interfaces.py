"""The tensors of each model, as `config.pbtxt` declares them.

Pure data. Sources: the `config.pbtxt` of TensorRT-LLM's `inflight_batcher_llm/ensemble` and `llmapi/tensorrt_llm`, and
what vLLM's Triton backend adds to a configuration by itself. Inputs that only carry weights, logits or images are left
out: they change nothing for a text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output; `dims` are without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...] = (1,)
    optional: bool = True


@dataclass(frozen=True, slots=True)
class Interface:
    """One model of the repository.

    Attributes:
        module: below `backends.triton_server.models`, has its `TritonPythonModel`.
        max_batch_size: above 0, tensors have one more dimension in front.
    """

    name: str
    module: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    decoupled: bool = True
    max_batch_size: int = 0
    parameters: dict[str, str] = field(default_factory=dict)


STRING, BOOL, INT32, INT64, UINT32, UINT64, FP32 = (
    f"TYPE_{name}" for name in ("STRING", "BOOL", "INT32", "INT64", "UINT32", "UINT64", "FP32")
)


def _all(datatype: str, names: str, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, datatype, dims) for name in names.split())


_ENSEMBLE_COMMON = (
    Tensor("text_input", STRING, optional=False),
    Tensor("decoder_text_input", STRING),
    Tensor("max_tokens", INT32, optional=False),
    *_all(STRING, "bad_words stop_words embedding_bias_words", (-1,)),
    *_all(INT32, "end_id pad_id top_k beam_width"),
    *_all(FP32, "top_p temperature length_penalty repetition_penalty presence_penalty frequency_penalty"),
    *_all(FP32, "embedding_bias_weights", (-1,)),
    *_all(BOOL, "return_log_probs return_context_logits return_generation_logits stream"),
)
_ENSEMBLE_TEXT = (
    Tensor("text_output", STRING, (-1,)),
    Tensor("cum_log_probs", FP32, (-1,)),
    Tensor("output_log_probs", FP32, (-1, -1)),
)

ENSEMBLE = Interface(
    name="ensemble",
    module="ensemble",
    max_batch_size=4,
    inputs=(
        *_ENSEMBLE_COMMON,
        *_all(INT32, "num_return_sequences min_tokens"),
        *_all(UINT64, "seed prompt_table_extra_id lora_task_id"),
        *_all(BOOL, "exclude_input_in_output return_perf_metrics return_num_input_tokens return_num_output_tokens"),
        *_all(STRING, "guided_decoding_guide_type guided_decoding_guide"),
    ),
    outputs=(
        *_ENSEMBLE_TEXT,
        *_all(INT32, "batch_index sequence_index num_input_tokens num_output_tokens"),
        *_all(INT32, "kv_cache_alloc_new_blocks kv_cache_reused_blocks kv_cache_alloc_total_blocks"),
        *_all(INT64, "arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns"),
    ),
)

ENSEMBLE_OLD = Interface(
    name="ensemble_old",
    module="ensemble",
    max_batch_size=4,
    # Before version 0.17: other names, no counts, and the input is never part of the output.
    inputs=(*_ENSEMBLE_COMMON, *_all(INT32, "min_length"), *_all(UINT64, "random_seed")),
    outputs=_ENSEMBLE_TEXT,
)

LLMAPI = Interface(
    name="llmapi",
    module="llmapi",
    inputs=(
        Tensor("text_input", STRING, (-1,), optional=False),
        *_all(BOOL, "streaming stop"),
        *_all(INT32, "sampling_param_best_of sampling_param_top_k sampling_param_max_tokens"),
        *_all(FP32, "sampling_param_temperature sampling_param_top_p"),
        *_all(FP32, "sampling_param_frequency_penalty sampling_param_presence_penalty"),
        *_all(STRING, "sampling_param_stop", (-1,)),
        *_all(UINT64, "sampling_param_seed"),
        *_all(BOOL, "sampling_param_exclude_input_from_output sampling_param_return_perf_metrics"),
        *_all(BOOL, "return_finish_reason return_stop_reason return_cumulative_logprob"),
    ),
    outputs=(
        *_all(STRING, "text_output finish_reason stop_reason", (-1,)),
        *_all(FP32, "cumulative_logprob", (-1,)),
    ),
)

VLLM = Interface(
    name="vllm",
    module="vllm",
    inputs=(
        Tensor("text_input", STRING, optional=False),
        *_all(STRING, "sampling_parameters"),
        *_all(BOOL, "stream exclude_input_in_output return_finish_reason return_cumulative_logprob return_logprobs"),
        *_all(BOOL, "return_num_input_tokens return_num_output_tokens"),
    ),
    outputs=(
        *_all(STRING, "text_output finish_reason logprobs", (-1,)),
        *_all(FP32, "cumulative_logprob", (-1,)),
        *_all(UINT32, "num_input_tokens"),
        *_all(UINT32, "num_output_tokens", (-1,)),
    ),
)

INSPECT = Interface(
    name="inspect",
    module="inspection",
    decoupled=False,
    inputs=(Tensor("tag", STRING),),
    outputs=(Tensor("report", STRING),),
)

INTERFACES = {interface.name: interface for interface in (ENSEMBLE, ENSEMBLE_OLD, LLMAPI, VLLM, INSPECT)}

PROGRAMS = tuple(
    replace(ENSEMBLE, name=name, parameters={"answers_as": name})
    for name in ("rules-small", "rules-medium", "rules-large")
)
"""The rule programs of the demonstration's catalogue (`backends.simulator.rules`), each a model of its own."""

MODELS = INTERFACES | {program.name: program for program in PROGRAMS}
"""All that can be put into a repository."""
