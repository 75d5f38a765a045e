"""Seed map E, G: metrics of endpoints, with both SDKs against a real gateway."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from gateway.control.database import session
from gateway.control.deploys import store
from gateway.core.state import EndpointStatus
from tests.seed import demo
from tests.seed.run import Outcome, block
from tests.services import run_apart
from tests.system.harness import MODEL, Gateway, Tenant

pytestmark = pytest.mark.usefixtures("catalog", "serving")
TASK = "support-ticket-triage"
BEST = demo.REAL[TASK][0]
DIMENSIONS = ("performance", "uptime", "cost", "quality", "activity")


@pytest.fixture(scope="module")
def serving(session_gateway: Gateway, catalog: None) -> None:
    """The simulators serve the best model of the task."""
    urls = [simulator.url for simulator in session_gateway.simulators]

    async def register() -> None:
        async with session(session_gateway.settings.database_url) as conn:
            await store.register(conn, BEST, "static", {"backends": urls, "model": MODEL}, max_output_tokens=1024)

    run_apart(register())


@pytest.fixture
def owner(gateway: Gateway) -> Tenant:
    """An organization of its own, with credit."""
    return run_apart(gateway.tenant())


@pytest.fixture
def run(gateway: Gateway, owner: Tenant, version: str) -> Any:
    """Run a block of the page with one SDK."""

    def runner(code: str, **given: Any) -> Outcome:
        return block(version, gateway.base_url, owner.key, code, **given)

    return runner


def good(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.out


def test_s080_s083_s097_metrics_tell_what_happened(run: Any) -> None:
    """After three calls: three latencies in order, exactly three flat rates, within two seconds of the last call."""
    out = good(
        run(
            """
            import time
            ep = pa.endpoints.deploy(task=task, wait=True)
            board = pa.tasks.leaderboard(task)
            row = next(m for m in board.models if m.name == ep.model)
            for n in range(3):
                pa.chat.completions.create(model=ep.id, messages=[{"role": "user", "content": "row"}], max_tokens=5)
            began = time.monotonic()
            metrics = pa.endpoints.metrics(ep.id)
            while metrics.cost()["requests"] < 3 and time.monotonic() - began < 30:
                time.sleep(0.05)
            out["seen_after"] = time.monotonic() - began
            for name in ("performance", "uptime", "cost", "quality", "activity"):
                out[name] = getattr(metrics, name)()
            out["rate"], out["baseline"] = row.cost_per_request_micro_usd, board.frontier.cost_per_request_micro_usd
            out["id"], out["frontier"] = ep.id, board.frontier.name
            """,
            task=TASK,
        )
    )
    for name in DIMENSIONS:
        assert (out[name]["endpoint_id"], out[name]["dimension"]) == (out["id"], name)
        assert out[name]["window"] == "7d"
        assert out[name]["from"] < out[name]["to"]
    cost = out["cost"]
    assert cost["total_micro_usd"] == 3 * out["rate"]
    assert cost["frontier_baseline_micro_usd"] == 3 * out["baseline"]
    assert cost["savings_micro_usd"] == 3 * (out["baseline"] - out["rate"])
    assert (cost["frontier_model"], cost["cost_per_request_micro_usd"]) == (out["frontier"], out["rate"])
    performance = out["performance"]
    assert 0 < performance["p50"] <= performance["p95"] <= performance["p99"]
    assert performance["p50"] == performance["p50_ms"]
    assert (performance["requests"], performance["errors"]) == (3, 0)
    assert out["activity"]["completion_tokens"] == 15
    assert out["activity"]["last_request_at"] <= time.time() + 1
    assert 0 < out["uptime"]["uptime"] <= 1
    assert (out["quality"]["quality_mean"], out["quality"]["windows"]) == (None, [])


async def test_an_endpoint_without_traffic_and_in_any_state(gateway: Gateway, owner: Tenant) -> None:
    """Stopped and seed endpoints have metrics: zero and null, never a refusal."""
    for status in (EndpointStatus.STOPPED, EndpointStatus.SEED, EndpointStatus.FAILED):
        endpoint_id, _ = await gateway.endpoint(owner.org_id, status=status)
        said = {name: (await gateway.get(f"/v1/endpoints/{endpoint_id}/{name}", owner.key)) for name in DIMENSIONS}
        assert {answer.status for answer in said.values()} == {200}
        assert said["cost"].json["total_micro_usd"] == said["cost"].json["frontier_baseline_micro_usd"] == 0
        assert said["performance"].json["p99"] is None
        assert said["activity"].json["last_request_at"] is None
        if status is EndpointStatus.SEED:
            assert said["uptime"].json["uptime"] is None


async def test_windows_groups_and_their_refusals(gateway: Gateway, owner: Tenant) -> None:
    """Hours and days up to 90 days, series by hour and day; unknown names are ignored, bad values 422."""
    await gateway.chat(owner, max_tokens=3, stream=True)
    async with asyncio.timeout(20):
        while not (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/activity", owner.key)).json["requests"]:
            await asyncio.sleep(0.05)
    for query in ("window=24h", "since=30d", "window=90d&whatever=1", "window=1h", "", "group_by=day"):
        answer = await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/cost?{query}", owner.key)
        assert answer.status == 200, (query, answer.json)
        assert answer.json["requests"] == 1, query
    for name in ("performance", "cost", "activity"):
        for by in ("hour", "day"):
            said = (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/{name}?group_by={by}", owner.key)).json
            [only] = said["series"]
            assert only["requests"] == 1
    performance = (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/performance", owner.key)).json
    assert 0 < performance["ttft_p50_ms"] <= performance["p50_ms"] * 1.05
    for query, param in (("window=91d", "window"), ("window=0h", "window"), ("since=x", "since"),
                         ("group_by=week", "group_by"), ("window=1h%00", "window")):  # fmt: skip
        answer = await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/cost?{query}", owner.key)
        assert (answer.status, answer.json["error"]["param"]) == (422, param), query


async def test_failed_calls_are_errors_and_cost_nothing(gateway: Gateway, owner: Tenant) -> None:
    """A call that its engine failed counts as an error, in no cost."""
    answer = await gateway.chat(owner, sim={"fail": "500"})
    assert answer.status >= 500
    async with asyncio.timeout(20):
        while True:
            said = (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/activity", owner.key)).json
            if said["errors"]:
                break
            await asyncio.sleep(0.05)
    assert (said["requests"], said["errors"]) == (0, 1)
    assert (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/cost", owner.key)).json["total_micro_usd"] == 0


async def test_another_organizations_metrics_are_not_there(gateway: Gateway, owner: Tenant) -> None:
    """404, as for an endpoint that does not exist."""
    stranger = await gateway.tenant()
    for name in DIMENSIONS:
        assert (await gateway.get(f"/v1/endpoints/{owner.endpoint_id}/{name}", stranger.key)).status == 404
        assert (await gateway.get(f"/v1/endpoints/ep_nothing/{name}", owner.key)).status == 404


async def test_an_outage_is_written_down_and_ends(gateway: Gateway, owner: Tenant) -> None:
    """An endpoint whose engine is gone is down until it answers again or is stopped."""
    endpoint_id, _ = await gateway.endpoint(owner.org_id, urls=["http://127.0.0.1:9"])
    async with asyncio.timeout(40):
        while True:
            said = (await gateway.get(f"/v1/endpoints/{endpoint_id}/uptime", owner.key)).json
            if said["incidents"]:
                break
            await asyncio.sleep(0.2)
    assert said["uptime"] < 1
    await gateway.drive(endpoint_id, "stop")
    async with asyncio.timeout(40), session(gateway.settings.database_url) as conn:
        while await conn.fetchval(
            "SELECT true FROM control.endpoint_outage WHERE endpoint_id = $1 AND to_at IS NULL", endpoint_id
        ):
            await asyncio.sleep(0.2)
