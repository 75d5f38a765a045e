"""``make triton-storm``: hundreds of streams through a whole gateway and a real Triton server, many of them left early.

Afterwards neither side may have a stream, and the books must be right. What a message costs the gateway is shown beside
what the bare gRPC stubs cost in the same run, because that is the floor under it.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import grpc.aio
import orjson
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from backends.triton_grpc import TritonChannel
from backends.triton_limits import TritonLimits
from backends.triton_stubs import messages as stubs
from backends.wire.sampling import Sampling
from backends.wire.triton import detect
from tests.models.folders import write_model_folder
from tests.services import PostgresService, private_folder, remove, run_apart, run_here
from tests.system.harness import Gateway, Tenant, running_gateway
from tests.system.triton import TritonService, sim, triton_environment
from tests.system.wire import connected, request_bytes

MODEL = "ensemble"
TOKENS = (30, 90)
ITL_MS = 200
"""Two cores that also run Triton, its model and the clients keep up with 1,500 messages a second, not twice that."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Seen:
    """What the clients saw."""

    ends: Counter[str] = field(default_factory=Counter)
    events: int = 0


def options_of(rng: random.Random) -> dict[str, Any]:
    """How one answer shall be."""
    return {"tokens": rng.randint(*TOKENS), "itl_ms": ITL_MS, "seed": rng.randrange(1 << 30)}


async def one_stream(gateway: Gateway, tenant: Tenant, rng: random.Random, hang_ups: float, seen: Seen) -> None:
    """One request; now and then its client leaves in the middle."""
    body = {
        "model": tenant.endpoint_id,
        "messages": [{"role": "user", "content": f"Storm {sim(**options_of(rng))}"}],
        "stream": True,
        "max_tokens": TOKENS[1],
    }
    leaves_after = rng.randint(1, TOKENS[0]) if rng.random() < hang_ups else 1 << 30
    async with connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("POST", "/v1/chat/completions", key=tenant.key, body=body))
        events, tail = 0, b""
        while data := await reader.read(65536):
            # A chunk of our stream is one or more whole events.
            events += data.count(b"data: ")
            tail = (tail + data)[-64:]
            if events > leaves_after:
                seen.ends["left"] += 1
                break
            if tail.endswith(b"0\r\n\r\n") or b"Content-Length" in data:
                seen.ends["whole" if b"[DONE]" in tail else "refused" if not events else "broken"] += 1
                break
        else:
            seen.ends["broken"] += 1
        seen.events += events


async def keep_up(
    streams: int, seconds: float, tell: Callable[[float], object], make: Callable[[], Any]
) -> tuple[float, float]:
    """So many at once, each followed by another, until the time is over. Returns when the last began and ended."""
    begun_s = time.monotonic()
    over = asyncio.Event()

    async def lane() -> None:
        while not over.is_set():
            await make()

    lanes = [asyncio.create_task(lane()) for _ in range(streams)]
    while (spent_s := time.monotonic() - begun_s) < seconds:
        tell(spent_s)
        await asyncio.sleep(0.5)
    over.set()
    await asyncio.gather(*lanes)
    return spent_s, time.monotonic() - begun_s


def cpu_s(pids: list[int]) -> float:
    """CPU seconds of some processes."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / TICKS_PER_S


async def raw_stubs(server: TritonService, streams: int, seconds: float, tell: Callable[[float], object]) -> float:
    """CPU seconds per message of the bare stubs on gRPC's own library, in this process."""
    channel = TritonChannel(server.grpc_url, TritonLimits())
    dialect = detect(await channel.describe(MODEL, timeout_s=10))
    await channel.close()
    rng, messages = random.Random(1), 0

    async def one(infer: Any) -> None:
        nonlocal messages
        prompt = f"Storm {sim(**options_of(rng))}"
        request = stubs.ModelInferRequest(model_name=MODEL, id="raw")
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for tensor in dialect.encode(prompt, Sampling(max_tokens=TOKENS[1]), stream=True):
            request.inputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
            request.raw_input_contents.append(tensor.raw)
        async for response in infer(request):
            messages += 1
            if response.infer_response.parameters["triton_final_response"].bool_param:
                break

    async with grpc.aio.insecure_channel(server.grpc_url) as bare:
        infer = bare.unary_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=stubs.ModelInferRequest.SerializeToString,
            response_deserializer=stubs.ModelStreamInferResponse.FromString,
        )
        begun_s = time.process_time()
        await keep_up(streams, seconds, tell, lambda: one(infer))
        spent_s = time.process_time() - begun_s
    return spent_s / max(1, messages)


async def storm(
    gateway: Gateway, server: TritonService, folder: Path, streams: int, seconds: float, hang_ups: float, seed: int
) -> dict[str, Any]:
    """The whole run; raises if something is left behind or the books are wrong."""
    tenant = await gateway.tenant(
        urls=[server.url(MODEL)], capabilities=("chat", "completion"), model_folder=str(folder), context_tokens=2048,
        max_output_tokens=2000, credit_nanos=1000 * 10**9,
    )  # fmt: skip
    rng, seen = random.Random(seed), Seen()
    with Progress(console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("streams through the gateway", total=seconds)
        workers = [gateway.worker_pid(slot) for slot in range(gateway.settings.workers)]
        before_s = cpu_s(workers)
        _, spent_s = await keep_up(
            streams,
            seconds,
            lambda done_s: bars.update(bar, completed=done_s),
            lambda: one_stream(gateway, tenant, rng, hang_ups, seen),
        )
        workers_s = cpu_s(workers) - before_s
        bar = bars.add_task("waiting until quiet", total=None)
        await asyncio.to_thread(server.wait_quiet)
        await gateway.wait_quiet()
        report = await gateway.audit()
        bars.update(bar, description="the bare stubs", total=seconds / 6)
        raw_s = await raw_stubs(server, streams, seconds / 6, lambda done_s: bars.update(bar, completed=done_s))
    books = await asyncio.to_thread(server.inspect, MODEL, "-")
    assert books["active"] == books["waiting"] == 0, books
    return {
        "streams at once": streams,
        "seconds": round(spent_s),
        "requests": seen.ends.total(),
        **{f"  {end}": count for end, count in sorted(seen.ends.items())},
        "messages seen by clients": seen.events,
        "gateway CPU per message, µs": round(workers_s / max(1, seen.events) * 1e6),
        "bare stubs, CPU per message, µs": round(raw_s * 1e6),
        "streams left at Triton": books["active"] + books["waiting"],
        "charges audited": report.usage_events,
        "differences in the audit": len(report.differences),
    }


@click.command()
@click.option("--streams", default=300, show_default=True)
@click.option("--seconds", default=120.0, show_default=True)
@click.option("--hang-ups", default=0.1, show_default=True, help="Share of clients that leave in the middle.")
@click.option("--seed", default=0, help="Repeat a run; without one, a new seed is drawn and printed.")
@click.option("--json", "as_json", is_flag=True)
def main(streams: int, seconds: float, hang_ups: float, seed: int, as_json: bool) -> None:
    """Run and print. Exit status 1: something was left behind, or streams broke."""
    seed = seed or time.time_ns() % 2**32
    print(f"seed {seed}", file=sys.stderr)
    postgres = PostgresService(private_folder("postgres"))
    run_here(postgres.server.start())
    folder = private_folder("storm")
    write_model_folder(folder / "model", "chatml")
    server = TritonService(folder / "triton", triton_environment(), models=[MODEL, "inspect"])
    try:
        with running_gateway(postgres, simulators=0, idle_timeout_s=20.0) as gateway:
            figures = run_apart(storm(gateway, server, folder / "model", streams, seconds, hang_ups, seed))
    finally:
        server.stop()
        run_here(postgres.server.stop())
        remove(postgres.server.folder)
        remove(folder)
    if as_json:
        print(orjson.dumps(figures).decode())
    else:
        table = Table("figure", "value")
        for name, value in figures.items():
            table.add_row(name, f"{value:,}")
        Console().print(table)
    sys.exit(bool(figures.get("  broken", 0) or figures.get("  refused", 0)))


if __name__ == "__main__":
    main()
