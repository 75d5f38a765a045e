"""The driver ``kubernetes``: a Deployment and a Service for each model that is wanted, through the API server.

Floor: control. The registry's entry is ``{"namespace", "image", "args", "env", "resources", "replicas", "port",
"pod"}``: what is asked for is made from it (`manifests`, pure) and applied on the server's side, so that a repeat
changes nothing and fields of others are left alone. Objects bear a label, and only those are ever removed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import orjson

from gateway.control.deploys.drivers import CannotServe
from gateway.control.deploys.process import command_of, name_of
from gateway.control.deploys.store import Serving, ServingBackend

MANAGER: Final = "pareta-gateway"
MANAGED: Final = {"app.kubernetes.io/managed-by": MANAGER}
NAME: Final = "pareta.ai/engine"
ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
APPLY: Final = "application/apply-patch+yaml"
CALL_S: Final = 15.0
ATTEMPTS: Final = 4
TIDY_EVERY_S: Final = 15.0
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
_AGAIN: Final = frozenset({409, 429, 500, 502, 503, 504})
log = logging.getLogger("pareta.kubernetes")


class ApiFailed(Exception):
    """The API server refused or did not answer. The text is for operators."""


@dataclass(frozen=True, slots=True)
class ApiServer:
    """Where the API server is, and who we are to it. The token is read anew for each call: it is rotated."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def of_this_pod(cls) -> ApiServer | None:
        """The one of the cluster that this process runs in, if it does."""
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            return None
        address = f"[{host}]" if ":" in host else host
        return cls(f"https://{address}:{port}", ACCOUNT / "token", ACCOUNT / "ca.crt")


class Kubernetes:
    """Engines in a cluster.

    Args:
        server: its API server; None if there is none.
        linger_s: how long an engine that nobody wants is kept.
    """

    moves = False

    def __init__(self, server: ApiServer | None, *, linger_s: float) -> None:
        self._server = server
        self._linger_s = linger_s
        self._wanted_s: dict[str, float] = {}
        self._namespaces: set[str] = set()
        self._tidy_s = 0.0

    async def addresses(self, serving: Serving) -> Sequence[ServingBackend]:
        """Apply the model's objects; the address of its Service."""
        if self._server is None:
            raise CannotServe("This model has no capacity at the moment.")
        name, namespace = f"pareta-{name_of(serving.model_id)}", namespace_of(serving)
        self._wanted_s[name] = time.monotonic()
        self._namespaces.add(namespace)
        try:
            deployment, service = manifests(name, serving)
            async with _Session(self._server) as api:
                await api.apply(f"/apis/apps/v1/namespaces/{quote(namespace)}/deployments/{name}", deployment)
                await api.apply(f"/api/v1/namespaces/{quote(namespace)}/services/{name}", service)
        except (ApiFailed, KeyError, TypeError, ValueError) as error:
            log.error("The engine %s cannot be deployed: %s", name, error)
            raise CannotServe("The model could not be started.") from None
        port = service["spec"]["ports"][0]["port"]
        options = serving.spec.get("options", {})
        return [ServingBackend(f"http://{name}.{namespace}.svc:{port}", "openai", options)]

    async def keep(self, wanted: Sequence[Serving]) -> None:
        """Remove what bears our label and has not been wanted for a while."""
        if self._server is None:
            return
        now_s = time.monotonic()
        for serving in wanted:
            self._wanted_s[f"pareta-{name_of(serving.model_id)}"] = now_s
            self._namespaces.add(namespace_of(serving))
        if now_s < self._tidy_s:
            return
        self._tidy_s = now_s + min(TIDY_EVERY_S, max(self._linger_s, 0.1))
        try:
            async with _Session(self._server) as api:
                for namespace in self._namespaces:
                    await self._tidy(api, namespace, now_s)
        except ApiFailed as error:
            log.warning("Engines in the cluster could not be looked at: %s", error)

    async def _tidy(self, api: _Session, namespace: str, now_s: float) -> None:
        base = f"/apis/apps/v1/namespaces/{quote(namespace)}/deployments"
        selector = ",".join(f"{name}={value}" for name, value in MANAGED.items())
        listed = await api.ask("GET", f"{base}?labelSelector={quote(selector)}")
        for item in listed.get("items", []):
            name = item["metadata"]["name"]
            # One that a predecessor of this process has made is given the same time.
            if now_s - self._wanted_s.setdefault(name, now_s) > self._linger_s:
                await api.ask("DELETE", f"{base}/{name}?propagationPolicy=Background", may_be_gone=True)
                await api.ask("DELETE", f"/api/v1/namespaces/{quote(namespace)}/services/{name}", may_be_gone=True)
                self._wanted_s.pop(name, None)


def namespace_of(serving: Serving) -> str:
    """Where a model's objects live."""
    return str(serving.spec.get("namespace", "default"))


def manifests(name: str, serving: Serving) -> tuple[dict[str, Any], dict[str, Any]]:
    """The Deployment and the Service of a model; pure.

    Raises:
        KeyError, TypeError, ValueError: the registry's entry lacks something.
    """
    spec = serving.spec
    port = int(spec.get("port", 8000))
    labels = {**MANAGED, NAME: name}
    options: Mapping[str, Any] = spec.get("options", {})
    container: dict[str, Any] = {
        "name": "engine",
        "image": spec["image"],
        "args": command_of(spec.get("args", []), port, serving.upstream),
        "env": [{"name": key, "value": str(value)} for key, value in sorted(spec.get("env", {}).items())],
        "ports": [{"containerPort": port, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": options.get("health_path", "/health"), "port": "http"}},
        "resources": spec.get("resources", {}),
    }
    pod = {**spec.get("pod", {}), "containers": [container]}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": int(spec.get("replicas", 1)),
            "selector": {"matchLabels": {NAME: name}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {NAME: name}, "ports": [{"name": "http", "port": port, "targetPort": "http"}]},
    }
    return deployment, service


class _Session:
    """Calls of the API server: in time, and again where that helps."""

    def __init__(self, server: ApiServer) -> None:
        self._server = server
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> _Session:
        headers = {"Accept": "application/json", "User-Agent": MANAGER}
        try:
            if self._server.token_file is not None:
                token = await asyncio.to_thread(self._server.token_file.read_text)
                headers["Authorization"] = f"Bearer {token.strip()}"
            context: ssl.SSLContext | bool = True
            if self._server.ca_file is not None:
                context = await asyncio.to_thread(ssl.create_default_context, cafile=str(self._server.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise ApiFailed(f"the account of this pod cannot be read: {type(error).__name__}") from None
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=context),
            timeout=aiohttp.ClientTimeout(total=CALL_S),
            headers=headers,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._http is not None:
            await self._http.close()

    async def apply(self, path: str, manifest: Mapping[str, Any]) -> Mapping[str, Any]:
        """Server-side apply: the fields that are told become ours, others stay as they are."""
        return await self.ask("PATCH", f"{path}?fieldManager={MANAGER}&force=true", body=orjson.dumps(manifest))

    async def ask(
        self, method: str, path: str, *, body: bytes | None = None, may_be_gone: bool = False
    ) -> Mapping[str, Any]:
        """One call.

        Raises:
            ApiFailed.
        """
        assert self._http is not None
        said = "no answer"
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(0.2 * 2**attempt)
            try:
                async with self._http.request(
                    method,
                    self._server.url.rstrip("/") + path,
                    data=body,
                    headers={"Content-Type": APPLY} if body is not None else {},
                    allow_redirects=False,
                ) as answer:
                    content = await _read(answer)
                    if answer.status < 300:
                        found: Mapping[str, Any] = orjson.loads(content)
                        return found
                    if answer.status == 404 and may_be_gone:
                        return {}
                    words = content[:300].decode("utf-8", "replace")
                    said = f"{method} {path.partition('?')[0]}: {answer.status} {words}"
                    if answer.status not in _AGAIN:
                        break
            except (aiohttp.ClientError, TimeoutError, OSError, orjson.JSONDecodeError) as error:
                said = type(error).__name__
        raise ApiFailed(said)


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for piece in answer.content.iter_any():
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise ApiFailed("the answer is too large")
    return bytes(data)
