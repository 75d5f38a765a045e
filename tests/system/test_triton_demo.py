"""`make run BACKEND=triton`, from the outside: the demo on a real Triton server."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.seed.test_funnel import walk_the_funnel
from tests.services import private_folder, remove
from tests.stack import Stack, StartStack, alive, until
from tests.system.triton import sim, triton_environment

USD = 1_000_000_000


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder whose path has spaces."""
    path = private_folder("triton demo")
    yield path / "data dir"
    remove(path)


def client_of(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key=stack.api_key, timeout=30, max_retries=0)


def say(stack: Stack, words: str, *, endpoint: str | None = None) -> tuple[str, int]:
    """Let the model say something, streamed. Returns what came, and the completion tokens that were counted."""
    with client_of(stack) as client:
        stream = client.chat.completions.create(
            model=endpoint or stack.endpoint,
            messages=[{"role": "user", "content": f"Say it.{sim(text=words, itl_ms=1)}"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        text, tokens = "", 0
        for chunk in stream:
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            if chunk.usage is not None:
                tokens = chunk.usage.completion_tokens
    return text, tokens


def other_endpoint(stack: Stack) -> str | None:
    """The endpoint on Triton that the greeting names beside the demo's."""
    found = re.search(r"may call (ep_\w+), which runs on a real Triton server", stack.output)
    return found[1] if found else None


@pytest.mark.long
async def test_the_demo_runs_on_triton_and_comes_back(folder: Path, start_stack: StartStack) -> None:
    """Its endpoint is on Triton, streams, counts and charges, and so do models that are deployed.

    kill -9 of the server: it serves again. Other runs of the same folder keep the endpoint, live where Triton runs and
    stopped where it does not; nothing is left running.
    """
    triton_environment()
    first = start_stack(folder, BACKEND="triton")
    assert "Behind it is a Triton server" in first.output
    words = "Grüße aus 東京, und 3 < 4."
    text, tokens = say(first, words)
    assert text == words
    assert tokens > 5
    # The demonstration's models are loaded there too, and are right and wrong as on the simulator.
    walk_the_funnel(first, "0.3.1")
    pids = first.pids()
    assert "triton" in pids
    os.kill(pids["triton"], signal.SIGKILL)
    await until(lambda: first.pids().get("triton", pids["triton"]) != pids["triton"])
    await until(lambda: answers(first))
    left = int(first.cli("credit", "show", first.run_file["organization"])["left_nanos"])
    assert 9 * USD < left < 10 * USD
    assert first.cli("ledger", "audit")["differences"] == []
    pids = first.pids()
    assert first.stop() == 0
    assert [name for name, pid in pids.items() if alive(pid)] == []

    second = start_stack(folder, BACKEND="simulator")
    assert second.endpoint != first.endpoint
    assert second.api_key == first.api_key
    assert other_endpoint(second) is None
    assert "triton" not in second.pids()
    with pytest.raises(openai.APIStatusError):
        say(second, words, endpoint=first.endpoint)
    assert second.stop() == 0

    third = start_stack(folder, BACKEND="both")
    assert third.endpoint == second.endpoint
    assert other_endpoint(third) == first.endpoint
    await until(lambda: answers(third, first.endpoint))
    assert third.stop() == 0


def answers(stack: Stack, endpoint: str | None = None) -> bool:
    """Whether a short answer comes."""
    try:
        return say(stack, "Back again.", endpoint=endpoint)[0] == "Back again."
    except openai.OpenAIError:
        return False
