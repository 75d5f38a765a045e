"""Refusals: one body for both client families, the documented words, in the documented order of precedence."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from gateway.core.state import EndpointStatus, Limits, Scope
from tests.contract.expect import is_error
from tests.system.harness import Gateway, Tenant, chat_body
from tests.system.wire import ask, connected, read_answer, request_bytes

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "messages_invalid"),
        ({"messages": None}, "messages", "messages_invalid"),
        ({"messages": "hello"}, "messages", "messages_invalid"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "messages_invalid"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "messages_invalid"),
        ({"model": ""}, "model", "model_invalid"),
        ({"model": 12}, "model", "model_invalid"),
        ({"stream": "yes"}, "stream", "stream_invalid"),
        ({"temperature": "hot"}, "temperature", "temperature_invalid"),
        ({"temperature": 2.5}, "temperature", "temperature_invalid"),
        ({"top_p": 0}, "top_p", "top_p_invalid"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens_invalid"),
        ({"max_tokens": 1.5}, "max_tokens", "max_tokens_invalid"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "max_completion_tokens_invalid"),
        ({"n": 9}, "n", "n_invalid"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "stop_invalid"),
        ({"presence_penalty": 3}, "presence_penalty", "presence_penalty_invalid"),
        ({"seed": "x"}, "seed", "seed_invalid"),
        ({"tools": [{"type": "magic"}]}, "tools[0]", "tools_invalid"),
        ({"response_format": "json"}, "response_format", "response_format_invalid"),
        ({"stream_options": {"include_usage": 1}, "stream": True}, "stream_options.include_usage",
         "stream_options_invalid"),
        ({"max_tokens": 9000}, "messages", "context_length_exceeded"),
    ],
)  # fmt: skip
async def test_a_wrong_field_is_named(
    gateway: Gateway, tenant: Tenant, fields: dict[str, Any], param: str, code: str
) -> None:
    """A wrong type or range is a 400 that names the field, and costs nothing."""
    answer = await gateway.post(CHAT, tenant.key, {"model": tenant.endpoint_id, "messages": HELLO} | fields)
    is_error(gateway, answer, 400, "invalid_request_error", code, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b"null", b"\xff\xfe", b'{"model":NaN}'])
async def test_a_body_that_is_no_object_is_refused(gateway: Gateway, tenant: Tenant, body: bytes) -> None:
    """What is no JSON object gets one sentence, whatever it is."""
    answer = await gateway.post(CHAT, tenant.key, body)
    is_error(gateway, answer, 400, "invalid_request_error", "body_invalid")


async def test_a_prompt_longer_than_the_context_is_named(gateway: Gateway, tenant: Tenant) -> None:
    """The engine's refusal of an over-long prompt becomes ours, without its text."""
    answer = await gateway.chat(tenant, "word " * 9000)
    is_error(gateway, answer, 400, "invalid_request_error", "context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Basic cGFyZXRh",
        "Bearer sk-1234",
        "Bearer pareta_sk_",
        "Bearer pareta_sk_aaaaaaaaaaaaaaaaaaaaaaaa.bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "Bearer pareta_sk_" + "a" * 2000,
    ],
)
async def test_a_bad_key_is_401(gateway: Gateway, tenant: Tenant, header: str | None) -> None:
    """Missing, malformed or unknown: one answer, on every route that needs a key."""
    headers = {} if header is None else {"Authorization": header}
    for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("GET", f"/v1/models/{tenant.endpoint_id}")):
        body = chat_body(tenant) if method == "POST" else None
        answer = await ask(gateway.settings.port, method, path, body=body, headers=headers)
        is_error(gateway, answer, 401, "authentication_error", "invalid_api_key")


async def test_a_wrong_secret_is_401(gateway: Gateway, tenant: Tenant) -> None:
    """A known key id with another secret looks like an unknown key."""
    answer = await gateway.get("/v1/models", tenant.key[:-1] + ("a" if tenant.key[-1] != "a" else "b"))
    is_error(gateway, answer, 401, "authentication_error", "invalid_api_key")


async def test_an_expired_key_is_401(gateway: Gateway, tenant: Tenant) -> None:
    """A key works until its expiry and not after it."""
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    _, key = await gateway.key(tenant.org_id, expires_at=soon)
    assert (await gateway.get("/v1/models", key)).status == 200
    await asyncio.sleep(1.6)
    answer = await gateway.get("/v1/models", key)
    is_error(gateway, answer, 401, "authentication_error", "invalid_api_key")


async def test_a_read_key_may_not_spend(gateway: Gateway, tenant: Tenant) -> None:
    """A read-only key lists models; everything that costs is a 403."""
    _, key = await gateway.key(tenant.org_id, scope=Scope.READ)
    assert (await gateway.get("/v1/models", key)).status == 200
    bodies = {
        CHAT: chat_body(tenant),
        "/v1/completions": {"model": tenant.endpoint_id, "prompt": "x"},
        "/v1/embeddings": {"model": tenant.endpoint_id, "input": "x"},
    }
    for path, body in bodies.items():
        answer = await gateway.post(path, key, body)
        is_error(gateway, answer, 403, "permission_error", "forbidden")


async def test_an_empty_organization_gets_402(gateway: Gateway) -> None:
    """No credit: 402 before any work, streamed or not; both bodies say what to do and never an amount."""
    tenant = await gateway.tenant(credit_nanos=0)
    for stream in (False, True):
        answer = await gateway.chat(tenant, tag="empty", stream=stream)
        is_error(gateway, answer, 402, "billing_error", "insufficient_credits")
    assert await gateway.sim_records(tag="empty") == []


@pytest.mark.parametrize("model", ["ep_unknown", "auto", "sim-8b", "x" * 200, "a/b"])
async def test_an_unknown_model_is_404(gateway: Gateway, tenant: Tenant, model: str) -> None:
    """A name that no endpoint of the organization has, the backend's own name included."""
    answer = await gateway.post(CHAT, tenant.key, {"model": model, "messages": HELLO})
    if model == "sim-8b":  # the caller's own word may come back, and nothing else
        assert (answer.status, answer.code) == (404, "model_not_found")
        return
    is_error(gateway, answer, 404, "not_found_error", "model_not_found", "model")


async def test_another_organizations_endpoint_is_unknown(gateway: Gateway, tenant: Tenant) -> None:
    """An id of somebody else behaves exactly like one that never was: same status, same words."""
    other = await gateway.tenant()
    theirs = await gateway.chat(tenant, model=other.endpoint_id)
    nobodys = await gateway.chat(tenant, model="ep_aaaaaaaaaaaa")
    is_error(gateway, theirs, 404, "not_found_error", "model_not_found", "model")
    assert theirs.json["detail"].replace(other.endpoint_id, "X") == nobodys.json["detail"].replace(
        "ep_aaaaaaaaaaaa", "X"
    )
    assert (await gateway.get(f"/v1/models/{other.endpoint_id}", tenant.key)).status == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "kind", "code"),
    [
        ("GET", "/", 404, "not_found_error", "route_not_found"),
        ("GET", "/v1", 404, "not_found_error", "route_not_found"),
        ("GET", "/v1/tasks/", 404, "not_found_error", "route_not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found_error", "route_not_found"),
        ("GET", "/metrics", 404, "not_found_error", "route_not_found"),
        ("GET", "/v1/chat/completions", 405, "invalid_request_error", "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "invalid_request_error", "method_not_allowed"),
        ("PUT", "/v1/embeddings", 405, "invalid_request_error", "method_not_allowed"),
    ],
)
async def test_unknown_routes_and_methods(
    gateway: Gateway, tenant: Tenant, method: str, path: str, status: int, kind: str, code: str
) -> None:
    """Never a redirect: 404 for a path, 405 with Allow for a method, both in the common body."""
    answer = await ask(gateway.settings.port, method, path, key=tenant.key)
    headers = is_error(gateway, answer, status, kind, code)
    assert ("allow" in headers) == (status == 405)


@pytest.mark.parametrize("headers", [{}, {"Expect": "tea"}, {"Content-Length": "99999999"}], ids=lambda h: str([*h]))
async def test_no_path_of_a_stranger_becomes_a_label(gateway: Gateway, headers: dict[str, str]) -> None:
    """Metrics know our routes only, however a request is refused: their number is not in a stranger's hand."""
    stranger = f"/stranger-{uuid4().hex}"
    answer = await ask(gateway.settings.port, "GET", stranger, headers=headers)
    assert answer.status in (401, 404, 417)
    await asyncio.sleep(1.2)  # a worker publishes its counts twice a second
    page = await ask(gateway.settings.effective_admin_port, "GET", "/metrics")
    assert b'route="unknown"' in page.body
    assert stranger.encode() not in page.body


async def test_endpoints_that_cannot_answer(gateway: Gateway) -> None:
    """Seed 409; stopped 503 without hope; starting 503 with Retry-After; none of them is listed."""
    tenant = await gateway.tenant()
    expected = {
        EndpointStatus.SEED: (409, "conflict_error", "seed_endpoint"),
        EndpointStatus.STOPPED: (503, "service_unavailable_error", "endpoint_not_ready"),
        EndpointStatus.FAILED: (503, "service_unavailable_error", "endpoint_not_ready"),
        EndpointStatus.STARTING: (503, "service_unavailable_error", "endpoint_not_ready"),
        EndpointStatus.DEPLOYING: (503, "service_unavailable_error", "endpoint_not_ready"),
    }
    # Nobody answers there: else the platform would bring up those that are on their way.
    nowhere = ["http://127.0.0.1:9"]
    made = {status: (await gateway.endpoint(tenant.org_id, status=status, urls=nowhere))[0] for status in expected}
    last, _ = await gateway.endpoint(tenant.org_id)
    await gateway.wait_visible(last, tenant.key)
    for status, (http, kind, code) in expected.items():
        for stream in (False, True):
            answer = await gateway.chat(tenant, model=made[status], stream=stream)
            headers = is_error(gateway, answer, http, kind, code, "model")
            if status in (EndpointStatus.STARTING, EndpointStatus.DEPLOYING):
                assert 1 <= int(headers["retry-after"]) <= 30
                assert headers.get("x-should-retry") != "false"
            else:
                assert headers["x-should-retry"] == "false"
    listed = (await gateway.get("/v1/models", tenant.key)).json
    assert [model["id"] for model in listed["data"]] == [tenant.endpoint_id, last]


async def test_an_operator_stops_starts_and_removes(gateway: Gateway) -> None:
    """Within a second every worker obeys: stopped 503, started 200, removed 404; what runs goes on to its end."""
    tenant = await gateway.tenant()
    running = asyncio.create_task(gateway.chat(tenant, stream=True, sim={"tokens": 80, "itl_ms": 25}))
    await asyncio.sleep(0.3)
    for event, status, code in (
        ("stop", 503, "endpoint_not_ready"),
        ("start", 200, None),
        ("remove", 404, "model_not_found"),
    ):
        await gateway.drive(tenant.endpoint_id, event)
        await asyncio.sleep(0.5)
        for _ in range(8):
            answer = await gateway.chat(tenant, max_tokens=1)
            assert answer.status == status
            assert code is None or answer.code == code
        listed = (await gateway.get("/v1/models", tenant.key)).json["data"]
        assert bool(listed) == (status == 200)
    assert (await running).events[-1] == "[DONE]"
    assert (await gateway.receipt((await running).request_id)).charged_nanos > 0


async def test_an_endpoint_without_a_price_is_never_served(gateway: Gateway) -> None:
    """Work without a price is not let in."""
    tenant = await gateway.tenant()
    unpriced, _ = await gateway.endpoint(tenant.org_id, rates=None)
    await gateway.wait_visible(unpriced, tenant.key)
    answer = await gateway.chat(tenant, model=unpriced, tag="unpriced")
    is_error(gateway, answer, 503, "service_unavailable_error", "endpoint_not_ready", "model")
    assert await gateway.sim_records(tag="unpriced") == []


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("400", 400, "input_refused"),
        ("429", 503, "endpoint_overloaded"),
        ("500", 502, "backend_error"),
        ("502", 502, "backend_error"),
        ("503", 503, "endpoint_overloaded"),
        ("html", 502, "backend_error"),
        ("empty", 502, "backend_error"),
        ("malformed_chunk", 502, "backend_error"),
    ],
)
async def test_what_a_failing_backend_looks_like(gateway: Gateway, fault: str, status: int, code: str) -> None:
    """Every way a backend fails becomes one of our own sentences, and nothing is charged."""
    tenant = await gateway.tenant()  # of its own: replicas that failed are avoided for a moment
    kinds = {400: "invalid_request_error", 502: "server_error", 503: "service_unavailable_error"}
    answer = await gateway.chat(tenant, sim={"fail": fault})
    param = "model" if status == 503 else None
    headers = is_error(gateway, answer, status, kinds[status], code, param)
    if status == 503:
        assert 1 <= int(headers["retry-after"]) <= 30
    receipt = await gateway.receipt(answer.request_id)
    assert (receipt.charged_nanos, receipt.transfers) == (0, ())


async def test_over_the_deadline_is_504(gateway: Gateway) -> None:
    """The endpoint's deadline ends a whole answer with 504, uncharged, and the backend's work with it."""
    tenant = await gateway.tenant(deadline_s=1.0)
    answer = await gateway.chat(tenant, tag="late", sim={"fail": "hang_before_head"})
    is_error(gateway, answer, 504, "server_error", "deadline_exceeded")
    record = await gateway.sim_record(tag="late", state="cancelled")
    assert record["disconnected"]
    assert (await gateway.receipt(answer.request_id)).charged_nanos == 0


async def test_a_body_over_the_limit_is_413(gateway: Gateway, tenant: Tenant) -> None:
    """30 MB are refused from their head on: nobody has to send them."""
    async with asyncio.timeout(20), connected(gateway.settings.port) as (reader, writer):
        head = request_bytes("POST", CHAT, key=tenant.key, body=b"", headers={}).replace(
            b"Content-Length: 0", b"Content-Length: 31457280"
        )
        writer.write(head)
        answer = await read_answer(reader)
    is_error(gateway, answer, 413, "invalid_request_error", "body_too_large")


async def test_the_order_of_precedence(gateway: Gateway) -> None:
    """401, 403, 400, 404, 409, 503, 402: of several faults the client always hears the same one."""
    poor = await gateway.tenant(credit_nanos=0)
    seed, _ = await gateway.endpoint(poor.org_id, status=EndpointStatus.SEED)
    stopped, _ = await gateway.endpoint(poor.org_id, status=EndpointStatus.STOPPED)
    last, _ = await gateway.endpoint(poor.org_id)
    await gateway.wait_visible(last, poor.key)
    _, reader_key = await gateway.key(poor.org_id, scope=Scope.READ)
    wrong_and_unknown = {"model": "ep_unknown", "messages": HELLO, "temperature": 9}
    for key, body, status, code in (
        ("pareta_sk_nobody", b"garbage", 401, "invalid_api_key"),
        (reader_key, b"garbage", 403, "forbidden"),
        (poor.key, wrong_and_unknown, 400, "temperature_invalid"),
        (poor.key, {"model": "ep_unknown", "messages": HELLO}, 404, "model_not_found"),
        (poor.key, {"model": seed, "messages": HELLO}, 409, "seed_endpoint"),
        (poor.key, {"model": stopped, "messages": HELLO}, 503, "endpoint_not_ready"),
        (poor.key, {"model": last, "messages": HELLO}, 402, "insufficient_credits"),
    ):
        answer = await gateway.post(CHAT, key, body)
        assert (answer.status, answer.code) == (status, code)


async def test_limits_say_so(gateway: Gateway) -> None:
    """Requests per minute: x-ratelimit headers count down, then 429 with Retry-After, then the clients recover."""
    tenant = await gateway.tenant(limits=Limits(requests_per_minute=3))
    for remaining in (2, 1, 0):
        answer = await gateway.chat(tenant, max_tokens=2)
        assert answer.status == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "3"
        assert answer.headers["x-ratelimit-remaining-requests"] == str(remaining)
        assert answer.headers["x-ratelimit-reset-requests"]
    answer = await gateway.chat(tenant, max_tokens=2)
    headers = is_error(gateway, answer, 429, "rate_limit_error", "rate_limited")
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(headers["retry-after"]) <= 30
    _, second_key = await gateway.key(tenant.org_id)
    assert (await gateway.post(CHAT, second_key, chat_body(tenant))).status == 200, (
        "the limit is the key's, not the org's"
    )


async def test_an_organizations_limit_covers_all_its_keys(gateway: Gateway) -> None:
    """Two keys share the organization's requests per minute."""
    tenant = await gateway.tenant(org_limits=Limits(requests_per_minute=2))
    _, second_key = await gateway.key(tenant.org_id)
    keys = [tenant.key, second_key, tenant.key]
    answers = [await gateway.post(CHAT, key, chat_body(tenant, max_tokens=2)) for key in keys]
    assert [answer.status for answer in answers] == [200, 200, 429]


async def test_tokens_per_minute(gateway: Gateway) -> None:
    """A request is charged its estimate first; what it did not use comes back when it is settled."""
    tenant = await gateway.tenant(limits=Limits(tokens_per_minute=1000))
    slow = asyncio.create_task(gateway.chat(tenant, max_tokens=800, sim={"tokens": 10, "ttft_ms": 1000}))
    await asyncio.sleep(0.5)
    second = await gateway.chat(tenant, max_tokens=800, sim={"tokens": 10})
    headers = is_error(gateway, second, 429, "rate_limit_error", "rate_limited")
    assert int(headers["retry-after"]) >= 1
    assert int(headers["x-ratelimit-remaining-tokens"]) < 200
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert (await slow).status == 200
    async with asyncio.timeout(5):  # the refund travels behind the answer; refilling alone would take 36 s
        while (await gateway.chat(tenant, max_tokens=800, sim={"tokens": 10})).status != 200:
            await asyncio.sleep(0.05)


async def test_tokens_that_were_used_do_not_come_back(gateway: Gateway) -> None:
    """A request that is estimated at more than the whole limit takes the limit, and gives back only what it left."""
    tenant = await gateway.tenant(limits=Limits(tokens_per_minute=1000))
    assert (await gateway.chat(tenant, sim={"tokens": 600})).status == 200
    await gateway.wait_quiet()
    is_error(gateway, await gateway.chat(tenant), 429, "rate_limit_error", "rate_limited")


async def test_concurrent_requests(gateway: Gateway) -> None:
    """One more than the ceiling is 429; when one ends, the next is let in."""
    tenant = await gateway.tenant(limits=Limits(concurrent=2))
    slow = {"ttft_ms": 1500, "tokens": 2}
    running = [asyncio.create_task(gateway.chat(tenant, sim=slow)) for _ in range(2)]
    await asyncio.sleep(0.7)
    third = await gateway.chat(tenant)
    headers = is_error(gateway, third, 429, "rate_limit_error", "rate_limited")
    assert int(headers["retry-after"]) >= 1
    assert [answer.status for answer in await asyncio.gather(*running)] == [200, 200]
    async with asyncio.timeout(5):
        while (await gateway.chat(tenant)).status != 200:
            await asyncio.sleep(0.05)


async def test_a_revoked_key_stops_within_a_second(gateway: Gateway, tenant: Tenant) -> None:
    """On every worker, on kept connections as on new ones; a stream under way ends too."""
    key_id, key = await gateway.key(tenant.org_id)
    for _ in range(12):
        assert (await gateway.get("/v1/models", key)).status == 200
    body = chat_body(tenant, stream=True, sim={"tokens": 3000, "itl_ms": 10})
    stream = asyncio.create_task(gateway.post(CHAT, key, body))
    async with asyncio.timeout(20), connected(gateway.settings.port) as (reader, writer):
        writer.write(request_bytes("GET", "/v1/models", key=key))
        assert (await read_answer(reader)).status == 200
        await gateway.revoke(key_id)
        await asyncio.sleep(1.0)
        writer.write(request_bytes("GET", "/v1/models", key=key))
        assert (await read_answer(reader)).status == 401
    for _ in range(12):
        answer = await gateway.get("/v1/models", key)
        assert (answer.status, answer.code) == (401, "invalid_api_key")
    async with asyncio.timeout(5):
        ended = await stream
    assert ended.events[-1] != "[DONE]"
