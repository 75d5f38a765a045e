"""The real openai client against the real simulator."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from backends.simulator.process import SimulatorProcess, running
from backends.simulator.tokens import count_tokens

MODEL = "sim-8b"
MESSAGES: Any = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def simulator() -> Iterator[SimulatorProcess]:
    with running("--model", MODEL, "--ttft-ms", "1", "--itl-ms", "0.5", "--api-key", "engine-key") as simulator:
        yield simulator


@pytest.fixture
def client(simulator: SimulatorProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{simulator.url}/v1", api_key="engine-key", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    """A whole and a streamed answer are what the client's types promise, and equal for equal seeds."""
    whole = client.chat.completions.create(model=MODEL, messages=MESSAGES, seed=5)
    assert whole.usage is not None
    assert whole.choices[0].message.content is not None
    assert count_tokens(whole.choices[0].message.content) == whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        seed=5,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


async def test_async_chat(simulator: SimulatorProcess) -> None:
    """The asynchronous client streams too."""
    async with openai.AsyncOpenAI(base_url=f"{simulator.url}/v1", api_key="engine-key") as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            stream=True,
            extra_body={"sim": {"text": "Once upon a time."}},
        )
        parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(parts) == "Once upon a time."


def test_tools_streamed(client: openai.OpenAI) -> None:
    """A forced tool call comes together from its deltas; id and name come once."""
    parameters: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}}
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[{"type": "function", "function": {"name": "weather", "parameters": parameters}}],
        tool_choice="required",
    ) as stream:
        answer = stream.get_final_completion().choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.tool_calls is not None
    call = answer.message.tool_calls[0]
    assert call.function.name == "weather"
    assert isinstance(json.loads(call.function.arguments)["city"], str)


def test_other_routes(client: openai.OpenAI) -> None:
    """Models, text completions and embeddings in both encodings (base64 is the client's own default)."""
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "pareta-simulator"
    text = client.completions.create(model=MODEL, prompt="Once", max_tokens=4, n=2)
    assert [count_tokens(choice.text) for choice in text.choices] == [4, 4]
    packed = client.embeddings.create(model=MODEL, input=["one", "two"], dimensions=8)
    plain = client.embeddings.create(model=MODEL, input=["one", "two"], dimensions=8, encoding_format="float")
    assert len(packed.data[0].embedding) == 8
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding, abs=1e-6)
    assert packed.usage.prompt_tokens == 2


def test_log_probabilities(client: openai.OpenAI) -> None:
    """One entry for each token."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        logprobs=True,
        top_logprobs=2,
        max_tokens=5,
    ).choices[0]
    assert answer.logprobs is not None
    assert answer.logprobs.content is not None
    assert "".join(item.token for item in answer.logprobs.content) == answer.message.content


def test_errors_are_the_clients_own(simulator: SimulatorProcess, client: openai.OpenAI) -> None:
    """Statuses become the client's exceptions, and an error event is raised in mid-stream."""
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="unknown", messages=MESSAGES)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=MODEL, messages=MESSAGES, extra_body={"sim": {"fail": 429}})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    stream = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        stream=True,
        extra_body={"sim": {"fail": "error_event"}},
    )
    with pytest.raises(openai.APIError):
        list(stream)
