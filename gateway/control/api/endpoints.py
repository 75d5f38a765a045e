"""Endpoints: deploy as an event stream, look, start, stop, delete.

Floor: control. Contract: section 2.3. What is asked for is written down; `gateway.control.deploys.loop` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import web

from gateway.control.api.caller import Call, Handler, answer, claim_of
from gateway.control.catalog import store as catalog
from gateway.control.claims import ClaimDiffers
from gateway.control.deploys import store
from gateway.control.deploys.loop import DeployLoop
from gateway.control.deploys.store import UNDER_WAY, Deployed, NameTaken, QuotaReached
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.state import EndpointStatus

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store

RECOMMENDED: Final = "recommended"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_RESERVED: Final = frozenset({"auto", RECOMMENDED})
LOOK_EVERY_S: Final = 0.1
HEARTBEAT_S: Final = 10.0
VISIBLE_S: Final = 0.3
"""What workers need to hear that an endpoint is live, amply."""
_STAGES: Final[Mapping[str, tuple[int, str]]] = {
    "accepted": (5, "The deploy was accepted."),
    "allocating": (20, "Capacity is being allocated."),
    "starting": (60, "The model is starting."),
}
"""What is told of each stage: how far that is, in percent, and a sentence."""


class Endpoints:
    """The handlers.

    Args:
        public_url: the absolute root that customers reach us at.
        most: endpoints that an organization may have.
    """

    def __init__(self, database: Store, loop: DeployLoop, *, public_url: str, most: int) -> None:
        self._database = database
        self._loop = loop
        self._public_url = public_url
        self._most = most

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {
            ("GET", "/v1/endpoints"): self.list,
            ("POST", "/v1/endpoints"): self.deploy,
            ("GET", "/v1/endpoints/{endpoint_id}"): self.retrieve,
            ("DELETE", "/v1/endpoints/{endpoint_id}"): self.delete,
            ("POST", "/v1/endpoints/{endpoint_id}/start"): self.start,
            ("POST", "/v1/endpoints/{endpoint_id}/stop"): self.stop,
        }

    async def list(self, call: Call) -> web.StreamResponse:
        """All of the caller's organization: a bare array, the oldest first."""
        async with self._database.connection() as conn:
            found = await store.list_of(conn, call.org_id)
        return answer([self._record(one) for one in found])

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """One."""
        async with self._database.connection() as conn:
            return answer(self._record(await self._found(conn, call)))

    async def stop(self, call: Call) -> web.StreamResponse:
        """Take it out of service, at once."""
        async with self._database.connection() as conn:
            endpoint = await self._own(conn, call)
            await store.change_status(
                conn,
                endpoint.id,
                EndpointStatus.STOPPED,
                # One that sleeps is stopped for good by this.
                only_from=(EndpointStatus.LIVE, EndpointStatus.STOPPED, *UNDER_WAY),
            )
            now = await self._found(conn, call)
        return answer({"ok": True, **self._record(now)})

    async def start(self, call: Call) -> web.StreamResponse:
        """Bring it up again: 202, and the loop does it; one that is live or on its way stays as it is."""
        async with self._database.connection() as conn:
            endpoint = await self._own(conn, call)
            moved = await store.change_status(
                conn,
                endpoint.id,
                EndpointStatus.STARTING,
                only_from=(EndpointStatus.STOPPED, EndpointStatus.FAILED),
            )
            now = await self._found(conn, call)
        if moved:
            self._loop.rouse()
        return answer({"ok": True, **self._record(now)}, status=202 if moved else 200)

    async def delete(self, call: Call) -> web.StreamResponse:
        """Remove it for good."""
        async with self._database.connection() as conn:
            endpoint = await self._found(conn, call)
            await store.remove(conn, call.org_id, endpoint.id)
        return web.Response(status=204)

    # -- deploy ----------------------------------------------------------------------------------------------

    async def deploy(self, call: Call) -> web.StreamResponse:
        """Write the wish down, and tell how it goes until it is live or failed."""
        endpoint = await self._accepted(call, await call.json())
        self._loop.rouse()
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        await response.prepare(call.request)
        # A client that leaves changes nothing: the endpoint is in its list.
        with contextlib.suppress(ConnectionError):
            await self._tell(response, call, endpoint)
        return response

    async def _accepted(self, call: Call, body: Mapping[str, Any]) -> Deployed:
        task_id, wanted, name = body.get("task"), body.get("model", RECOMMENDED), body.get("name")
        if not isinstance(task_id, str) or not task_id:
            raise Refused(errors.unprocessable("task", "must be the id of a task, as text"))
        if not isinstance(wanted, str) or not wanted:
            raise Refused(errors.unprocessable("model", "must be the name of a model on the task's board, as text"))
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name) and name not in _RESERVED):
            raise Refused(
                errors.unprocessable("name", "must be 1 to 63 letters, digits, _ or -, and not auto or recommended")
            )
        if name is not None and name.startswith("ep_"):
            raise Refused(errors.unprocessable("name", "must not start with ep_, which generated ids do"))
        async with self._database.connection() as conn:
            if await catalog.task(conn, task_id) is None:
                raise Refused(errors.task_not_found(task_id))
            model = await catalog.model_named(conn, task_id, None if wanted == RECOMMENDED else wanted)
            if model is None:
                raise Refused(errors.unknown_model(wanted))
            serving = await store.serving_of(conn, model.model_id)
            if serving is None:
                raise Refused(errors.no_capacity())
            try:
                return await store.create(
                    conn,
                    call.org_id,
                    task_id=task_id,
                    alias=model.alias,
                    name=name,
                    serving=serving,
                    most=self._most,
                    claim=claim_of(call, orjson.dumps([task_id, wanted, name])),
                )
            except ClaimDiffers:
                raise Refused(errors.idempotency_mismatch()) from None
            except NameTaken:
                raise Refused(errors.name_taken(name or "")) from None
            except QuotaReached:
                raise Refused(errors.endpoint_quota(self._most)) from None

    async def _tell(self, response: web.StreamResponse, call: Call, endpoint: Deployed) -> None:
        """Events from the endpoint's row, until it is decided."""
        told, written_s = "", time.monotonic()
        now: Deployed | None = endpoint
        while now is not None and now.status in UNDER_WAY:
            if now.stage is not None and now.stage != told and now.stage in _STAGES:
                told, (percent, text) = now.stage, _STAGES[now.stage]
                await response.write(
                    _event("progress", {"stage": told, "label": told, "pct": percent, "message": text})
                )
                written_s = time.monotonic()
            elif time.monotonic() - written_s > HEARTBEAT_S:
                await response.write(b": still at it\n\n")
                written_s = time.monotonic()
            await asyncio.sleep(LOOK_EVERY_S)
            async with self._database.connection() as conn:
                now = await store.find(conn, call.org_id, endpoint.id)
        if now is not None and now.status is EndpointStatus.LIVE:
            await response.write(
                _event("progress", {"stage": "live", "label": "live", "pct": 100, "message": "The endpoint is live."})
            )
            await asyncio.sleep(VISIBLE_S)
            await response.write(_event("complete", {"endpoint": self._record(now)}))
        elif now is None:
            await response.write(_event("error", {"message": "The endpoint was deleted."}))
        elif now.status is EndpointStatus.STOPPED:
            await response.write(_event("error", {"message": "The endpoint was stopped."}))
        else:
            await response.write(_event("error", {"message": now.status_detail or "The deploy failed."}))

    # -- inside ----------------------------------------------------------------------------------------------

    async def _found(self, conn: Connection, call: Call) -> Deployed:
        reference = call.ids["endpoint_id"]
        found = await store.find(conn, call.org_id, reference)
        if found is None:
            raise Refused(errors.endpoint_not_found(reference))
        return found

    async def _own(self, conn: Connection, call: Call) -> Deployed:
        """One that was really deployed."""
        found = await self._found(conn, call)
        if found.status is EndpointStatus.SEED:
            raise Refused(errors.seed_endpoint())
        return found

    def _record(self, one: Deployed) -> dict[str, Any]:
        """An endpoint as its owner sees it."""
        is_live = one.status is EndpointStatus.LIVE
        return {
            "id": one.id,
            "name": one.name,
            "model": one.alias,
            "status": "stopped" if one.status is EndpointStatus.SEED else one.status.value,
            "taskName": one.task_id,
            "task": one.task_id,
            "url": f"{self._public_url}/v1" if is_live else None,
            "recommendedSystemPrompt": one.system_prompt,
            "promptScaffold": one.prompt_scaffold,
            "created_at": int(one.created_at.timestamp()),
            "status_detail": one.status_detail,
            "run_mode": None,
        }


def _event(name: str, data: Mapping[str, Any]) -> bytes:
    """One named event; ASCII, because some clients split lines at more than line ends."""
    text = orjson.dumps(data).decode()
    plain = text if text.isascii() else "".join(c if c.isascii() else _escaped(c) for c in text)
    return f"event: {name}\ndata: {plain}\n\n".encode()


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
