"""Control of a real Triton server's models."""

from __future__ import annotations

import asyncio

import pytest

from backends.load import MetricsPage
from backends.triton_control import ModelNotLoaded, ModelState, TritonControl
from backends.wire.failure import BackendFailure, FailureCode
from tests.integration.triton_tools import ask, backend_at, begun, request
from tests.system.triton import StartTriton, sim

LOAD_S = 60.0


async def test_a_model_is_unloaded_and_loaded(start_triton: StartTriton) -> None:
    """The index follows; a request meanwhile fails so that another replica is asked, and works again afterwards."""
    server = start_triton(models=["ensemble", "vllm"])
    async with TritonControl(server.grpc_url) as control, backend_at(server.url("vllm")) as backend:
        assert (await ask(backend, request("x"))).failure is None
        assert {m.name: m.state for m in await control.index()} == {
            "ensemble": ModelState.READY,
            "vllm": ModelState.READY,
        }
        await control.unload("vllm", timeout_s=LOAD_S)
        assert not await control.is_ready("vllm")
        assert await control.is_ready("ensemble")
        assert {m.name: m.state for m in await control.index()}["vllm"] is ModelState.UNAVAILABLE
        assert not await backend.probe(5)
        with pytest.raises(BackendFailure):
            await backend.open(request("x"), None)  # type: ignore[arg-type]
        await control.load("vllm", timeout_s=LOAD_S)
        await control.wait_ready("vllm", timeout_s=LOAD_S)
        assert await backend.probe(5)
        assert (await ask(backend, request("x"))).failure is None


async def test_a_reload_under_traffic_loses_no_stream(start_triton: StartTriton) -> None:
    """A stream that runs while its model is loaded anew, with another configuration, is told to its end."""
    server = start_triton(models=["ensemble"])
    async with TritonControl(server.grpc_url) as control, backend_at(server.url("ensemble")) as backend:
        told, _ = await begun(backend, request(f"x{sim(tokens=60, itl_ms=50)}"))
        config = await control.config("ensemble")
        config.setdefault("parameters", {})["marked"] = {"string_value": "anew"}
        await control.load("ensemble", config=config, timeout_s=LOAD_S)
        assert (await control.config("ensemble"))["parameters"]["marked"]["string_value"] == "anew"
        await told.end()
        assert told.failure is None
        assert (await ask(backend, request("x"))).failure is None


async def test_a_model_with_other_tensors_is_learned_anew(start_triton: StartTriton) -> None:
    """After a reload with another set of inputs the backend asks what the model is now, by itself."""
    server = start_triton(models=["ensemble"])
    async with TritonControl(server.grpc_url) as control, backend_at(server.url("ensemble")) as backend:
        assert (await ask(backend, request("x", seed=1))).failure is None
        config = await control.config("ensemble")
        config["input"] = [tensor for tensor in config["input"] if tensor["name"] != "seed"]
        await control.load("ensemble", config=config, timeout_s=LOAD_S)
        told = await ask(backend, request("x", seed=1))
        assert told.failure is not None
        assert told.failure.code is FailureCode.MISCONFIGURED
        assert (await ask(backend, request("x"))).failure is None


async def test_a_load_that_fails_says_why_and_changes_nothing(start_triton: StartTriton) -> None:
    """A wrong configuration is refused with the server's words, and the old model goes on serving."""
    server = start_triton(models=["ensemble"])
    async with TritonControl(server.grpc_url) as control, backend_at(server.url("ensemble")) as backend:
        config = await control.config("ensemble")
        config["backend"] = "nothing_of_the_kind"
        with pytest.raises(ModelNotLoaded, match="nothing_of_the_kind"):
            await control.load("ensemble", config=config, timeout_s=LOAD_S)
        with pytest.raises(ModelNotLoaded):
            await control.load("absent", timeout_s=LOAD_S)
        with pytest.raises(ModelNotLoaded, match="not ready after"):
            await control.wait_ready("absent", timeout_s=0.3)
        assert (await ask(backend, request("x"))).failure is None


async def test_statistics_and_load_are_read(start_triton: StartTriton) -> None:
    """What the server counts is read, and its queue is seen while requests wait in it."""
    server = start_triton(models=["ensemble"])
    page = MetricsPage(server.metrics_url, model="ensemble")
    async with (
        TritonControl(server.grpc_url, load=page) as control,
        backend_at(server.url("ensemble")) as backend,
    ):
        before = await control.statistics("ensemble")
        for _ in range(3):
            assert (await ask(backend, request("x"))).failure is None
        async with asyncio.timeout(30):
            while (await control.statistics("ensemble")).requests < before.requests + 3:
                await asyncio.sleep(0.1)
        load = await control.read_load()
        assert load is not None
        assert load.waiting == 0


async def test_nobody_there_is_said_so() -> None:
    """A server that can't be reached is a failure of its own kind, no statement on a model."""
    async with TritonControl("127.0.0.1:1") as control:
        with pytest.raises(BackendFailure) as caught:
            await control.index()
        assert caught.value.code is FailureCode.UNREACHABLE
        with pytest.raises(BackendFailure):
            await control.load("x", timeout_s=2)
        assert not await control.is_ready("x")
