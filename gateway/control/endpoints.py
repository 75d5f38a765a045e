"""Endpoints and the backends behind them.

Floor: control. Storage and the small life of an endpoint that an operator drives by hand; workers see each change
within a second through the triggers of the schema. Prices are the ledger's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

import orjson

from gateway.control.database import NotFound, Refused, new_id
from gateway.core.state import EndpointStatus

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection

TRITON: Final = "triton"
CAPABILITIES: Final = ("chat", "completion", "embedding")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", re.ASCII)
_ID: Final = re.compile(r"ep_[A-Za-z0-9_-]{1,60}", re.ASCII)
_ALIAS: Final = re.compile(r"[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*-[1-9][0-9]*", re.ASCII)
_RESERVED: Final = frozenset({"auto", "recommended"})

# event -> state before -> state after; a pair that is missing is refused.
_LIFE: Final[Mapping[str, Mapping[EndpointStatus, EndpointStatus]]] = {
    "stop": {
        EndpointStatus.LIVE: EndpointStatus.STOPPED,
        EndpointStatus.STARTING: EndpointStatus.STOPPED,
        EndpointStatus.DEPLOYING: EndpointStatus.STOPPED,
        EndpointStatus.STOPPED: EndpointStatus.STOPPED,
    },
    # An endpoint whose backends were given by hand has nothing to start: health checks decide who gets requests.
    "start": {
        EndpointStatus.STOPPED: EndpointStatus.LIVE,
        EndpointStatus.FAILED: EndpointStatus.LIVE,
        EndpointStatus.STARTING: EndpointStatus.STARTING,
        EndpointStatus.LIVE: EndpointStatus.LIVE,
    },
}


@dataclass(frozen=True, slots=True)
class NewBackend:
    """A serving process to register. ``url`` is its root; a trailing slash or ``/v1`` is cut off. A model on a Triton
    server is ``triton://host:port/model``.

    ``api_key_file`` names a file on the workers' machines that holds the backend's own key; the key itself is
    never stored in the database. ``model_folder`` is a folder there with the model's tokenizer and chat template,
    ``metrics_url`` the Prometheus page that tells how busy the backend is.
    """

    url: str
    api_key_file: str | None = None
    tolerates_unknown_fields: bool = True
    health_path: str = "/health"
    model_folder: str | None = None
    metrics_url: str | None = None


@dataclass(frozen=True, slots=True)
class NewEndpoint:
    """An endpoint to register. Without an id one is minted; without a name it is called by its id."""

    org_id: str
    real_model: str
    id: str | None = None
    name: str | None = None
    alias: str | None = None
    status: EndpointStatus = EndpointStatus.LIVE
    context_tokens: int = 32_768
    max_output_tokens: int | None = None
    deadline_s: float = 600.0
    capabilities: tuple[str, ...] = ("chat", "completion")
    backends: tuple[NewBackend, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendRecord:
    """A registered serving process."""

    id: str
    url: str
    kind: str
    state: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EndpointRecord:
    """An endpoint as its operator sees it, real model id included."""

    id: str
    org_id: str
    name: str
    alias: str | None
    real_model: str
    status: EndpointStatus
    context_tokens: int
    max_output_tokens: int
    deadline_s: float
    capabilities: tuple[str, ...]
    created_at: datetime
    deleted_at: datetime | None
    backends: tuple[BackendRecord, ...]


async def add(conn: Connection, new: NewEndpoint) -> tuple[EndpointRecord, bool]:
    """Register an endpoint; asked again with the same id or name and the same content, find it.

    Returns:
        The record, and whether it is new.

    Raises:
        Refused: a value is out of bounds, or the id or name is taken by something else.
    """
    checked = _checked(new)
    async with conn.transaction():
        # Two operators who add the same name at once must not both find it free.
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", f"pareta endpoint {new.org_id}")
        existing = await _find_same(conn, checked)
        if existing is not None:
            return existing, False
        endpoint_id = checked.id or new_id("ep")
        await _insert(conn, endpoint_id, checked)
    return await find(conn, endpoint_id), True


async def find(conn: Connection, reference: str, *, org_id: str | None = None) -> EndpointRecord:
    """Find a present endpoint by id, or by name.

    Args:
        reference: id or name.
        org_id: whose name it is; without it a name must be unique in the whole installation.

    Raises:
        NotFound: there is none. Refused: several organizations use the name.
    """
    rows = await conn.fetch(
        "SELECT * FROM control.endpoint WHERE deleted_at IS NULL AND (id = $1 OR name = $1)"
        " AND ($2::text IS NULL OR org_id = $2) ORDER BY id = $1 DESC, created_at LIMIT 2",
        reference,
        org_id,
    )
    if not rows:
        raise NotFound(f"There is no endpoint {reference!r}.")
    if len(rows) > 1 and rows[0]["id"] != reference:
        raise Refused(f"Several organizations have an endpoint called {reference!r}; give its id, or --org.")
    return (await _records(conn, rows[:1]))[0]


async def list_all(conn: Connection, *, org_id: str | None = None, limit: int = 1000) -> list[EndpointRecord]:
    """The oldest ``limit`` endpoints that are present, oldest first; of one organization or of all."""
    rows = await conn.fetch(
        "SELECT * FROM control.endpoint WHERE deleted_at IS NULL AND ($1::text IS NULL OR org_id = $1)"
        " ORDER BY created_at, id LIMIT $2",
        org_id,
        limit,
    )
    return await _records(conn, rows)


async def stop(conn: Connection, endpoint_id: str) -> EndpointRecord:
    """Take an endpoint out of service. Raises: NotFound; Refused for a seed record."""
    return await _drive(conn, endpoint_id, "stop")


async def start(conn: Connection, endpoint_id: str) -> EndpointRecord:
    """Put an endpoint into service. Raises: NotFound; Refused for a seed record or without backends."""
    return await _drive(conn, endpoint_id, "start")


async def remove(conn: Connection, endpoint_id: str) -> None:
    """Remove an endpoint for good; its row stays for its receipts. A repeat changes nothing.

    Raises:
        NotFound: there never was one.
    """
    found = await conn.fetchval(
        "UPDATE control.endpoint SET deleted_at = coalesce(deleted_at, now()) WHERE id = $1 RETURNING id", endpoint_id
    )
    if found is None:
        raise NotFound(f"There is no endpoint {endpoint_id!r}.")


def normal_url(url: str) -> str:
    """The root of a backend as it is stored: no trailing slash, no ``/v1``.

    Raises:
        Refused: it is no plain http(s) or triton URL, or carries credentials, a query or a fragment.
    """
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        parts = None
    if parts is None or parts.scheme not in ("http", "https", TRITON) or not parts.hostname:
        raise Refused("The URL of a backend looks like http://host:port, that of Triton like triton://host:8001/model.")
    if parts.username or parts.password:
        raise Refused("The URL of a backend carries no user or password; use --backend-key-file.")
    if parts.query or parts.fragment:
        raise Refused("The URL of a backend has no query and no fragment.")
    if parts.scheme == TRITON:
        model = parts.path.strip("/")
        if "/" in model:
            raise Refused("The path of a Triton URL is the name of one model: triton://host:8001/model.")
        return f"{TRITON}://{parts.netloc}/{model}".rstrip("/")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def kind_of(url: str) -> str:
    """What the backend at a normal URL speaks: ``openai`` or ``triton``."""
    return TRITON if url.startswith(f"{TRITON}://") else "openai"


def model_of(url: str) -> str | None:
    """The model that the URL of a backend names itself, if it does. Raises: Refused: it is no such URL."""
    url = normal_url(url)
    return unquote(urlsplit(url).path.strip("/")) or None if kind_of(url) == TRITON else None


def _checked(new: NewEndpoint) -> NewEndpoint:
    if new.id is not None and not _ID.fullmatch(new.id):
        raise Refused("An endpoint id is ep_ and up to 60 letters, digits, _ or -.")
    if new.name is not None and new.name != new.id:
        if not _NAME.fullmatch(new.name) or new.name in _RESERVED:
            raise Refused("An endpoint name has 1 to 63 letters, digits, _ or -, and is not auto or recommended.")
        if new.name.startswith("ep_"):
            raise Refused("A name that starts with ep_ is an id; pass it with --id.")
    if new.alias is not None and not (_ALIAS.fullmatch(new.alias) and len(new.alias) <= 100):
        raise Refused("An alias is lower-case and ends in a rank, like qwen-1.")
    if not 1 <= len(new.real_model) <= 300 or not new.real_model.isprintable():
        raise Refused("The model is the id that the backend knows, 1 to 300 printable characters.")
    if not 1 <= new.context_tokens <= 1 << 30:
        raise Refused("The context is 1 to 2^30 tokens.")
    most = new.context_tokens if new.max_output_tokens is None else new.max_output_tokens
    if not 1 <= most <= new.context_tokens:
        raise Refused("The largest output is at least 1 token and at most the context.")
    if not 0 < new.deadline_s <= 86_400:
        raise Refused("The deadline is above 0 and at most 86400 seconds.")
    if not new.capabilities:
        raise Refused(f"An endpoint needs at least one capability of {', '.join(CAPABILITIES)}.")
    if unknown := set(new.capabilities) - set(CAPABILITIES):
        raise Refused(f"Unknown capability {min(unknown)!r}; known are {', '.join(CAPABILITIES)}.")
    backends = tuple(replace(backend, url=normal_url(backend.url)) for backend in new.backends)
    if new.status is EndpointStatus.SEED:
        if backends:
            raise Refused("A seed endpoint was never deployed, so it has no backends.")
    elif not backends:
        raise Refused("An endpoint needs at least one backend.")
    if len({backend.url for backend in backends}) != len(backends):
        raise Refused("The same backend is given twice.")
    if any(not backend.health_path.startswith("/") for backend in backends):
        raise Refused("The health path of a backend starts with a slash.")
    for backend in backends:
        _check_options(backend)
    if "embedding" in new.capabilities and any(kind_of(backend.url) == TRITON for backend in backends):
        raise Refused("A backend on Triton makes no embeddings.")
    capabilities = tuple(name for name in CAPABILITIES if name in new.capabilities)
    return replace(new, max_output_tokens=most, backends=backends, capabilities=capabilities)


def _check_options(backend: NewBackend) -> None:
    if backend.model_folder is not None and kind_of(backend.url) != TRITON:
        raise Refused("Only a backend on Triton needs a model folder; other engines write their prompts themselves.")
    if backend.model_folder is not None and not backend.model_folder.startswith("/"):
        raise Refused("The model folder of a backend is an absolute path.")
    if backend.metrics_url is not None and not backend.metrics_url.startswith(("http://", "https://")):
        raise Refused("The metrics of a backend are at a URL like http://host:8002/metrics.")


async def _find_same(conn: Connection, new: NewEndpoint) -> EndpointRecord | None:
    """The endpoint that is there already. Raises Refused when it is not what is asked for."""
    if new.id is None and new.name is None:
        return None
    rows = await conn.fetch(
        "SELECT * FROM control.endpoint WHERE id = $1 OR (org_id = $2 AND name = $3 AND deleted_at IS NULL)",
        new.id,
        new.org_id,
        new.name,
    )
    if not rows:
        return None
    record = (await _records(conn, rows[:1]))[0]
    word = f"The endpoint {new.id or new.name!r}"
    if record.deleted_at is not None:
        raise Refused(f"{word} was removed; an id is never used again.")
    if len(rows) > 1 or _difference(record, new):
        what = _difference(record, new) or "id"
        raise Refused(f"{word} exists already with another {what}; remove it first, or choose another name.")
    return record


def _difference(record: EndpointRecord, new: NewEndpoint) -> str | None:
    """The first thing in which the record is not what is asked for. Its status may have moved on since."""
    asked: tuple[tuple[str, object, object], ...] = (
        ("organization", record.org_id, new.org_id),
        ("id", record.id, new.id or record.id),
        ("name", record.name, new.name or new.id or record.name),
        ("alias", record.alias, new.alias),
        ("model", record.real_model, new.real_model),
        ("kind (seed)", record.status is EndpointStatus.SEED, new.status is EndpointStatus.SEED),
        ("context", record.context_tokens, new.context_tokens),
        ("largest output", record.max_output_tokens, new.max_output_tokens),
        ("deadline", record.deadline_s, new.deadline_s),
        ("set of capabilities", set(record.capabilities), set(new.capabilities)),
        (
            "set of backends",
            {backend.url: dict(backend.options) for backend in record.backends},
            {backend.url: _options(backend) for backend in new.backends},
        ),
    )
    return next((name for name, is_, wanted in asked if is_ != wanted), None)


async def _insert(conn: Connection, endpoint_id: str, new: NewEndpoint) -> None:
    found = await conn.fetchval(
        "INSERT INTO control.endpoint (id, org_id, name, model_alias, real_model, status, context_tokens,"
        " max_output_tokens, deadline_s, capabilities)"
        " SELECT $1, o.id, $3, $4, $5, $6, $7, $8, $9, $10 FROM control.organization o WHERE o.id = $2 RETURNING id",
        endpoint_id,
        new.org_id,
        new.name or endpoint_id,
        new.alias,
        new.real_model,
        new.status.value,
        new.context_tokens,
        new.max_output_tokens,
        new.deadline_s,
        list(new.capabilities),
    )
    if found is None:
        raise NotFound(f"There is no organization {new.org_id!r}.")
    await conn.executemany(
        "INSERT INTO control.backend (id, endpoint_id, url, kind, options, position) VALUES ($1, $2, $3, $4, $5, $6)",
        [
            (
                new_id("be"),
                endpoint_id,
                backend.url,
                kind_of(backend.url),
                orjson.dumps(_options(backend)).decode(),
                position,
            )
            for position, backend in enumerate(new.backends)
        ],
    )


def _options(backend: NewBackend) -> dict[str, Any]:
    """Only what differs from the defaults, so that equal backends have equal options."""
    options: dict[str, Any] = {}
    if backend.api_key_file is not None:
        options["api_key_file"] = backend.api_key_file
    if not backend.tolerates_unknown_fields:
        options["tolerates_unknown_fields"] = False
    if backend.health_path != "/health":
        options["health_path"] = backend.health_path
    if backend.model_folder is not None:
        options["model_folder"] = backend.model_folder
    if backend.metrics_url is not None:
        options["metrics_url"] = backend.metrics_url
    return options


async def _drive(conn: Connection, endpoint_id: str, event: str) -> EndpointRecord:
    async with conn.transaction():
        row = await conn.fetchrow(
            "SELECT status, model_id FROM control.endpoint WHERE id = $1 AND deleted_at IS NULL FOR UPDATE", endpoint_id
        )
        if row is None:
            raise NotFound(f"There is no endpoint {endpoint_id!r}.")
        before = row["status"]
        after = _LIFE[event].get(EndpointStatus(before))
        if after is None:
            raise Refused(f"The endpoint {endpoint_id} is {before}; it can't be told to {event}.")
        if after is EndpointStatus.LIVE and before != after.value and row["model_id"] is not None:
            after = EndpointStatus.STARTING  # the loop of deploys brings its engines up first
        await conn.execute(
            "UPDATE control.endpoint SET status = $2, asleep = false WHERE id = $1 AND (status <> $2 OR asleep)",
            endpoint_id,
            after.value,
        )
    return await find(conn, endpoint_id)


async def _records(conn: Connection, rows: Sequence[asyncpg.Record]) -> list[EndpointRecord]:
    backends: dict[str, list[BackendRecord]] = {row["id"]: [] for row in rows}
    for row in await conn.fetch(
        "SELECT * FROM control.backend WHERE endpoint_id = ANY($1::text[]) ORDER BY position, id", list(backends)
    ):
        backends[row["endpoint_id"]].append(
            BackendRecord(row["id"], row["url"], row["kind"], row["state"], orjson.loads(row["options"]))
        )
    return [_record(row, tuple(backends[row["id"]])) for row in rows]


def _record(row: asyncpg.Record, backends: tuple[BackendRecord, ...]) -> EndpointRecord:
    return EndpointRecord(
        id=row["id"],
        org_id=row["org_id"],
        name=row["name"],
        alias=row["model_alias"],
        real_model=row["real_model"],
        status=EndpointStatus(row["status"]),
        context_tokens=row["context_tokens"],
        max_output_tokens=row["max_output_tokens"],
        deadline_s=row["deadline_s"],
        capabilities=tuple(row["capabilities"]),
        created_at=row["created_at"],
        deleted_at=row["deleted_at"],
        backends=backends,
    )
