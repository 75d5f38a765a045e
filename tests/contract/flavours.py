"""The kinds of backend that an endpoint can have, each steered in its own way and seen through its own window."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backends.model_folder import load_model_folder
from tests.models.folders import write_model_folder
from tests.services import private_folder, remove, run_apart
from tests.system.harness import Gateway, Tenant
from tests.system.triton import TritonService, sim
from tests.system.wire import Answer

TRITON_MODELS = ("ensemble", "llmapi", "vllm")
_FAULTS_ON_TRITON = {
    "500": "error_before",
    "hang_before_head": "hang",
    "error_event": "error_mid_stream",
    "hang_mid_stream": "hang_mid_stream",
}
"""What the simulator's faults are called there."""


@dataclass
class Flavour:
    """One kind of backend behind one endpoint.

    ``refuses``: fields of the schema that its interface has nothing for. ``count``: counts tokens where the interface
    reports none, as the gateway does it; a real engine has the same tokenizer, this one counts words.
    """

    name: str
    gateway: Gateway
    tenant: Tenant
    triton: TritonService | None = None
    refuses: frozenset[str] = field(default_factory=frozenset)
    count: Callable[[str], int] | None = None

    def body(self, content: str = "Say something.", *, steer: dict[str, Any] | None = None, **fields: Any) -> Any:
        """A chat request whose answer is steered by the simulator's options."""
        if steer and self.triton is None:
            fields["sim"] = {name: value for name, value in steer.items() if name != "tag"}
        elif steer:
            options = dict(steer)
            if "fail" in options:
                options["fail"] = _FAULTS_ON_TRITON[options["fail"]]
            content += sim(**options)
        if steer and self.triton is None and "tag" in steer:
            fields["tag"] = steer["tag"]
        return {
            "model": self.tenant.endpoint_id,
            "messages": [{"role": "user", "content": content}],
            **fields,
        }

    async def chat(self, content: str = "Say something.", **fields: Any) -> Answer:
        """Ask over a raw socket."""
        return await self.gateway.post("/v1/chat/completions", self.tenant.key, self.body(content, **fields))

    def tokens(self, generated: int, text: str) -> int:
        """What the usage says of an answer of so many tokens of the engine's."""
        return generated if self.count is None else self.count(text)

    async def record(self, tag: str, state: str) -> dict[str, Any]:
        """What the engine itself remembers of a request, once it is in a state."""
        if self.triton is None:
            return await self.gateway.sim_record(tag=tag, state=state)
        return await asyncio.to_thread(self.triton.request, self.name, tag, state=state)


@pytest.fixture(scope="session")
def chat_model() -> Iterator[Path]:
    """A model folder with tools and reasoning, as an operator has one for a model on Triton."""
    folder = private_folder("model")
    yield write_model_folder(folder / "chatml", "chatml")
    remove(folder)


@pytest.fixture(params=["simulator", *TRITON_MODELS])
def flavour(request: pytest.FixtureRequest, gateway: Gateway) -> Flavour:
    """Each kind of backend in turn."""
    name: str = request.param
    if name == "simulator":
        return Flavour(name, gateway, _tenant(gateway, name))
    server: TritonService = request.getfixturevalue("triton_server")
    tenant = _tenant(
        gateway,
        name,
        urls=[server.url(name)],
        capabilities=("chat", "completion"),
        model_folder=str(request.getfixturevalue("chat_model")),
        context_tokens=2048,
        max_output_tokens=2000,
    )
    if name != "llmapi":
        return Flavour(name, gateway, tenant, server, frozenset({"n"} if name == "vllm" else ()))
    tokenizer = load_model_folder(request.getfixturevalue("chat_model")).tokenizer
    assert tokenizer is not None
    count = partial(tokenizer.count, add_special_tokens=False)
    return Flavour(name, gateway, tenant, server, frozenset({"n", "response_format"}), count)


_tenants: dict[tuple[int, str], Tenant] = {}


def _tenant(gateway: Gateway, name: str, **options: Any) -> Tenant:
    """One for all tests of a flavour."""
    key = (id(gateway), name)
    if key not in _tenants:
        _tenants[key] = run_apart(gateway.tenant(**options))
    return _tenants[key]
