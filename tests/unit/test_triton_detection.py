"""Models are told apart by their tensors, and those that can't be used are refused with what is missing."""

from __future__ import annotations

import pytest

from backends.wire.triton import ModelInfo, TensorInfo, UnknownInterface, detect
from tests.unit.triton_models import bls, ensemble, llmapi, model, vllm


@pytest.mark.parametrize(
    ("info", "name"),
    [
        (ensemble(), "trtllm-ensemble"),
        (bls(), "trtllm-ensemble"),
        (llmapi(), "trtllm-llmapi"),
        (vllm(), "vllm"),
    ],
)
def test_each_interface_is_recognised(info: ModelInfo, name: str) -> None:
    """The tensors tell the interface; the model may be called anything."""
    assert detect(info).name == name


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (model("m", {}, {}), ["no input text_input", "nothing"]),
        (model("m", {"image": "FP32"}, {"label": "BYTES"}), ["no input text_input", "image"]),
        (model("m", {"input_ids": "INT32", "input_lengths": "INT32"}, {}), ["token ids", "tensorrt_llm_bls"]),
        (model("m", {"text_input": "BYTES"}, {}), ["max_tokens", "streaming", "sampling_parameters"]),
        (ensemble(without=("text_output",)), ["no output text_output"]),
        (ensemble(without=("stream", "top_k")), ["no input stream", "no input top_k"]),
        (ensemble(decoupled=False), ["not decoupled"]),
        (ensemble(required=("lora_task_id", "end_id")), ["demands the inputs end_id, lora_task_id"]),
        (ensemble(extra={"max_tokens": "FP32"}), ["max_tokens as FP32", "INT32"]),
        (ensemble(extra={"top_p": "BF16"}), ["top_p as BF16", "FP32"]),
        (llmapi(without=("return_finish_reason",)), ["no input return_finish_reason"]),
        (llmapi(decoupled=False), ["not decoupled"]),
        (llmapi(required=("lora_id",), extra={"lora_id": "UINT64"}), ["demands the inputs lora_id"]),
        (vllm(without=("return_finish_reason", "finish_reason")), ["24.10", "no output finish_reason"]),
        (vllm(without=("return_num_output_tokens",)), ["24.10", "no input return_num_output_tokens"]),
    ],
)
def test_a_refusal_names_what_is_missing(info: ModelInfo, words: list[str]) -> None:
    """A model that can't be used is refused with a sentence that says its name and what is missing."""
    with pytest.raises(UnknownInterface) as caught:
        detect(info)
    sentence = str(caught.value)
    assert sentence.startswith(f"The model {info.name} ")
    assert sentence.endswith(".")
    for word in words:
        assert word in sentence


def test_the_order_of_tensors_means_nothing() -> None:
    """The server may list the tensors in any order."""
    info = ensemble()
    turned = ModelInfo(
        info.name, dict(reversed(info.inputs.items())), dict(reversed(info.outputs.items())), True, 4, info.parameters
    )
    assert detect(turned).name == "trtllm-ensemble"


def test_tensors_of_unknown_types_that_we_do_not_use_are_no_hindrance() -> None:
    """An input of a type we don't know is fine as long as it may be left out."""
    info = ensemble()
    more = {**info.inputs, "lora_weights": TensorInfo("lora_weights", "BF16", (-1, -1), optional=True)}
    assert detect(ModelInfo(info.name, more, info.outputs, True, 4)).name == "trtllm-ensemble"
