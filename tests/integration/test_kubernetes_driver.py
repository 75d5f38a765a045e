"""The Kubernetes driver against a small API server that is as strict as the real one about what we use.

No cluster was at hand: what a real one does beyond these rules (admission, quotas, scheduling) was not tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web

from gateway.control.deploys.drivers import CannotServe
from gateway.control.deploys.kubernetes import ApiServer, Kubernetes, manifests
from gateway.control.deploys.process import name_of
from gateway.control.deploys.store import Serving

TOKEN = "cluster-token"
SPEC: dict[str, Any] = {
    "namespace": "serving",
    "image": "vllm/vllm-openai:v0.11.0",
    "args": ["--model", "{model}", "--port", "{port}"],
    "env": {"HF_HOME": "/models"},
    "resources": {"limits": {"nvidia.com/gpu": "1"}},
    "pod": {"nodeSelector": {"gpu": "h200"}},
    "model": "org/Real-7B",
    "options": {"health_path": "/health"},
}
SERVING = Serving("org/Real-7B", "kubernetes", SPEC, 8192, 1024)
NAME = f"pareta-{name_of('org/Real-7B')}"


@dataclass
class Cluster:
    """What the API server holds, and what it was asked."""

    url: str = ""
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    failing: list[int] = field(default_factory=list)

    async def serve(self, request: web.Request) -> web.Response:
        self.calls.append((request.method, request.path))
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._status(401, "Unauthorized")
        if self.failing:
            return self._status(self.failing.pop(0), "Conflict")
        parts = request.path.strip("/").split("/")
        kinds = {("apis", "apps", "v1"): ("deployments", "Deployment"), ("api", "v1"): ("services", "Service")}
        group = tuple(parts[: parts.index("namespaces")])
        if group not in kinds or parts[len(group) + 1] != "serving" or parts[len(group) + 2] != kinds[group][0]:
            return self._status(404, "NotFound")
        rest = parts[len(group) + 3 :]
        if request.method == "GET" and not rest:
            assert request.query["labelSelector"] == "app.kubernetes.io/managed-by=pareta-gateway"
            found = [one for path, one in self.objects.items() if f"/{kinds[group][0]}/" in path]
            return web.json_response({"kind": "List", "items": found})
        [name] = rest
        if request.method == "PATCH":
            if request.content_type != "application/apply-patch+yaml" or "fieldManager" not in request.query:
                return self._status(415, "UnsupportedMediaType")
            body = orjson.loads(await request.read())
            version = "/".join(group[1:])
            if (body["kind"], body["metadata"]["name"], body["apiVersion"]) != (kinds[group][1], name, version):
                return self._status(400, "BadRequest")
            if body["kind"] == "Deployment":
                wanted = body["spec"]["selector"]["matchLabels"]
                labels = body["spec"]["template"]["metadata"]["labels"]
                if not wanted.items() <= labels.items():
                    return self._status(422, "Invalid")
            status = 200 if request.path in self.objects else 201
            self.objects[request.path] = body
            return web.json_response(body, status=status)
        if request.method == "DELETE":
            if self.objects.pop(request.path, None) is None:
                return self._status(404, "NotFound")
            return web.json_response({"kind": "Status", "status": "Success"})
        return self._status(405, "MethodNotAllowed")

    @staticmethod
    def _status(code: int, reason: str) -> web.Response:
        return web.json_response({"kind": "Status", "status": "Failure", "reason": reason, "code": code}, status=code)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """The API server."""
    cluster = Cluster()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", cluster.serve)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    cluster.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield cluster
    await runner.cleanup()


@pytest.fixture
def server(cluster: Cluster, tmp_path: Path) -> ApiServer:
    """Where it is, with our token."""
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    return ApiServer(cluster.url, token)


async def test_a_model_becomes_a_deployment_and_a_service(cluster: Cluster, server: ApiServer) -> None:
    """Applied twice it is the same; the address is the Service's; no name tells the model."""
    driver = Kubernetes(server, linger_s=60)
    for _ in range(2):
        [backend] = await driver.addresses(SERVING)
    assert backend.url == f"http://{NAME}.serving.svc:8000"
    assert len(cluster.objects) == 2
    deployment = cluster.objects[f"/apis/apps/v1/namespaces/serving/deployments/{NAME}"]
    pod = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["args"] == ["--model", "org/Real-7B", "--port", "8000"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "1"}}
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": "http"}
    assert pod["nodeSelector"] == {"gpu": "h200"}
    assert "real" not in NAME.lower()


async def test_what_nobody_wants_is_removed_and_nothing_else(cluster: Cluster, server: ApiServer) -> None:
    """A while after the last endpoint has gone; one that a predecessor has left is given the same time."""
    driver = Kubernetes(server, linger_s=0.1)
    await driver.addresses(SERVING)
    await driver.keep([SERVING])
    assert len(cluster.objects) == 2
    await asyncio.sleep(0.3)
    await driver.keep([])
    assert cluster.objects == {}

    await driver.addresses(SERVING)
    successor = Kubernetes(server, linger_s=0.1)
    await successor.keep([Serving("org/Other", "kubernetes", {**SPEC, "model": "org/Other"}, 8192, 1024)])
    assert len(cluster.objects) == 2
    await asyncio.sleep(0.3)
    await successor.keep([])
    assert cluster.objects == {}


async def test_contention_is_tried_again_and_refusals_are_not(cluster: Cluster, server: ApiServer) -> None:
    """409 and 503 pass; 403 does not, and customers read no word of it."""
    driver = Kubernetes(server, linger_s=60)
    cluster.failing[:] = [409, 503]
    assert await driver.addresses(SERVING)
    cluster.failing[:] = [403]
    calls = len(cluster.calls)
    with pytest.raises(CannotServe) as failure:
        await driver.addresses(SERVING)
    assert len(cluster.calls) == calls + 1
    assert "serving" not in str(failure.value)
    with pytest.raises(CannotServe):
        await driver.addresses(Serving("org/NoImage", "kubernetes", {"namespace": "serving"}, 1, 1))
    with pytest.raises(CannotServe):
        await Kubernetes(None, linger_s=1).addresses(SERVING)


def test_manifests_are_the_same_each_time() -> None:
    """So that applying them again changes nothing."""
    assert manifests(NAME, SERVING) == manifests(NAME, SERVING)
