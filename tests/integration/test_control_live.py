"""What the operator does takes effect on a running gateway, as customers see it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from gateway.cli import main as cli_main
from tests.stack import Stack


@dataclass(slots=True)
class Reply:
    status: int
    headers: Any
    body: Any

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


@dataclass(slots=True)
class Customer:
    """An organization of one test: its key, and a way to ask."""

    stack: Stack
    client: aiohttp.ClientSession
    org: str
    key: str
    endpoint: str

    async def complete(self, *, key: str = "", model: str = "", max_tokens: int = 5) -> Reply:
        body = {
            "model": model or self.endpoint,
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": max_tokens,
        }
        headers = {"Authorization": f"Bearer {key or self.key}"}
        async with self.client.post(f"{self.stack.base_url}/v1/chat/completions", json=body, headers=headers) as answer:
            return Reply(answer.status, answer.headers, await answer.json())

    async def run(self, *arguments: str) -> Any:
        """Run an operator's command beside the stack; in this process, which saves the start of an interpreter."""
        out = io.StringIO()

        def command() -> int:
            with contextlib.redirect_stdout(out):
                return cli_main.run([*arguments, "--json", "--data-dir", str(self.stack.data_dir)])

        assert await asyncio.to_thread(command) == 0, arguments
        return json.loads(out.getvalue())

    async def engine(self) -> dict[str, Any]:
        """The simulator behind the demo endpoint, as words for ``endpoint add``."""
        shown = await self.run("endpoint", "show", self.stack.endpoint)
        return {"url": shown["backends"][0]["url"], "model": shown["model"]}

    async def add_endpoint(self, *more: str) -> str:
        engine = await self.engine()
        words = ("--org", self.org, "--model", engine["model"], "--context-tokens", "4096")
        added = await self.run("endpoint", "add", *words, "--backend", engine["url"], *more)
        return str(added["id"])


@pytest.fixture
async def customer(stack: Stack) -> AsyncIterator[Customer]:
    """A funded organization with a priced endpoint and a full key, made by the operator's own commands."""
    name = f"customer {secrets.token_hex(4)}"
    async with aiohttp.ClientSession() as client:
        made = Customer(stack, client, "", "", "")
        made.org = (await made.run("org", "create", name))["id"]
        await made.run("credit", "top-up", made.org, "1", "--idempotency-key", "first")
        made.key = (await made.run("key", "mint", "--org", made.org))["key"]
        made.endpoint = await made.add_endpoint()
        await made.run("price", "set", made.endpoint, "--request", "0.001")
        await until_status(made, 200)
        yield made


async def until_status(customer: Customer, status: int, **words: Any) -> Reply:
    """Ask until the answer has this status."""
    deadline_s = time.monotonic() + 20
    while (reply := await customer.complete(**words)).status != status:
        assert time.monotonic() < deadline_s, reply
    return reply


async def test_a_revoked_key_is_refused_within_a_second(customer: Customer) -> None:
    """From the end of `key revoke` on, it takes at most a second until no worker accepts the key."""
    minted = await customer.run("key", "mint", "--org", customer.org)
    for _ in range(5):
        assert (await customer.complete(key=minted["key"])).status == 200
    await customer.run("key", "revoke", minted["id"])
    await asyncio.sleep(1.0)
    for _ in range(10):
        reply = await customer.complete(key=minted["key"])
        assert (reply.status, reply.code) == (401, "invalid_api_key")
    assert (await customer.complete()).status == 200


async def test_scope_expiry_and_limits_of_a_key_hold(customer: Customer) -> None:
    """A read key may not spend, an expired one is no key, and a limited one is told when to come back."""
    read = (await customer.run("key", "mint", "--org", customer.org, "--scope", "read"))["key"]
    assert (await customer.complete(key=read)).status == 403
    short = (await customer.run("key", "mint", "--org", customer.org, "--expires", "2s"))["key"]
    await until_status(customer, 401, key=short)
    limited = (await customer.run("key", "mint", "--org", customer.org, "--requests-per-minute", "2"))["key"]
    replies = [await customer.complete(key=limited) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 429]
    assert float(replies[2].headers["Retry-After"]) > 0


async def test_limits_of_an_organization_change_at_once(customer: Customer) -> None:
    """A new ceiling for the organization counts for a key that the workers already know."""
    await customer.run("org", "limit", customer.org, "--requests-per-minute", "1")
    await until_status(customer, 429)
    await customer.run("org", "limit", customer.org, "--requests-per-minute", "0")
    await until_status(customer, 200)


async def test_an_endpoint_stops_starts_and_goes(customer: Customer) -> None:
    """Stopped: 503. Started: it answers. Removed: 404, and its receipts stay. A seed record: 409."""
    request_id = (await customer.complete()).headers["x-request-id"]
    await customer.run("endpoint", "stop", customer.endpoint)
    await until_status(customer, 503)
    await customer.run("endpoint", "start", customer.endpoint)
    await until_status(customer, 200)
    await customer.run("endpoint", "remove", customer.endpoint)
    await until_status(customer, 404)
    assert (await customer.run("receipt", request_id))["charge_nanos"] == 1_000_000
    seed = (await customer.run("endpoint", "add", "--org", customer.org, "--seed"))["id"]
    await until_status(customer, 409, model=seed)


async def test_a_new_price_counts_from_its_moment(customer: Customer) -> None:
    """Each receipt names the card of its own moment; the balance falls by exactly the receipts."""
    before = (await customer.run("credit", "show", customer.org))["left_nanos"]
    old = await customer.complete()
    card = await customer.run("price", "set", customer.endpoint, "--request", "0.002", "--completion", "1.5")
    await asyncio.sleep(1.0)
    new = await customer.complete()
    receipts = [await customer.run("receipt", reply.headers["x-request-id"]) for reply in (old, new)]
    tokens = new.body["usage"]["completion_tokens"]
    assert [receipt["charge_nanos"] for receipt in receipts] == [1_000_000, 2_000_000 + tokens * 1_500]
    assert receipts[1]["price_card_id"] == card["id"]
    after = (await customer.run("credit", "show", customer.org))["left_nanos"]
    assert before - after == sum(receipt["charge_nanos"] for receipt in receipts)


async def test_an_endpoint_without_a_price_does_no_work(customer: Customer) -> None:
    """Nothing is served that has no price; with one it is, without a restart."""
    endpoint = await customer.add_endpoint()
    reply = await until_not_found_is_over(customer, endpoint)
    assert reply.status == 503, reply
    await customer.run("price", "set", endpoint, "--request", "0")
    await until_status(customer, 200, model=endpoint)


async def until_not_found_is_over(customer: Customer, endpoint: str) -> Reply:
    replies: list[Reply] = []

    async def known() -> bool:
        replies.append(await customer.complete(model=endpoint))
        return replies[-1].status != 404

    deadline_s = time.monotonic() + 20
    while not await known():
        assert time.monotonic() < deadline_s
    return replies[-1]


async def test_an_empty_balance_is_402_until_it_is_paid(customer: Customer) -> None:
    """Without credit 402; right after a top-up the same key is served, without waiting for anything."""
    await customer.run("price", "set", customer.endpoint, "--request", "0.9")
    await until_status(customer, 402)
    await customer.run("credit", "top-up", customer.org, "1", "--idempotency-key", "second")
    assert (await customer.complete()).status == 200


async def test_the_audit_beside_the_running_stack(customer: Customer) -> None:
    """The proof runs while the gateway serves, and finds nothing."""
    await customer.complete()
    report = await customer.run("ledger", "audit")
    assert report["differences"] == []
    assert report["usage_events"] >= 1
