"""What an openai client sees of an engine that is not ours: llama.cpp's server behind a whole gateway.

Needs the engine's environment (``make second-engine`` makes it); without it these tests say so and are skipped.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from ledger.core.meters import Meter
from ledger.core.pricing import charge_nanos
from tests.contract.expect import reveals_nothing
from tests.faults.world import ROOT
from tests.services import PostgresService, private_folder, remove, run_apart
from tests.system.harness import Gateway, Tenant, running_gateway
from tests.system.wire import ask, connected, request_bytes

PYTHON = ROOT / ".venv-engine" / "bin" / "python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="`make second-engine` installs llama.cpp's server first")

FILE_NAME = "tiny-secret-model.gguf"
HELLO: list[Any] = [{"role": "user", "content": "Say something."}]
ALPHABET = {"type": "object", "properties": {"letter": {"enum": ["a", "b"]}}, "required": ["letter"]}


class LlamaServer:
    """One server process."""

    def __init__(self, model: Path) -> None:
        self.model = model
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, on the port of last time if there was one."""
        command = [str(PYTHON), "-m", "tests.engines.llama_server", str(self.model)]
        if self.url:
            command.append(self.url.rpartition(":")[2])
        log = self.model.with_suffix(".log").open("ab")
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        )
        log.close()
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                self.url = line.strip()
                return
        raise AssertionError(f"it did not start: {self.model.with_suffix('.log').read_text()[-2000:]}")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    async def busy(self) -> int:
        """How many of its slots work."""
        answer = await ask(int(self.url.rpartition(":")[2]), "GET", "/slots")
        return sum(bool(slot["is_processing"]) for slot in answer.json)


@contextmanager
def running_engine() -> Iterator[LlamaServer]:
    folder = private_folder("llama")
    model = folder / FILE_NAME
    subprocess.run([PYTHON, "-m", "tests.engines.tiny_gguf", str(model)], cwd=ROOT, check=True)
    server = LlamaServer(model)
    try:
        yield server
    finally:
        server.kill()
        remove(folder)


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaServer]:
    with running_engine() as server:
        yield server


@pytest.fixture(scope="module")
def own_gateway(postgres_service: PostgresService) -> Iterator[Gateway]:
    with running_gateway(postgres_service, simulators=0) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def llama(own_gateway: Gateway, engine: LlamaServer) -> Tenant:
    return run_apart(own_gateway.tenant(urls=[engine.url], model=FILE_NAME, context_tokens=512, max_output_tokens=400))


@pytest.fixture
async def client(own_gateway: Gateway, llama: Tenant) -> Any:
    async with AsyncOpenAI(base_url=f"{own_gateway.base_url}/v1", api_key=llama.key, max_retries=0) as made:
        yield made


async def is_paid_for(gateway: Gateway, tenant: Tenant, request_id: str, usage: dict[str, int]) -> None:
    """The books charge what the client was told was used, at its price card."""
    receipt = await gateway.receipt(request_id)
    meters = {line.meter: line.quantity for line in receipt.lines}
    assert meters[Meter.PROMPT] + meters.get(Meter.CACHED_PROMPT, 0) == usage["prompt_tokens"]
    assert meters[Meter.COMPLETION] == usage["completion_tokens"]
    assert tenant.card is not None
    assert receipt.charged_nanos == charge_nanos(tenant.card, meters)


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_is_exact_and_nothing_of_the_engine_is_seen(
    own_gateway: Gateway, llama: Tenant, stream: bool
) -> None:
    """Whole or streamed: the engine's own counts are charged; its file name, timings and fingerprint stay inside."""
    answer = await own_gateway.chat(
        llama, max_tokens=40, seed=3, stream=stream, **({"stream_options": {"include_usage": True}} if stream else {})
    )
    assert answer.status == 200
    reveals_nothing(answer)
    for word in (b"tiny", b"timings", b"gguf", b"fingerprint"):
        assert word not in answer.raw
    usage = answer.chunks[-1]["usage"] if stream else answer.json["usage"]
    assert 1 <= usage["completion_tokens"] <= 40
    choices = [choice for chunk in answer.chunks for choice in chunk["choices"]] if stream else answer.json["choices"]
    assert choices[-1]["finish_reason"] in ("length", "stop")
    await is_paid_for(own_gateway, llama, answer.request_id, usage)


async def test_a_stream_says_the_same_as_a_whole_answer(client: AsyncOpenAI, llama: Tenant) -> None:
    """At temperature 0 both say the same, though tokens are cut inside characters."""
    wanted: Any = {"model": llama.endpoint_id, "messages": HELLO, "temperature": 0, "max_tokens": 60}
    whole = await client.chat.completions.create(**wanted)
    parts = [
        chunk.choices[0].delta.content or ""
        async for chunk in await client.chat.completions.create(**wanted, stream=True)
        if chunk.choices
    ]
    # Where a character is cut off for good, a stream leaves out what a whole answer shows as U+FFFD.
    assert "".join(parts).rstrip("\ufffd") == (whole.choices[0].message.content or "").rstrip("\ufffd")


async def test_wishes_are_passed_on(client: AsyncOpenAI, llama: Tenant) -> None:
    """A grammar, log probabilities, several choices and a legacy completion come back in the form of the schema."""
    guided = await client.chat.completions.create(
        model=llama.endpoint_id,
        messages=HELLO,
        max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "letter", "schema": ALPHABET}},
    )
    assert json.loads(guided.choices[0].message.content or "")["letter"] in ("a", "b")
    likely = await client.chat.completions.create(
        model=llama.endpoint_id, messages=HELLO, max_tokens=3, logprobs=True, top_logprobs=2
    )
    assert likely.choices[0].logprobs is not None
    assert all(len(token.top_logprobs) == 2 for token in likely.choices[0].logprobs.content or [])
    several = await client.chat.completions.create(model=llama.endpoint_id, messages=HELLO, max_tokens=4, n=2)
    assert [choice.index for choice in several.choices] == [0, 1]
    legacy = await client.completions.create(model=llama.endpoint_id, prompt="Once", max_tokens=5)
    assert legacy.usage is not None
    assert legacy.object == "text_completion"


async def test_a_prompt_that_is_too_long_is_the_callers_to_mend(client: AsyncOpenAI, llama: Tenant) -> None:
    """The engine's own refusal becomes the 400 that clients know, and costs nothing."""
    with pytest.raises(BadRequestError) as refused:
        await client.chat.completions.create(
            model=llama.endpoint_id, messages=[{"role": "user", "content": "é" * 700}], max_tokens=4
        )
    assert refused.value.code == "context_length_exceeded"


async def test_a_client_that_leaves_frees_the_engine(own_gateway: Gateway, llama: Tenant, engine: LlamaServer) -> None:
    """A hang-up in mid-stream stops the work; what was delivered is charged, though the engine reports no usage."""
    body = {"model": llama.endpoint_id, "messages": HELLO, "max_tokens": 400, "stream": True, "ignore_eos": True}
    async with connected(own_gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", key=llama.key, body=body))
        head = await reader.readuntil(b"\r\n\r\n")
        for _ in range(4):
            await reader.readuntil(b"\n\n")
    request_id = next(
        line.split(": ")[1] for line in head.decode().split("\r\n") if line.lower().startswith("x-request-id")
    )
    async with asyncio.timeout(20):
        while await engine.busy():
            await asyncio.sleep(0.05)
    receipt = await own_gateway.receipt(request_id)
    assert llama.card is not None
    meters = {line.meter: line.quantity for line in receipt.lines}
    assert meters[Meter.COMPLETION] >= 3
    assert receipt.charged_nanos == charge_nanos(llama.card, meters)


async def test_an_engine_that_is_killed_and_comes_back(own_gateway: Gateway) -> None:
    """kill -9 under streams: they break off uncharged or charged for what came; a new process is found by itself."""
    with running_engine() as engine:
        tenant = await own_gateway.tenant(urls=[engine.url], model=FILE_NAME, context_tokens=512, max_output_tokens=400)
        streams = [
            asyncio.create_task(own_gateway.chat(tenant, max_tokens=400, stream=True, ignore_eos=True))
            for _ in range(6)
        ]
        give_up_s = time.monotonic() + 20
        while not await engine.busy():
            assert time.monotonic() < give_up_s
        engine.kill()
        answers = await asyncio.gather(*streams)
        assert all(answer.status in (200, 502, 503) for answer in answers)
        engine.start()
        async with asyncio.timeout(30):
            while (await own_gateway.chat(tenant, max_tokens=2)).status != 200:
                await asyncio.sleep(0.1)
    await own_gateway.wait_quiet()


async def test_the_books_are_right_after_all_of_it(own_gateway: Gateway) -> None:
    """The audit recomputes every charge of the session."""
    await own_gateway.wait_quiet()
    report = await own_gateway.audit()
    assert report.usage_events > 0
