"""The Triton backend against a real Triton server, with models of every interface."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from backends.triton_backend import TritonBackend
from backends.triton_control import TritonControl
from backends.triton_limits import TritonLimits
from backends.wire.allowance import WAIT
from backends.wire.failure import BackendFailure, FailureCode, Phase, Unsupported
from backends.wire.request import Kind
from backends.wire.usage import TokenUsage
from tests.integration.triton_tools import Told, all_ended, ask, backend_at, begun, request
from tests.models.folders import write_model_folder
from tests.models.formats import FORMATS
from tests.system.triton import LANGUAGE_MODELS, StartTriton, TritonService, sim

INTERFACES = pytest.mark.parametrize("model", LANGUAGE_MODELS)


@INTERFACES
@pytest.mark.parametrize("stream", [True, False])
async def test_the_text_comes_whole(triton_server: TritonService, model: str, stream: bool) -> None:
    """What the model says reaches the sink unchanged, on every interface, streamed and whole."""
    async with backend_at(triton_server.url(model)) as backend:
        told = await ask(backend, request(f"x{sim(text='Grüße aus Zürich, 東京!', split_utf8=True)}", stream=stream))
    assert told.failure is None
    assert told.text.strip() == "Grüße aus Zürich, 東京!"
    assert told.finish_reason == "stop"
    assert told.is_accepted


@INTERFACES
async def test_max_tokens_is_length(triton_server: TritonService, model: str) -> None:
    """An answer that reaches its bound ends with ``length`` and has exactly so many tokens."""
    async with backend_at(triton_server.url(model)) as backend:
        told = await ask(backend, request(f"x{sim(tokens=50, itl_ms=1)}", max_tokens=7))
    assert told.finish_reason == "length"
    assert told.observed is not None
    assert told.observed.content_deltas == 7
    if told.observed.usage is not None:  # without a tokenizer two of the interfaces leave the prompt unknown
        assert told.observed.usage.completion == 7


@INTERFACES
async def test_a_cancel_reaches_the_model(triton_server: TritonService, model: str) -> None:
    """After a cancel the model stops, and the sink hears nothing more."""
    async with backend_at(triton_server.url(model)) as backend:
        told, call = await begun(backend, request(f"x{sim(tokens=4000, itl_ms=20, tag=f'c-{model}')}", max_tokens=4000))
        call.cancel()
        size = len(told.data)
        await asyncio.to_thread(triton_server.request, model, f"c-{model}", state="cancelled")
    assert len(told.data) == size
    assert not told.over.is_set()


@INTERFACES
@pytest.mark.parametrize("stream", [True, False])
async def test_a_stop_text_ends_the_work(triton_server: TritonService, model: str, stream: bool) -> None:
    """What follows a stop text is never seen, even where the model takes no notice of it."""
    prompt = f"x{sim(text='one two END three four', itl_ms=1)}"
    async with backend_at(triton_server.url(model)) as backend:
        told = await ask(backend, request(prompt, stop=["END"], stream=stream))
    assert told.text.strip() == "one two"
    assert told.finish_reason == "stop"


async def test_a_stop_text_that_the_model_ignores_ends_it(triton_server: TritonService) -> None:
    """A model that goes on after a stop text is told to stop."""
    prompt = f"x{sim(text='a bEND' + ' word' * 500, itl_ms=20, tag='goes-on')}"
    async with backend_at(triton_server.url("ensemble")) as backend:
        # The model looks for whole words of its own; this one hides inside a token.
        told = await ask(backend, request(prompt, stop=["END"], max_tokens=1000))
        assert told.text.strip() == "a b"
        record = await asyncio.to_thread(triton_server.request, "ensemble", "goes-on")
    assert record["state"] in ("cancelled", "finished")
    assert record["tokens"] < 500


@INTERFACES
@pytest.mark.parametrize(
    ("fail", "message", "code"),
    [
        ("error_before", "Prompt length (9000) exceeds maximum input length (8192).", FailureCode.CONTEXT_LENGTH),
        ("error_before", "Exceeds maximum queue size", FailureCode.OVERLOADED),
        ("error_before", "Traceback (most recent call last): secret words", FailureCode.BROKEN),
        ("error_mid_stream", "Something odd", FailureCode.BROKEN),
    ],
)
async def test_an_in_band_error_is_a_failure(
    triton_server: TritonService, model: str, fail: str, message: str, code: FailureCode
) -> None:
    """The model's error is told by its kind and by where it came, never by its words."""
    async with backend_at(triton_server.url(model)) as backend:
        told = await ask(backend, request(f"x{sim(tokens=9, fail=fail, message=message, itl_ms=1)}"))
    assert told.failure is not None
    assert told.failure.code is code
    assert told.failure.phase is (Phase.HEAD if fail == "error_before" else Phase.BODY)
    assert message not in str(told.failure)


@INTERFACES
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fail", "phase"), [("hang", Phase.HEAD), ("hang_mid_stream", Phase.BODY)])
async def test_silence_is_a_timeout(
    triton_server: TritonService, model: str, fail: str, phase: Phase, stream: bool
) -> None:
    """A model that falls silent counts as dead, before its first response and after it, streamed and whole."""
    tag = f"{fail}-{model}-{stream}"
    async with backend_at(triton_server.url(model), idle_s=0.5) as backend:
        told = await ask(backend, request(f"x{sim(tokens=9, fail=fail, tag=tag)}", stream=stream))
        assert told.failure is not None
        assert (told.failure.code, told.failure.phase) == (FailureCode.TIMEOUT, phase)
        await asyncio.to_thread(triton_server.request, model, tag, state="cancelled")


@INTERFACES
@pytest.mark.parametrize("fail", ["no_answer", "no_text", "end_mid_stream"])
async def test_a_model_that_breaks_its_word_is_a_failure_or_an_end(
    triton_server: TritonService, model: str, fail: str
) -> None:
    """A stream without an answer is no answer; one that ends in the middle ends where the interface knows no better."""
    async with backend_at(triton_server.url(model)) as backend:
        told = await ask(backend, request(f"x{sim(tokens=9, fail=fail, itl_ms=1)}"))
    if fail == "end_mid_stream" and model.startswith("ensemble"):
        assert told.finish_reason == "stop"
    else:
        assert told.failure is not None
        assert told.failure.code is FailureCode.PROTOCOL


async def test_an_answer_waits_for_its_allowance(triton_server: TritonService) -> None:
    """Nothing is pushed while more must not be handed out; after that all of it comes, in order."""
    async with backend_at(triton_server.url("ensemble")) as backend:
        whole = await ask(backend, request(f"x{sim(tokens=9, itl_ms=1, seed=3)}"))
        told = Told(allowances=[2, WAIT, 3, WAIT])
        call = await backend.open(request(f"x{sim(tokens=9, itl_ms=1, seed=3)}"), told)
        for _ in range(2):
            async with asyncio.timeout(30):
                while told.allowances and len(told.allowances) % 2:
                    await asyncio.sleep(0.01)
            size = len(told.data)
            await asyncio.sleep(0.2)
            assert len(told.data) == size
            assert not told.over.is_set()
            call.go_on()
        await told.end()
    assert told.text == whole.text
    assert told.observed == whole.observed


async def test_a_cut_ends_the_stream_properly(triton_server: TritonService) -> None:
    """A stream that is cut says ``length``, and the model stops."""
    async with backend_at(triton_server.url("ensemble")) as backend:
        told, call = await begun(backend, request(f"x{sim(tokens=4000, itl_ms=20, tag='cut')}", max_tokens=4000))
        call.cut(TokenUsage(1, 1))
        assert told.over.is_set()
        assert told.finish_reason == "length"
        await asyncio.to_thread(triton_server.request, "ensemble", "cut", state="cancelled")


async def test_a_paused_stream_is_not_read(triton_server: TritonService) -> None:
    """While the client does not read nothing is pushed, and the silence is no fault; then the rest comes."""
    async with backend_at(triton_server.url("vllm"), idle_s=0.5) as backend:
        told, call = await begun(backend, request(f"x{sim(tokens=40, itl_ms=5)}", max_tokens=40))
        call.pause()
        await asyncio.sleep(0.1)
        size = len(told.data)
        await asyncio.sleep(1.0)
        assert len(told.data) == size
        assert not told.over.is_set()
        call.resume()
        await told.end()
    assert told.observed is not None
    assert told.observed.usage is not None
    assert told.observed.usage.completion == 40


async def test_what_the_model_has_no_place_for_is_refused(triton_server: TritonService) -> None:
    """A field that can't be honoured is named, and the model is not asked."""
    async with backend_at(triton_server.url("llmapi")) as backend:
        with pytest.raises(Unsupported) as caught:
            await backend.open(request(f"x{sim(tag='refused')}", min_p=0.5), Told())
        assert caught.value.param == "min_p"
        assert triton_server.inspect("llmapi", "refused")["requests"] == []


async def test_a_model_that_is_no_language_model_is_refused(
    triton_server: TritonService, caplog: pytest.LogCaptureFixture
) -> None:
    """The operator reads once why; the request is not the caller's fault."""
    async with backend_at(triton_server.url("inspect")) as backend:
        for _ in range(2):
            with pytest.raises(BackendFailure) as caught:
                await backend.open(request("x"), Told())
            assert caught.value.code is FailureCode.MISCONFIGURED
    assert len([r for r in caplog.records if "no language model" in r.getMessage()]) == 1


async def test_an_unknown_model_is_misconfigured(triton_server: TritonService) -> None:
    """A model that the server does not have is the operator's matter."""
    async with backend_at(triton_server.url("nothing")) as backend:
        with pytest.raises(BackendFailure) as caught:
            await backend.open(request("x"), Told())
        assert caught.value.code in (FailureCode.MISCONFIGURED, FailureCode.UNREACHABLE)
        assert not await backend.probe(5)


async def test_nobody_there_is_unreachable() -> None:
    """A port where nobody listens fails in the phase in which another replica may be asked."""
    async with backend_at("triton://127.0.0.1:1/model", connect_timeout_s=1) as backend:
        with pytest.raises(BackendFailure) as caught:
            await backend.open(request("x"), Told())
        assert (caught.value.code, caught.value.phase) == (FailureCode.UNREACHABLE, Phase.CONNECT)
        assert not await backend.probe(1)


async def test_close_lets_running_answers_end(triton_server: TritonService) -> None:
    """A backend that was taken out of service finishes what it has begun, and takes nothing new."""
    async with backend_at(triton_server.url("ensemble")) as backend:
        told, _ = await begun(backend, request(f"x{sim(tokens=20, itl_ms=20)}"))
        await backend.close()
        assert not told.over.is_set()
        await told.end()
        assert told.failure is None
        with pytest.raises(BackendFailure):
            await backend.open(request("x"), Told())


async def test_a_dead_stub_is_found_out(start_triton: StartTriton) -> None:
    """A killed model process is still called ready; after a silence the probe asks it for a word, and is answered by
    nobody, until the model is back."""
    server = start_triton(models=["ensemble"])
    async with backend_at(server.url("ensemble"), idle_s=1.0) as backend:
        told = await ask(backend, request(f"x{sim(tokens=9, fail='die_mid_stream', itl_ms=1)}"))
        assert told.failure is not None
        assert told.failure.code in (FailureCode.TIMEOUT, FailureCode.BROKEN)
        server.restart()
        async with asyncio.timeout(60):
            while not await backend.probe(2.0):
                await asyncio.sleep(0.2)
        assert (await ask(backend, request("x"))).failure is None


async def test_the_probe_believes_no_readiness_after_a_silence(start_triton: StartTriton) -> None:
    """A model that was silent for too long has to say a word before it counts as well, whatever its server says."""
    server = start_triton(models=["ensemble", "inspect"])
    async with TritonControl(server.grpc_url) as control, backend_at(server.url("ensemble"), idle_s=1.0) as backend:
        assert (await ask(backend, request("x"))).failure is None
        assert await backend.probe(2.0)
        server.kill_stub("ensemble")
        assert await backend.probe(2.0)
        async with asyncio.timeout(30):
            while True:
                told = await ask(backend, request("x"))
                assert told.failure is not None
                if told.failure.code is FailureCode.TIMEOUT:
                    break
                # The server may notice the death of the very request that it was about to hand over.
                assert told.failure.code is FailureCode.BROKEN
        assert await control.is_ready("ensemble")
        assert not await backend.probe(1.0)
        await control.load("ensemble", timeout_s=60)
        async with asyncio.timeout(30):
            while not await backend.probe(2.0):
                await asyncio.sleep(0.1)
        assert (await ask(backend, request("x"))).failure is None


async def test_a_killed_server_breaks_its_streams_and_comes_back(start_triton: StartTriton) -> None:
    """A stream of a server that is killed fails at once; after a restart the same backend works again."""
    server = start_triton(models=["ensemble"])
    async with backend_at(server.url("ensemble")) as backend:
        told, _ = await begun(backend, request(f"x{sim(tokens=4000, itl_ms=20)}", max_tokens=4000))
        server.kill()
        await told.end()
        assert told.failure is not None
        assert (told.failure.code, told.failure.phase) == (FailureCode.BROKEN, Phase.BODY)
        assert not await backend.probe(2.0)
        server.restart()
        async with asyncio.timeout(60):
            while not await backend.probe(2.0):
                await asyncio.sleep(0.2)
        assert (await ask(backend, request("x"))).failure is None


@pytest.mark.parametrize("name", FORMATS)
async def test_a_prompt_begins_once(triton_server: TritonService, tmp_path: Path, name: str) -> None:
    """What the server's tokenizer puts before every text is not sent, so that the model reads it once."""
    write_model_folder(tmp_path / name, name)
    folders = (str(tmp_path / name),)
    url, tag = triton_server.url("vllm"), f"begin-{name}"
    backend = TritonBackend(url, model="m", context_tokens=4096, folders=folders, limits=TritonLimits())
    asked = replace(
        request("-"),
        kind=Kind.CHAT,
        body={"messages": [{"role": "user", "content": f"Hi {sim(tag=tag, tokens=2)}"}], "max_tokens": 5},
    )
    try:
        told = await ask(backend, asked)
    finally:
        await backend.close()
        await all_ended(backend)
    assert told.failure is None
    record = await asyncio.to_thread(triton_server.request, "vllm", tag)
    [prompt] = record["inputs"]["text_input"]["data"]
    assert "Hi " in prompt
    assert not FORMATS[name].bos or not prompt.startswith(FORMATS[name].bos)
