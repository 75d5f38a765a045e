"""Other people's clients against a real gateway: `pareta` 0.1.0 and 0.3.1, and openai's JavaScript client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.core.state import EndpointStatus, Limits, Scope
from tests.contract.expect import REQUEST_ID
from tests.services import run_apart
from tests.system.harness import UNICODE_MODEL, Gateway, Tenant

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv" / "clients"
HELLO = [{"role": "user", "content": "Hello there"}]
PARETA = pytest.mark.parametrize("version", ["0.1.0", "0.3.1"])


def pareta(gateway: Gateway, version: str, *calls: dict[str, Any]) -> list[dict[str, Any]]:
    """Let the SDK make calls; one outcome each."""
    folder = CLIENTS / f"pareta-{version}"
    if not folder.is_dir():
        pytest.fail(f"pareta {version} is not installed: run `sh .ci/set-up clients` (make test does).")
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "clients" / "pareta_calls.py")],
        input=json.dumps({"base_url": gateway.base_url, "calls": calls}),
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    assert answer["version"] == version
    return list(answer["outcomes"])


@PARETA
def test_pareta_chats(gateway: Gateway, tenant: Tenant, version: str) -> None:
    """Whole and streamed, sync and async: the same text for the same seed, and the documented fields."""
    arguments = {"model": tenant.endpoint_id, "messages": HELLO, "seed": 11}
    whole, stream, async_whole, async_stream, models = pareta(
        gateway,
        version,
        *(
            {"do": do, "key": tenant.key, "arguments": arguments}
            for do in ("chat", "stream", "async chat", "async stream", "models")
        ),
    )
    assert whole["text"]
    assert whole["model"] == tenant.endpoint_id
    assert whole["total_tokens"] > 0
    assert whole["finish_reason"] in ("stop", "length")
    assert [stream["text"], async_whole["text"], async_stream["text"]] == [whole["text"]] * 3
    assert models["models"][0][0] == tenant.endpoint_id
    assert isinstance(models["models"][0][1], int)
    assert models["models"][0][2] == "pareta"


@PARETA
def test_pareta_loses_no_awkward_text(gateway: Gateway, version: str) -> None:
    """Its line reader cuts at U+2028, U+2029 and U+0085; nothing is lost, because none of them is sent raw."""
    tenant = run_apart(gateway.tenant(model=UNICODE_MODEL))
    arguments = {"model": tenant.endpoint_id, "messages": HELLO, "seed": 3, "sim": {"tokens": 300}}
    whole, stream = pareta(
        gateway, version, *({"do": do, "key": tenant.key, "arguments": arguments} for do in ("chat", "stream"))
    )
    assert stream["text"] == whole["text"]
    assert all(character in stream["text"] for character in "\u2028\u2029\u0085")


@PARETA
def test_pareta_errors(gateway: Gateway, version: str) -> None:
    """Each refusal is the right exception with our sentence, its status and the request id."""
    tenant = run_apart(gateway.tenant(limits=Limits(requests_per_minute=1)))
    poor = run_apart(gateway.tenant(credit_nanos=0))
    seed, _ = run_apart(gateway.endpoint(poor.org_id, status=EndpointStatus.SEED))
    stopped, _ = run_apart(gateway.endpoint(poor.org_id, status=EndpointStatus.STOPPED))
    last, _ = run_apart(gateway.endpoint(poor.org_id))
    run_apart(gateway.wait_visible(last, poor.key))
    _, reader = run_apart(gateway.key(tenant.org_id, scope=Scope.READ))
    spent = run_apart(gateway.chat(tenant, max_tokens=1))
    assert spent.status == 200
    cases: list[tuple[str, str, dict[str, Any], str, int]] = [
        ("pareta_sk_wrong", "m", {}, "AuthenticationError", 401),
        (reader, "m", {}, "PermissionDeniedError", 403),
        (poor.key, "nothing", {}, "NotFoundError", 404),
        (poor.key, last, {"temperature": 7}, "BadRequestError", 400),
        (poor.key, last, {}, "InsufficientCreditsError", 402),
        (poor.key, seed, {}, "ConflictError", 409),
        (poor.key, stopped, {}, "EndpointNotReadyError", 503),
        (tenant.key, tenant.endpoint_id, {}, "RateLimitError", 429),
    ]
    calls = [
        {"do": do, "key": key, "arguments": {"model": model, "messages": HELLO, **fields}}
        for key, model, fields, *_ in cases
        for do in ("chat", "stream")
    ]
    outcomes = pareta(gateway, version, *calls)
    expected = [case for case in cases for _ in range(2)]
    for outcome, (*_, name, status) in zip(outcomes, expected, strict=True):
        assert (outcome["error"], outcome["status_code"]) == (name, status), outcome
        assert outcome["detail"]
        assert outcome["detail"] in outcome["message"]
        assert REQUEST_ID.fullmatch(outcome["request_id"])


@PARETA
def test_pareta_notices_a_broken_stream(gateway: Gateway, version: str) -> None:
    """A failure in the middle is APIConnectionError: no IndexError in the user's loop, no silent truncation."""
    tenant = run_apart(gateway.tenant())
    arguments = {
        "model": tenant.endpoint_id,
        "messages": HELLO,
        "sim": {"tokens": 9, "fail": "close_mid_stream", "after_tokens": 3},
    }
    [outcome] = pareta(gateway, version, {"do": "stream", "key": tenant.key, "arguments": arguments})
    assert outcome["error"] == "APIConnectionError"


@PARETA
def test_pareta_retries_a_broken_backend_and_pays_once(gateway: Gateway, version: str) -> None:
    """Its default retries meet a backend that fails once: one answer, one charge."""
    tenant = run_apart(gateway.tenant(simulators=gateway.simulators[:1], flat_nanos=7_000))
    run_apart(gateway.sim(0, "POST", "/sim/faults", [{"fail": "500", "times": 1}]))
    arguments = {"model": tenant.endpoint_id, "messages": HELLO}
    [outcome] = pareta(gateway, version, {"do": "chat", "key": tenant.key, "arguments": arguments, "max_retries": 2})
    assert outcome["text"]
    run_apart(gateway.wait_quiet())
    assert run_apart(gateway.account(tenant.org_id)).spent_nanos == 7_000


@pytest.fixture(scope="session")
def node_client() -> Path:
    """A folder with openai's JavaScript client, installed once from the lock file."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node or npm is not installed, so openai's JavaScript client is not tried.")
    source, folder = ROOT / "tests" / "clients" / "node", CLIENTS / "node"
    stamp = folder / "installed.json"
    lock = (source / "package-lock.json").read_text()
    if not stamp.exists() or stamp.read_text() != lock:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(source / name, folder / name)
        run = subprocess.run(
            [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        if run.returncode != 0:
            pytest.skip("npm cannot install openai's JavaScript client (is the package registry reachable?).")
        stamp.write_text(lock)
    return folder


def test_the_javascript_client(gateway: Gateway, node_client: Path) -> None:
    """openai for JavaScript: whole, streamed, broken, refused, aborted, models and embeddings."""
    tenant = run_apart(gateway.tenant())
    stopped, _ = run_apart(gateway.endpoint(tenant.org_id, status=EndpointStatus.STOPPED))
    last, _ = run_apart(gateway.endpoint(tenant.org_id))
    run_apart(gateway.wait_visible(last, tenant.key))
    asked = {
        "baseURL": f"{gateway.base_url}/v1",
        "apiKey": tenant.key,
        "model": tenant.endpoint_id,
        "stopped": stopped,
        "folder": str(node_client),
    }
    run = subprocess.run(
        [str(shutil.which("node")), str(ROOT / "tests" / "clients" / "node" / "calls.mjs")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["whole"]["text"]
    assert seen["whole"]["model"] == tenant.endpoint_id
    assert REQUEST_ID.fullmatch(seen["whole"]["requestId"])
    assert seen["stream"]["text"] == seen["whole"]["text"]
    assert seen["broken"]["text"]
    assert seen["broken"]["error"] == {"name": "APIError", "code": "backend_error", "type": "server_error"}
    for name, kind, status, code in (
        ("badKey", "AuthenticationError", 401, "invalid_api_key"),
        ("unknown", "NotFoundError", 404, "model_not_found"),
        ("invalid", "BadRequestError", 400, "temperature_invalid"),
        ("stopped", "InternalServerError", 503, "endpoint_not_ready"),
    ):
        refusal = seen[name]
        assert (refusal["name"], refusal["status"], refusal["code"]) == (kind, status, code)
        assert REQUEST_ID.fullmatch(refusal["requestID"])
    assert [model["id"] for model in seen["models"]] == [tenant.endpoint_id, last]
    # What had been read before the abort may still come; the engine stops.
    assert 3 <= seen["aborted"]["deltas"] < 100
    assert run_apart(gateway.sim_record(tag="javascript abort", state="cancelled"))["completion_tokens"] < 1000
    assert seen["vectors"] == [64, 64]
