"""Which interface a model speaks, told from its tensors.

Floor: wire (pure).
"""

from __future__ import annotations

from backends.wire.triton.dialect import Dialect, UnknownInterface
from backends.wire.triton.ensemble import EnsembleDialect
from backends.wire.triton.llmapi import PREFIX, LlmApiDialect
from backends.wire.triton.metadata import ModelInfo
from backends.wire.triton.vllm import VllmDialect


def detect(info: ModelInfo) -> Dialect:
    """The interface of a model.

    Raises:
        UnknownInterface: with a sentence for the operator that names what is missing.
    """
    inputs = info.inputs
    if "sampling_parameters" in inputs:
        return VllmDialect(info)
    if "streaming" in inputs and any(name.startswith(PREFIX) for name in inputs):
        return LlmApiDialect(info)
    if "text_input" in inputs and "max_tokens" in inputs:
        return EnsembleDialect(info)
    raise UnknownInterface(f"The model {info.name} {_why_not(info)}")


def _why_not(info: ModelInfo) -> str:
    if "text_input" in info.inputs:
        return (
            "has an input text_input, but neither max_tokens (as TensorRT-LLM's ensemble has), nor streaming and "
            f"{PREFIX}… (as its LLM API has), nor sampling_parameters (as vLLM's backend has)."
        )
    if "input_ids" in info.inputs:
        return (
            "takes token ids, not text: it has no input text_input. Name the model in front of it, which TensorRT-LLM "
            "calls ensemble or tensorrt_llm_bls."
        )
    has = ", ".join(sorted(info.inputs)) or "nothing"
    return f"is no language model that is known here: it has no input text_input; its inputs are {has}."
