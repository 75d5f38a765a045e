"""The engines of a local stack: a simulator always, and a Triton server where one can be had.

Floor: stack. Both hold no model and make their answers up; the Triton server is NVIDIA's own program.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any

from backends.triton_server.interfaces import PROGRAMS
from gateway.stack.demo import SIMULATED_MODEL
from gateway.stack.demo_catalog import DEMO_MODELS
from gateway.stack.keeper import Keeper
from gateway.stack.processes import Child, Spec, StackError, free_port, tail, write_private
from gateway.stack.triton import TritonServer
from gateway.stack.triton_install import TritonEnvironment

_SIMULATOR_START_S = 20.0
_SIMULATOR_GRACE_S = 5.0
TRITON_MODEL = "ensemble"


class EngineChoice(StrEnum):
    """What an operator asks of `up`: only the simulator, the demo on Triton, or both as they can be had."""

    SIMULATOR = "simulator"
    TRITON = "triton"
    BOTH = "both"


async def start_simulator(folder: Path, cleanup: AsyncExitStack, *, log: Path) -> str:
    """Start the simulator on the port it had last time, where possible. Returns its URL."""
    port_file = folder / "simulator.port"
    port = free_port(_number_in(port_file))
    spec = Spec(
        name="simulator",
        command=[sys.executable, "-m", "backends.simulator", *_models(), "--port", str(port)],
        lock=folder / "run" / "simulator.lock",
        log=log,
    )

    async def start() -> Child:
        child = Child(spec)
        deadline = time.monotonic() + _SIMULATOR_START_S
        while not await _accepts(port):
            if not child.running or time.monotonic() > deadline:
                await child.kill()
                raise StackError(f"The simulator did not start. The end of {log}:\n{tail(log)}")
            await asyncio.sleep(0.05)
        return child

    keeper = Keeper("simulator", start)
    cleanup.push_async_callback(keeper.close, _SIMULATOR_GRACE_S)
    await keeper.open()
    write_private(port_file, f"{port}\n")
    return f"http://127.0.0.1:{port}"


def _models() -> list[str]:
    return [word for model in (SIMULATED_MODEL, *DEMO_MODELS) for word in ("--model", model)]


async def start_triton(
    folder: Path, environment: TritonEnvironment, cleanup: AsyncExitStack, *, log: Path, say: Callable[[str], None]
) -> TritonServer:
    """Start a Triton server with the demo's model and keep it, and the model in it, running.

    Raises:
        StackError: it does not start.
    """
    begun_s = time.monotonic()
    programs = [program.name for program in PROGRAMS]
    server = TritonServer(folder / "triton", environment, models=(TRITON_MODEL,), others=programs, log=log)

    async def start() -> Child:
        await server.start()
        return server.child

    keeper = Keeper("Triton", start)

    async def close() -> None:
        await keeper.release()
        await server.stop()

    cleanup.push_async_callback(close)
    await keeper.open()
    healing = asyncio.create_task(server.keep_models(), name="keep Triton's models")
    cleanup.push_async_callback(ended, healing)
    say(f"a Triton server runs on 127.0.0.1:{server.grpc_port} ({time.monotonic() - begun_s:.1f} s)")
    return server


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; what it failed of was said elsewhere."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _accepts(port: int) -> bool:
    """Whether somebody listens. Trying to bind instead could take the port from the one we wait for."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True


def _number_in(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
