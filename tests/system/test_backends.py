"""Behind the gateway: replicas that die and come back, clients that leave, clients that do not read."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import pytest

from backends.simulator import process as simulator_process
from tests.system.harness import Gateway, Tenant, chat_body, simulator_flags
from tests.system.wire import ask, connected, request_bytes

CHAT = "/v1/chat/completions"


async def test_requests_spread_over_the_replicas(gateway: Gateway, tenant: Tenant) -> None:
    """Both replicas get work."""
    tag = uuid4().hex
    answers = await asyncio.gather(*(gateway.chat(tenant, tag=tag, sim={"ttft_ms": 100}) for _ in range(20)))
    assert {answer.status for answer in answers} == {200}
    replicas = [len((await gateway.sim(n, "GET", "/sim/requests?limit=5000"))["requests"]) for n in range(2)]
    assert len(await gateway.sim_records(tag=tag)) == 20
    assert min(replicas) > 0


@pytest.mark.parametrize("fault", ["refuse", "close_before_head", "reset_before_head", "500", "503", "429", "html"])
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_takes_over_before_the_first_byte(gateway: Gateway, fault: str, stream: bool) -> None:
    """A replica that fails before its answer began costs the client nothing but a moment, and one charge."""
    tenant = await gateway.tenant(flat_nanos=3_000)
    await gateway.sim(0, "POST", "/sim/faults", [{"fail": fault}])
    answers = [await gateway.chat(tenant, stream=stream, max_tokens=3) for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 6
    assert all(answer.text for answer in answers)
    await gateway.wait_quiet()
    assert (await gateway.account(tenant.org_id)).spent_nanos == 6 * 3_000


async def test_a_kept_connection_that_the_engine_closed_is_no_failure(gateway: Gateway) -> None:
    """The engine closes a kept connection just as we write to it: the request goes out again on a fresh one."""
    tenant = await gateway.tenant(simulators=gateway.simulators[:1])
    await gateway.sim(0, "POST", "/sim/faults", [{"fail": "close_when_reused"}])
    answers = [await gateway.chat(tenant, max_tokens=2) for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 8


async def test_all_replicas_down_and_back(gateway: Gateway) -> None:
    """Nobody left: 503 with Retry-After, quickly and uncharged; when a replica is back, so is the endpoint."""
    own = simulator_process.start(*simulator_flags(7))
    port = own.port
    try:
        tenant = await gateway.tenant(simulators=[own])
        assert (await gateway.chat(tenant)).status == 200
        own.stop()
        for _ in range(5):
            answer = await gateway.chat(tenant)
            assert (answer.status, answer.code) == (503, "endpoint_not_ready")
            assert 1 <= int(answer.headers["retry-after"]) <= 30
        own = simulator_process.start(*simulator_flags(7), port=port)
        async with asyncio.timeout(10):
            good = 0
            while good < 8:  # on both workers
                good = good + 1 if (await gateway.chat(tenant, max_tokens=2)).status == 200 else 0
                await asyncio.sleep(0.02)
    finally:
        own.stop()


async def test_an_engine_killed_mid_stream(gateway: Gateway) -> None:
    """kill -9 of the engine: every running stream ends with the error chunk, none is charged."""
    own = simulator_process.start(*simulator_flags(8))
    try:
        tenant = await gateway.tenant(simulators=[own])
        sim = {"tokens": 2000, "itl_ms": 20}
        streams = [asyncio.create_task(gateway.chat(tenant, stream=True, sim=sim)) for _ in range(10)]
        await asyncio.sleep(0.6)
        own.process.kill()
        for answer in await asyncio.gather(*streams):
            assert answer.status == 200
            assert answer.chunks[-1]["error"]["code"] == "backend_error"
            assert answer.ended in ("eof", "reset")
        await gateway.wait_quiet()
        account = await gateway.account(tenant.org_id)
        assert (account.spent_nanos, account.held_nanos) == (0, 0)
    finally:
        own.stop()


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_work(gateway: Gateway, tenant: Tenant, stream: bool, path: str) -> None:
    """The engine stops at once, whether the answer was streamed or not."""
    tag = uuid4().hex
    sim = {"tokens": 3000, "itl_ms": 20}
    body: dict[str, Any] = chat_body(tenant, stream=stream, tag=tag, sim=sim, max_tokens=3500)
    if path == "/v1/completions":
        del body["messages"]
        body["prompt"] = "Once"
    async with connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", path, key=tenant.key, body=body))
        if stream:
            await reader.readuntil(b"data: ")
        await gateway.sim_record(tag=tag, state="running")
        await asyncio.sleep(0.2)
        left_s = time.time()
    record = await gateway.sim_record(tag=tag, state="cancelled")
    assert record["disconnected"]
    assert record["disconnected_s"] - left_s < 1.0
    assert record["completion_tokens"] < 200


async def test_a_client_that_closes_politely_is_gone_too(gateway: Gateway, tenant: Tenant) -> None:
    """A FIN in the middle of a stream ends the work as a reset does."""
    tag = uuid4().hex
    body = chat_body(tenant, stream=True, tag=tag, sim={"tokens": 3000, "itl_ms": 20})
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.settings.port)
    writer.write(request_bytes("POST", CHAT, key=tenant.key, body=body))
    await reader.readuntil(b"data: ")
    writer.close()
    await writer.wait_closed()
    await gateway.sim_record(tag=tag, state="cancelled")


async def test_a_client_that_leaves_before_the_first_token_pays_nothing(gateway: Gateway, tenant: Tenant) -> None:
    """Nothing was delivered: cancelled, and free."""
    tag = uuid4().hex
    body = chat_body(tenant, stream=True, tag=tag, sim={"ttft_ms": 20_000})
    async with connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", CHAT, key=tenant.key, body=body))
        head = await reader.readuntil(b"\r\n\r\n")
        await gateway.sim_record(tag=tag)
    await gateway.sim_record(tag=tag, state="cancelled")
    request_id = next(line[14:] for line in head.decode().split("\r\n") if line.startswith("x-request-id: "))
    receipt = await gateway.receipt(request_id)
    assert (receipt.charged_nanos, receipt.outcome) == (0, "abandoned")


async def test_a_reader_that_does_not_read_pauses_the_engine(gateway: Gateway) -> None:
    """A client stalls in front of megabytes: memory stays flat, the engine is held back, then all arrives."""
    tenant = await gateway.tenant(context_tokens=1_000_000, max_output_tokens=900_000, credit_nanos=10**13)
    engine = simulator_process.start(*simulator_flags(9), "--context", "2000000")
    try:
        endpoint_id, _ = await gateway.endpoint(
            tenant.org_id, simulators=[engine], context_tokens=1_000_000, max_output_tokens=900_000
        )
        await gateway.wait_visible(endpoint_id, tenant.key)
        tokens = 60_000  # each is a chunk of some 200 bytes
        body = chat_body(tenant, stream=True, sim={"tokens": tokens, "itl_ms": 0.01}, max_tokens=tokens + 1)
        body["model"] = endpoint_id
        before = gateway.memory_bytes()
        async with asyncio.timeout(60), connected(gateway.settings.port) as (reader, writer):
            writer.transport.pause_reading()
            writer.write(request_bytes("POST", CHAT, key=tenant.key, body=body))
            delivered = [0]
            while not 0 < delivered[-1] == delivered[-3:][0] or len(delivered) < 8:  # until the engine has to wait
                await asyncio.sleep(0.25)
                delivered.append(await _delivered(engine.port))
                assert delivered[-1] < tokens
            grown = gateway.memory_bytes() - before
            assert grown < 8_000_000, f"{grown} bytes of a {tokens * 200} byte stream lie in the workers"
            writer.transport.resume_reading()
            raw = b""
            while b"data: [DONE]" not in raw[-200:]:
                data = await reader.read(1 << 20)
                assert data, raw[-500:]
                raw += data
        assert raw.count(b'"content":"') >= tokens
        assert len(raw) > 10_000_000
    finally:
        engine.stop()


async def _delivered(port: int) -> int:
    stats = (await ask(port, "GET", "/sim/stats")).json
    return int(stats["totals"]["completion_tokens"])


async def test_hundreds_of_streams_stay_apart(gateway: Gateway) -> None:
    """Three hundred streams at once, all whole, none mixed with another."""
    tenant = await gateway.tenant(flat_nanos=1_000)
    sim = {"itl_ms": 30, "ttft_ms": 100}
    answers = await asyncio.gather(
        *(
            gateway.chat(tenant, stream=True, sim=sim | {"text": f"This is answer {n} of {n}"}, max_tokens=50)
            for n in range(300)
        )
    )
    for number, answer in enumerate(answers):
        assert answer.events[-1] == "[DONE]"
        assert answer.text == f"This is answer {number} of {number}"
    assert len({answer.request_id for answer in answers}) == 300
