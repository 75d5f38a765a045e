"""Deploys whose model a real Triton server loads and unloads."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backends.triton_control import TritonControl
from gateway.control.database import session
from gateway.control.deploys import store
from gateway.stack.demo_model import write_demo_model
from tests.seed.conftest import catalog
from tests.seed.test_deploy import raw_deploy
from tests.system.harness import Gateway
from tests.system.triton import StartTriton

__all__ = ["catalog"]

TASK, MODEL = "invoice-extraction", "orgb/Thicket-VL-14B"


@pytest.mark.usefixtures("catalog")
async def test_a_model_is_loaded_for_a_deploy_and_unloaded_after_it(
    gateway: Gateway, start_triton: StartTriton, tmp_path: Path
) -> None:
    """Not loaded, deployed, live and answering; stopped, and a while later not loaded any more; two share one load."""
    service = start_triton(models=("ensemble",))
    folder = tmp_path / "model"
    write_demo_model(folder)
    async with TritonControl(service.grpc_url) as control:
        await control.unload("ensemble", timeout_s=20)
        async with session(gateway.settings.database_url) as conn:
            spec = {"url": service.url("ensemble"), "model": "ensemble", "options": {"model_folder": str(folder)}}
            await store.register(conn, MODEL, "triton", spec, max_output_tokens=512)
        owner = await gateway.tenant()
        made = []
        for _ in range(2):
            status, events, _ = await raw_deploy(gateway, owner.key, task=TASK)
            assert (status, events[-1][0]) == (200, "complete"), events
            made.append(events[-1][1]["endpoint"]["id"])
        for endpoint_id in made:
            answer = await gateway.chat(owner, model=endpoint_id, max_tokens=5)
            assert answer.status == 200, answer.raw
            assert answer.text
        assert (await gateway.post(f"/v1/endpoints/{made[0]}/stop", owner.key, None)).status == 200
        await asyncio.sleep(gateway.settings.engine_linger_s + 2)
        assert await control.is_ready("ensemble"), "the other endpoint still wants it"
        assert (await gateway.post(f"/v1/endpoints/{made[1]}/stop", owner.key, None)).status == 200
        async with asyncio.timeout(30):
            while await control.is_ready("ensemble"):
                await asyncio.sleep(0.1)
        # Started again, it is loaded again.
        assert (await gateway.post(f"/v1/endpoints/{made[0]}/start", owner.key, None)).status == 202
        async with asyncio.timeout(60):
            while (await gateway.chat(owner, model=made[0], max_tokens=5)).status != 200:
                await asyncio.sleep(0.1)
        assert (await gateway.send("DELETE", f"/v1/endpoints/{made[0]}", owner.key)).status == 204
