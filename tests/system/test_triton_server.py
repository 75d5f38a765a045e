"""The Triton server of demos and tests is a real one, and its models do what tests rely on."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from backends.wire.triton.tensors import DataType, pack_bytes, pack_numbers
from gateway.stack import triton_install
from gateway.stack.processes import StackError
from gateway.stack.triton_install import find_installed, install, place_for
from tests.stack import ROOT, alive, until
from tests.system.triton import LANGUAGE_MODELS, StartTriton, TritonService, sim

COUNTED = {"exclude_input_in_output": True, "return_num_input_tokens": True, "return_num_output_tokens": True}


def generate(server: TritonService, model: str, **inputs: Any) -> list[dict[str, Any]]:
    """The responses of one request over Triton's own HTTP."""
    body = json.dumps(inputs).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/models/{model}/generate_stream", body)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:  # the first response was an error
        with error:
            content = error.read()
    # A character that was cut comes back whole when the texts are joined.
    lines = content.decode("utf-8", "surrogateescape").splitlines()
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def ensemble(server: TritonService, prompt: str, **inputs: Any) -> list[dict[str, Any]]:
    """The responses of the ensemble to one streamed request."""
    return generate(server, "ensemble", **{"text_input": prompt, "max_tokens": 64, "stream": True, **COUNTED, **inputs})


def text_of(responses: list[dict[str, Any]]) -> str:
    joined = "".join(response["text_output"] for response in responses)
    return joined.encode("utf-8", "surrogateescape").decode()


def stream_request(prompt: str) -> service_pb2.ModelInferRequest:
    """A streamed request to the ensemble, as its protocol has it."""
    request = service_pb2.ModelInferRequest(model_name="ensemble")
    for name, datatype, raw in (
        ("text_input", "BYTES", pack_bytes([prompt.encode()])),
        ("max_tokens", "INT32", pack_numbers(DataType.INT32, [1000])),
        ("stream", "BOOL", pack_numbers(DataType.BOOL, [True])),
    ):
        request.inputs.add(name=name, datatype=datatype, shape=[1, 1])
        request.raw_input_contents.append(raw)
    return request


def test_the_ensemble_streams_a_token_a_response(triton_server: TritonService) -> None:
    """Five tokens are five responses that count one each, and `inspect` shows the request as it came."""
    responses = ensemble(triton_server, f"Hello{sim(tokens=5, tag='five', itl_ms=1)}", max_tokens=10)
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


def test_an_answer_is_steered_from_its_prompt(triton_server: TritonService) -> None:
    """Bursts, cuts inside of characters, an end apart from the last token; a wrong option is an error that says so."""
    burst = ensemble(triton_server, f"Say{sim(tokens=5, burst=2, itl_ms=1)}")
    assert [response["num_output_tokens"] for response in burst] == [2, 2, 1]
    words = "Grüße, 春の海 😀!"
    cut = ensemble(triton_server, f"Say{sim(text=words, split_utf8=True, itl_ms=1, tag='split')}")
    assert text_of(cut) == words
    assert any(not response["text_output"].isprintable() for response in cut)
    assert triton_server.request("ensemble", "split", state="finished")["tokens"] == len(cut)
    whole = ensemble(triton_server, f"Say{sim(text=words, itl_ms=1)}", stream=False)
    assert [response["text_output"] for response in whole] == [words]
    (error,) = ensemble(triton_server, f"Say{sim(wrong=1)}")
    assert "`sim.wrong` is not known" in error["error"]


def test_limits_and_choices_are_honoured(triton_server: TritonService) -> None:
    """No more tokens than asked for; each of several choices is a sequence of its own, with its own words."""
    (whole,) = generate(triton_server, "ensemble", text_input="Count", max_tokens=7, **COUNTED)
    assert whole["num_output_tokens"] == 7
    responses = ensemble(triton_server, f"Count{sim(itl_ms=1)}", max_tokens=6, num_return_sequences=2)
    texts = [text_of([r for r in responses if r["sequence_index"] == choice]) for choice in range(2)]
    assert texts[0] != texts[1]
    assert sum(response["num_output_tokens"] for response in responses) == 12
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    guided = ensemble(
        triton_server,
        f"Count{sim(itl_ms=1)}",
        guided_decoding_guide_type="json_schema",
        guided_decoding_guide=schema,
    )
    assert isinstance(json.loads(text_of(guided))["n"], int)


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_an_engine_that_fails_says_so_in_band(triton_server: TritonService, model: str) -> None:
    """An error in the middle comes after the tokens before it, with the text that was ordered."""
    options = sim(fail="error_mid_stream", after_tokens=2, tokens=9, message="out of luck", itl_ms=1)
    flag = "streaming" if model == "llmapi" else "stream"
    limit = {"max_tokens": 20} if model.startswith("ensemble") else {}
    *before, last = generate(triton_server, model, text_input=f"Fail{options}", **{flag: True}, **limit)
    assert len(before) == 2
    assert "out of luck" in last["error"]


async def test_a_cancelled_request_ends_inside_the_model(triton_server: TritonService) -> None:
    """Cancelling the call reaches the model: its stream ends early, is counted as cancelled, and none is active."""
    async with grpc.aio.insecure_channel(triton_server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter([stream_request(f"Go on{sim(tokens=1000, itl_ms=20, tag='gone')}")]))
        first = await call.read()
        assert not first.error_message
        call.cancel()
    record = triton_server.request("ensemble", "gone", state="cancelled")
    assert 0 < record["tokens"] < 1000
    triton_server.wait_quiet()


def test_more_than_a_model_takes_waits_and_is_refused(start_triton: StartTriton) -> None:
    """One runs, one waits, a third is refused; the load metrics show it under TensorRT-LLM's names."""
    server = start_triton(
        models=("ensemble", "inspect"), parameters={"ensemble": {"max_active": "1", "max_waiting": "1"}}
    )

    async def ask(tokens: int) -> list[dict[str, Any]]:
        return await asyncio.to_thread(ensemble, server, f"Wait{sim(tokens=tokens, itl_ms=20)}", max_tokens=200)

    async def crowd() -> None:
        first, second = asyncio.create_task(ask(100)), asyncio.create_task(ask(5))
        await until(lambda: 'request_type="waiting",version="1"} 1' in page(server))
        assert 'nv_trt_llm_request_metrics{model="ensemble",request_type="active",version="1"} 1' in page(server)
        (refused,) = await ask(5)
        assert "maximum queue size" in refused["error"]
        assert len(await first) == 100
        assert len(await second) == 5

    asyncio.run(crowd())


def page(server: TritonService) -> str:
    with urllib.request.urlopen(server.metrics_url, timeout=30) as answer:
        return str(answer.read().decode())


async def test_a_dead_stub_hangs_its_streams_and_is_loaded_again(start_triton: StartTriton) -> None:
    """A killed model process leaves its stream without an end and the model 'ready'; the stack loads it again."""
    server = start_triton(models=("ensemble", "inspect"))
    pid = server.stub_pid("ensemble")
    async with grpc.aio.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = stream_request(f"Die{sim(fail='die_mid_stream', after_tokens=1, tokens=9)}")
        call = stub.ModelStreamInfer(iter([request]), timeout=3)
        # On a busy machine the server may notice in time and say so; what it never does is to give the answer.
        tokens, ends = 0, {grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED}
        with contextlib.suppress(grpc.aio.AioRpcError):
            while (response := await call.read()) is not grpc.aio.EOF:
                tokens += not response.error_message
        assert await call.code() in ends
        assert tokens < 9
    assert server.inspect_all() == {}
    with urllib.request.urlopen(f"{server.http_url}/v2/models/ensemble/ready", timeout=30) as answer:
        assert answer.status == 200
    healing = asyncio.create_task(server.server.keep_models())
    await until(lambda: server.inspect_all().get("ensemble", {}).get("pid", pid) != pid)
    await until(lambda: len(ensemble(server, f"Again{sim(tokens=3, itl_ms=1)}")) == 3)
    healing.cancel()


def test_a_killed_server_starts_again_on_its_ports(start_triton: StartTriton) -> None:
    """kill -9: no process and no shared memory is left, and the next start is reached at the same address."""
    server = start_triton(models=("ensemble", "inspect"))
    address, stub = server.grpc_url, server.stub_pid("ensemble")
    server.kill()
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        server.inspect("ensemble")
    server.restart()
    assert server.grpc_url == address
    assert not alive(stub)
    assert len(ensemble(server, f"Again{sim(tokens=3, itl_ms=1)}")) == 3
    prefix = server.server.region_prefix
    assert list(Path("/dev/shm").glob(f"{prefix}*"))
    server.stop()
    assert not server.running
    assert list(Path("/dev/shm").glob(f"{prefix}*")) == []


async def test_what_is_installed_is_found_without_a_network(
    triton_server: TritonService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second installation does nothing at all; a changed lock, or another place, is not taken for installed."""
    del triton_server
    place = place_for(ROOT / ".data")
    monkeypatch.setattr(triton_install, "_install", None)
    assert await install(place) == find_installed(place)
    assert find_installed(place.parent) is None
    monkeypatch.setattr(triton_install, "LOCK_FILE", ROOT / "requirements.lock")
    assert find_installed(place) is None


async def test_an_installation_that_cannot_be_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fitting machine, no time, no package: each ends with a sentence, and nothing half-made is found."""
    if (reason := triton_install.why_not_here()) is not None:
        pytest.skip(reason)
    lock = tmp_path / "requirements-triton.lock"
    lock.write_text("no-such-package-for-pareta==1.0 --hash=sha256:" + "0" * 64 + "\n")
    monkeypatch.setattr(triton_install, "LOCK_FILE", lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(StackError, match=r"could not be installed: .*no-such-package"):
        await install(tmp_path / "place")
    with pytest.raises(StackError, match=r"within 0\.01 s"):
        await install(tmp_path / "place", timeout_s=0.01)
    assert find_installed(tmp_path / "place") is None
    monkeypatch.setattr(triton_install.platform, "machine", lambda: "riscv64")
    with pytest.raises(StackError, match="built for Linux on x86_64"):
        await install(tmp_path / "place")
