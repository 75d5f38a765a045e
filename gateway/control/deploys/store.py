"""Deployed endpoints in Postgres.

Floor: control. Everything that a customer reads or changes names the organization, so that another one's endpoint is
never found. Workers learn of each change through the triggers of the schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson

from gateway.control.claims import CLAIM_KEPT, Claim, ClaimDiffers
from gateway.control.database import Refused, new_id
from gateway.core.state import EndpointStatus

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection

REMEMBERED_STARTS = 9
ASLEEP = "It sleeps, because no request came for a while. The next one wakes it, and so does start."
UNDER_WAY = (EndpointStatus.DEPLOYING, EndpointStatus.STARTING)


class NameTaken(Refused):
    """The organization has an endpoint of this name."""


class QuotaReached(Refused):
    """The organization has as many endpoints as it may have."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """An endpoint as its owner sees it; and, never seen by its owner, the catalogue's model behind it and what its
    engines call that."""

    id: str
    org_id: str
    name: str
    alias: str | None
    model_id: str | None = field(repr=False)
    real_model: str = field(repr=False)
    task_id: str | None
    status: EndpointStatus
    stage: str | None
    status_detail: str | None
    created_at: datetime
    system_prompt: str | None
    prompt_scaffold: str | None


@dataclass(frozen=True, slots=True)
class Serving:
    """What serves a model."""

    model_id: str = field(repr=False)
    driver: str
    spec: Mapping[str, Any] = field(repr=False)
    context_tokens: int
    max_output_tokens: int

    @property
    def upstream(self) -> str:
        """What the engines call the model: ``model`` of the specification, or its id."""
        return str(self.spec.get("model") or self.model_id)


@dataclass(frozen=True, slots=True)
class ServingBackend:
    """One address behind an endpoint, as `control.backend` keeps it."""

    url: str
    kind: str
    options: Mapping[str, Any]


_SELECT = (
    "SELECT e.id, e.org_id, e.name, e.model_alias AS alias, e.model_id, e.real_model, e.task_id, e.status, e.stage,"
    " e.status_detail, e.created_at, t.system_prompt, t.prompt_scaffold"
    " FROM control.endpoint e LEFT JOIN control.task t ON t.id = e.task_id WHERE e.deleted_at IS NULL"
)


async def list_of(conn: Connection, org_id: str) -> list[Deployed]:
    """An organization's endpoints: seed records first, then the oldest first."""
    rows = await conn.fetch(f"{_SELECT} AND e.org_id = $1 ORDER BY e.status = 'seed' DESC, e.created_at, e.id", org_id)
    return [_deployed(row) for row in rows]


async def find(conn: Connection, org_id: str, reference: str) -> Deployed | None:
    """An organization's endpoint, by id or name."""
    row = await conn.fetchrow(
        f"{_SELECT} AND e.org_id = $1 AND (e.id = $2 OR e.name = $2) ORDER BY e.id = $2 DESC LIMIT 1", org_id, reference
    )
    return _deployed(row) if row is not None else None


async def create(
    conn: Connection,
    org_id: str,
    *,
    task_id: str,
    alias: str,
    name: str | None,
    serving: Serving,
    most: int,
    claim: Claim | None = None,
) -> Deployed:
    """Take note of a deploy; the loop does the rest.

    Args:
        most: endpoints that an organization may have.
        claim: the same one twice makes one endpoint.

    Raises:
        NameTaken, QuotaReached, ClaimDiffers.
    """
    endpoint_id = new_id("ep")
    async with conn.transaction():
        # Two deploys at once must not both find the name free, or the last place.
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"pareta endpoint {org_id}")
        if claim is not None and (earlier := await _claimed(conn, org_id, claim)) is not None:
            return earlier
        if name is not None and await find(conn, org_id, name) is not None:
            raise NameTaken(f"There is an endpoint called {name!r} already.")
        count = await conn.fetchval(
            "SELECT count(*) FROM control.endpoint WHERE org_id = $1 AND deleted_at IS NULL", org_id
        )
        if count >= most:
            raise QuotaReached(f"The organization has {most} endpoints already.")
        await conn.execute(
            "INSERT INTO control.endpoint (id, org_id, name, model_alias, real_model, status, context_tokens,"
            " max_output_tokens, capabilities, task_id, model_id, stage, claim, fingerprint)"
            " VALUES ($1, $2, $3, $4, $5, 'deploying', $6, $7, ARRAY['chat', 'completion'], $8, $9, 'accepted',"
            " $10, $11)",
            endpoint_id,
            org_id,
            name or endpoint_id,
            alias,
            serving.upstream,
            serving.context_tokens,
            serving.max_output_tokens,
            task_id,
            serving.model_id,
            None if claim is None else claim.name,
            None if claim is None else claim.fingerprint,
        )
    made = await find(conn, org_id, endpoint_id)
    assert made is not None
    return made


async def _claimed(conn: Connection, org_id: str, claim: Claim) -> Deployed | None:
    await conn.execute(
        "UPDATE control.endpoint SET claim = NULL WHERE org_id = $1 AND claim = $2"
        " AND (deleted_at IS NOT NULL OR created_at < now() - $3::interval)",
        org_id,
        claim.name,
        CLAIM_KEPT,
    )
    row = await conn.fetchrow(
        "SELECT id, fingerprint FROM control.endpoint WHERE org_id = $1 AND claim = $2", org_id, claim.name
    )
    if row is None:
        return None
    if row["fingerprint"] != claim.fingerprint:
        raise ClaimDiffers
    return await find(conn, org_id, row["id"])


async def change_status(
    conn: Connection, endpoint_id: str, to: EndpointStatus, *, only_from: Sequence[EndpointStatus]
) -> bool:
    """Move an endpoint on, if it still stands where it was seen; whether it did."""
    return (
        await conn.fetchval(
            "UPDATE control.endpoint SET status = $2, stage = NULL, status_detail = NULL, asleep = false"
            " WHERE id = $1 AND deleted_at IS NULL AND status = ANY($3::text[]) RETURNING true",
            endpoint_id,
            to.value,
            [status.value for status in only_from],
        )
    ) is not None


async def remove(conn: Connection, org_id: str, endpoint_id: str) -> bool:
    """Remove an endpoint for good; whether it was there. Its row stays for its receipts."""
    return (
        await conn.fetchval(
            "UPDATE control.endpoint SET deleted_at = now() WHERE id = $1 AND org_id = $2 AND deleted_at IS NULL"
            " RETURNING true",
            endpoint_id,
            org_id,
        )
    ) is not None


# ---------------------------------------------------------------------------------------- for the loop


async def under_way(conn: Connection) -> list[Deployed]:
    """Endpoints that are to become live, of all organizations, the oldest first."""
    rows = await conn.fetch(f"{_SELECT} AND e.status IN ('deploying', 'starting') ORDER BY e.created_at, e.id")
    return [_deployed(row) for row in rows]


async def set_stage(conn: Connection, endpoint_id: str, stage: str) -> None:
    """Say how far it has come."""
    await conn.execute(
        "UPDATE control.endpoint SET stage = $2 WHERE id = $1 AND status IN ('deploying', 'starting')",
        endpoint_id,
        stage,
    )


async def expect_start(conn: Connection, endpoint_id: str) -> None:
    """Tell callers of an endpoint that is on its way when to come again: the median of its model's latest starts."""
    await conn.execute(
        "UPDATE control.endpoint e SET starts_in_s = (SELECT least(30, greatest(1,"
        " ceil(percentile_cont(0.5) WITHIN GROUP (ORDER BY t.seconds))))::integer FROM (SELECT seconds"
        " FROM control.start_time WHERE model_id = e.model_id ORDER BY ended_at DESC LIMIT $2) t)"
        " WHERE e.id = $1 AND e.status IN ('deploying', 'starting')",
        endpoint_id,
        REMEMBERED_STARTS,
    )


async def remember_start(conn: Connection, model_id: str, seconds: float) -> None:
    """Take note of how long a model took to become ready; only the latest starts are kept."""
    await conn.execute("INSERT INTO control.start_time (model_id, seconds) VALUES ($1, $2)", model_id, seconds)
    await conn.execute(
        "DELETE FROM control.start_time WHERE model_id = $1 AND ended_at < (SELECT min(ended_at) FROM (SELECT ended_at"
        " FROM control.start_time WHERE model_id = $1 ORDER BY ended_at DESC LIMIT $2) latest)",
        model_id,
        REMEMBERED_STARTS,
    )


async def put_to_sleep(conn: Connection) -> list[str]:
    """Stop the endpoints that nobody has called for as long as their models may be idle; their ids."""
    rows = await conn.fetch(
        "UPDATE control.endpoint e SET status = 'stopped', stage = NULL, asleep = true, status_detail = $1"
        " WHERE e.status = 'live' AND e.deleted_at IS NULL AND e.idle_s IS NOT NULL"
        " AND e.status_since < now() - make_interval(secs => e.idle_s) AND NOT EXISTS ("
        "SELECT 1 FROM control.endpoint_use u WHERE u.endpoint_id = e.id"
        " AND u.used_at >= now() - make_interval(secs => e.idle_s))"
        " RETURNING e.id",
        ASLEEP,
    )
    return [row["id"] for row in rows]


async def set_live(conn: Connection, endpoint_id: str, backends: Sequence[ServingBackend], *, real_model: str) -> bool:
    """Put it into service behind these addresses; False if nobody wants it any more."""
    async with conn.transaction():
        if not await change_status(conn, endpoint_id, EndpointStatus.LIVE, only_from=UNDER_WAY):
            return False
        await conn.execute(
            "UPDATE control.endpoint e SET real_model = $2,"
            " idle_s = (SELECT s.idle_s FROM control.serving s WHERE s.model_id = e.model_id) WHERE e.id = $1",
            endpoint_id,
            real_model,
        )
        await _replace_backends(conn, endpoint_id, backends)
    return True


async def set_failed(conn: Connection, endpoint_id: str, why: str) -> None:
    """It cannot be brought up; ``why`` is a public sentence. One that may sleep sleeps: the next call tries anew."""
    await conn.execute(
        "UPDATE control.endpoint SET stage = NULL, status_detail = $2,"
        " asleep = idle_s IS NOT NULL AND status = 'starting',"
        " status = CASE WHEN idle_s IS NOT NULL AND status = 'starting' THEN 'stopped' ELSE 'failed' END"
        " WHERE id = $1 AND deleted_at IS NULL AND status IN ('deploying', 'starting')",
        endpoint_id,
        why,
    )


async def backends_of(conn: Connection, endpoint_id: str) -> list[ServingBackend]:
    """The addresses behind an endpoint."""
    rows = await conn.fetch(
        "SELECT url, kind, options FROM control.backend WHERE endpoint_id = $1 ORDER BY position, id", endpoint_id
    )
    return [ServingBackend(row["url"], row["kind"], orjson.loads(row["options"])) for row in rows]


async def serving_of(conn: Connection, model_id: str) -> Serving | None:
    """What serves a model; ``None`` if the operator registered nothing."""
    row = await conn.fetchrow(
        "SELECT s.model_id, s.driver, s.spec, m.context_tokens,"
        " least(coalesce(s.max_output_tokens, m.context_tokens), m.context_tokens) AS max_output_tokens"
        " FROM control.serving s JOIN control.model m ON m.id = s.model_id WHERE s.model_id = $1",
        model_id,
    )
    return None if row is None else Serving(**{**dict(row), "spec": orjson.loads(row["spec"])})


async def wanted_servings(conn: Connection, always: Sequence[str] = ()) -> list[Serving]:
    """What serves the models that endpoints or eval runs want now, and those that are ``always`` wanted."""
    rows = await conn.fetch(
        "SELECT s.model_id, s.driver, s.spec, m.context_tokens,"
        " least(coalesce(s.max_output_tokens, m.context_tokens), m.context_tokens) AS max_output_tokens"
        " FROM control.serving s JOIN control.model m ON m.id = s.model_id WHERE EXISTS"
        " (SELECT 1 FROM control.endpoint e WHERE e.model_id = s.model_id AND e.deleted_at IS NULL"
        " AND e.status IN ('live', 'deploying', 'starting')) OR EXISTS"
        " (SELECT 1 FROM control.eval_run r JOIN control.eval_candidate c ON c.run_id = r.id"
        " WHERE r.ended_at IS NULL AND c.kind = 'open' AND c.model_id = s.model_id)"
        " OR s.model_id = ANY($1::text[]) ORDER BY s.model_id",
        list(always),
    )
    return [Serving(**{**dict(row), "spec": orjson.loads(row["spec"])}) for row in rows]


async def point_to(conn: Connection, model_id: str, backends: Sequence[ServingBackend]) -> None:
    """Point the live endpoints of a model to where its engines are now; those that are right stay as they are."""
    urls = [one.url for one in backends]
    for row in await conn.fetch(
        "SELECT e.id FROM control.endpoint e WHERE e.model_id = $1 AND e.deleted_at IS NULL AND e.status = 'live'"
        " AND ARRAY(SELECT b.url FROM control.backend b WHERE b.endpoint_id = e.id ORDER BY b.position) <> $2::text[]",
        model_id,
        urls,
    ):
        async with conn.transaction():
            await _replace_backends(conn, row["id"], backends)


async def _replace_backends(conn: Connection, endpoint_id: str, backends: Sequence[ServingBackend]) -> None:
    await conn.execute("DELETE FROM control.backend WHERE endpoint_id = $1", endpoint_id)
    await conn.executemany(
        "INSERT INTO control.backend (id, endpoint_id, url, kind, options, position) VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (new_id("be"), endpoint_id, one.url, one.kind, orjson.dumps(one.options).decode(), position)
            for position, one in enumerate(backends)
        ],
    )


async def flat_price_micros(conn: Connection, task_id: str, model_id: str) -> int | None:
    """What a request to a model costs on a task, micro-USD."""
    found: int | None = await conn.fetchval(
        "SELECT cost_per_request_micros FROM control.task_alias WHERE task_id = $1 AND model_id = $2", task_id, model_id
    )
    return found


async def register(
    conn: Connection,
    model_id: str,
    driver: str,
    spec: Mapping[str, Any],
    *,
    max_output_tokens: int | None,
    idle_s: int | None = None,
) -> None:
    """Say what serves a model.

    Args:
        idle_s: after so many seconds without a request its endpoints are put to sleep; ``None``: never.

    Raises:
        asyncpg.ForeignKeyViolationError: there is no such model.
    """
    async with conn.transaction():
        await conn.execute(
            "INSERT INTO control.serving (model_id, driver, spec, max_output_tokens, idle_s)"
            " VALUES ($1, $2, $3, $4, $5) ON CONFLICT (model_id) DO UPDATE"
            " SET driver = $2, spec = $3, max_output_tokens = $4, idle_s = $5, changed_at = now()",
            model_id,
            driver,
            orjson.dumps(spec).decode(),
            max_output_tokens,
            idle_s,
        )
        # Of those that are live already nobody has said when they were used: their time begins now.
        await conn.execute(
            "WITH changed AS (UPDATE control.endpoint SET idle_s = $2 WHERE model_id = $1 AND deleted_at IS NULL"
            " AND status = 'live' AND idle_s IS DISTINCT FROM $2::integer RETURNING id)"
            " INSERT INTO control.endpoint_use (endpoint_id, used_at) SELECT id, now() FROM changed"
            " ON CONFLICT (endpoint_id) DO UPDATE SET used_at = EXCLUDED.used_at",
            model_id,
            idle_s,
        )


def _deployed(row: asyncpg.Record) -> Deployed:
    return Deployed(**{**dict(row), "status": EndpointStatus(row["status"])})
