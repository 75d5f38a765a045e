"""The Triton server of demos and tests is a real one, and its models do what tests rely on."""

from __future__ import annotations

import itertools
import json
import urllib.request
from typing import Any

from tests.system.triton import TritonService, sim


def generate(server: TritonService, model: str, **inputs: Any) -> list[dict[str, Any]]:
    """The responses of one request over Triton's own HTTP."""
    request = urllib.request.Request(
        f"{server.http_url}/v2/models/{model}/generate_stream", json.dumps(inputs).encode()
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def test_the_ensemble_streams_a_token_a_response(triton_server: TritonService) -> None:
    """Five tokens are five responses that count one each, and `inspect` shows the request as it came."""
    responses = generate(
        triton_server,
        "ensemble",
        text_input=f"Hello{sim(tokens=5, tag='five', itl_ms=1)}",
        max_tokens=10,
        stream=True,
        exclude_input_in_output=True,
        return_num_output_tokens=True,
        return_num_input_tokens=True,
    )
    assert [response["num_output_tokens"] for response in responses] == [1] * 5
    assert [response["num_input_tokens"] for response in responses] == [1] * 5
    record = triton_server.request("ensemble", "five", state="finished")
    assert record["tokens"] == 5
    assert record["inputs"]["max_tokens"] == {"shape": [1, 1], "data": [10]}


def test_every_interface_says_the_same_words(triton_server: TritonService) -> None:
    """One prompt and seed: the same text on each interface, cut at its stop word where the interface does so."""
    prompt = f"Tell me{sim(text='one two END three', itl_ms=1)}"
    old = generate(triton_server, "ensemble_old", text_input=prompt, max_tokens=50, stream=True, stop_words="END")
    assert "".join(response["text_output"] for response in old) == "one two END"
    llmapi = generate(
        triton_server,
        "llmapi",
        text_input=prompt,
        sampling_param_max_tokens=50,
        streaming=True,
        sampling_param_stop="END",
        return_finish_reason=True,
    )
    assert llmapi[-1]["text_output"] == "one two "
    assert llmapi[-1]["finish_reason"] == "stop"
    assert all(now["text_output"].startswith(before["text_output"]) for before, now in itertools.pairwise(llmapi))
    vllm = generate(
        triton_server,
        "vllm",
        text_input=prompt,
        sampling_parameters=json.dumps({"max_tokens": 50, "stop": ["END"]}),
        stream=True,
        return_finish_reason=True,
        return_num_output_tokens=True,
    )
    assert "".join(response["text_output"] for response in vllm) == "one two "
    assert [response["finish_reason"] for response in vllm] == ["None"] * (len(vllm) - 1) + ["stop"]
    drawn = [
        generate(triton_server, "ensemble", text_input="Draw", max_tokens=20, stream=False, seed=7)[0]["text_output"],
        generate(triton_server, "ensemble_old", text_input="Draw", max_tokens=20, random_seed=7)[0]["text_output"],
        generate(triton_server, "llmapi", text_input="Draw", sampling_param_max_tokens=20, sampling_param_seed=7)[0][
            "text_output"
        ],
        generate(
            triton_server,
            "vllm",
            text_input="Draw",
            sampling_parameters=json.dumps({"max_tokens": 20, "seed": 7}),
            exclude_input_in_output=True,
        )[0]["text_output"],
    ]
    assert len(drawn[0].split()) > 5
    assert drawn == [drawn[0]] * 4
