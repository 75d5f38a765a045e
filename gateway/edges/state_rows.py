"""The feed's questions to Postgres, and its rows as values.

Floor: edges. Reads the schema ``control`` and, through the ledger's own functions, price cards and discounts. Every
function raises ``ledger.errors.LedgerError`` when Postgres can't be asked; ``ledger.books.database`` translates.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from gateway.core.state import BACKEND_KINDS, BackendSpec, Endpoint, EndpointStatus, Key, Limits, Scope
from ledger.books.database import Pool, Record, acquired
from ledger.books.discounts import current_discounts
from ledger.books.prices import current_cards
from ledger.core.pricing import Discount, PriceCard
from ledger.errors import LedgerNotMigrated

log = logging.getLogger("gateway.state")

# A card that ended a moment ago may still be the right one for a worker whose clock is behind.
_CLOCK_SLACK = timedelta(minutes=1)
_SINGLE_CARDS = 16

_ENDPOINTS = """
SELECT e.*, floor(extract(epoch FROM e.created_at))::bigint AS created_s,
       (extract(epoch FROM e.created_at) * 1000000)::bigint AS created_us, t.system_prompt
  FROM control.endpoint e LEFT JOIN control.task t ON t.id = e.task_id
 WHERE e.deleted_at IS NULL AND ($1::text[] IS NULL OR e.id = ANY($1))
"""
_BACKENDS = """
SELECT b.id, b.endpoint_id, b.url, b.kind, b.options
  FROM control.backend b JOIN control.endpoint e ON e.id = b.endpoint_id
 WHERE e.deleted_at IS NULL AND b.state = 'active' AND ($1::text[] IS NULL OR e.id = ANY($1))
 ORDER BY b.position, b.id
"""
# xmin changes with every update of a row, whoever made it and whatever became of the triggers.
_KEY = """
SELECT k.*, o.name AS org_name, o.requests_per_minute AS org_rpm, o.tokens_per_minute AS org_tpm,
       o.concurrent AS org_concurrent, k.xmin::text || '/' || o.xmin::text AS version
  FROM control.api_key k JOIN control.organization o ON o.id = k.org_id
 WHERE k.id = $1
"""
_CHANGED_KEYS = """
SELECT c.id, k.id IS NULL OR k.revoked_at IS NOT NULL AS revoked
  FROM unnest($1::text[], $2::text[]) AS c (id, version)
  LEFT JOIN (control.api_key k JOIN control.organization o ON o.id = k.org_id) ON k.id = c.id
 WHERE k.id IS NULL OR k.xmin::text || '/' || o.xmin::text <> c.version
"""


async def read_pepper(pool: Pool) -> bytes:
    """The installation's secret for key ids. Raises: LedgerNotMigrated when it is not there."""
    async with acquired(pool, "read the installation") as connection:
        pepper = await connection.fetchval("SELECT pepper FROM control.installation")
    if pepper is None:
        raise LedgerNotMigrated("The table control.installation has no row. Run the migrations.")
    return bytes(pepper)


@dataclass(frozen=True, slots=True)
class Placed:
    """An endpoint and its place among others: several may be made within the second that ``created_s`` tells."""

    created_us: int
    endpoint: Endpoint


async def read_endpoints(pool: Pool, ids: Sequence[str] | None) -> dict[str, Placed]:
    """Endpoints with their active backends, and their current and future price cards and discounts.

    Args:
        ids: which ones; ``None`` means all. Those that are gone are missing in the answer.
    """
    wanted = None if ids is None else list(ids)
    async with acquired(pool, "read the endpoints") as connection:
        rows = await connection.fetch(_ENDPOINTS, wanted)
        backend_rows = await connection.fetch(_BACKENDS, wanted)
    cards = await _cards(pool, ids)
    orgs = None if ids is None else sorted({row["org_id"] for row in rows})
    discounts = await current_discounts(pool, datetime.now(UTC) - _CLOCK_SLACK, org_ids=orgs)
    backends: dict[str, list[Record]] = {}
    for row in backend_rows:
        backends.setdefault(row["endpoint_id"], []).append(row)
    secrets = await _backend_secrets(backend_rows)
    found: dict[str, Placed] = {}
    for row in rows:
        try:
            fitting = tuple(d for d in discounts.get(row["org_id"], ()) if d.endpoint_id in (None, row["id"]))
            endpoint = _endpoint(row, backends.get(row["id"], ()), cards.get(row["id"], ()), fitting, secrets)
        except (TypeError, ValueError) as error:
            # Of a newer release, or written by hand. It is not served, and hides no change of the others.
            log.error("The endpoint %s is not understood: %s.", row["id"], error)
            continue
        found[row["id"]] = Placed(row["created_us"], endpoint)
    return found


async def read_key(pool: Pool, key_id: str) -> tuple[Key, str] | None:
    """A key and the version of its rows."""
    async with acquired(pool, "look up a key") as connection:
        row = await connection.fetchrow(_KEY, key_id)
    return None if row is None else (_key(row), row["version"])


async def changed_keys(pool: Pool, ids: list[str], versions: list[str]) -> list[tuple[str, bool]]:
    """Which of these keys are not what they were, and whether they are revoked (or gone)."""
    async with acquired(pool, "compare the remembered keys") as connection:
        rows = await connection.fetch(_CHANGED_KEYS, ids, versions)
    return [(row["id"], row["revoked"]) for row in rows]


async def _cards(pool: Pool, ids: Sequence[str] | None) -> Mapping[str, tuple[PriceCard, ...]]:
    since = datetime.now(UTC) - _CLOCK_SLACK
    if ids is None or len(ids) > _SINGLE_CARDS:
        return await current_cards(pool, since)
    cards: dict[str, tuple[PriceCard, ...]] = {}
    for endpoint_id in ids:
        cards.update(await current_cards(pool, since, endpoint_id=endpoint_id))
    return cards


def _endpoint(
    row: Record,
    backends: Sequence[Record],
    cards: tuple[PriceCard, ...],
    discounts: tuple[Discount, ...],
    secrets: Mapping[str, str],
) -> Endpoint:
    return Endpoint(
        id=row["id"],
        org_id=row["org_id"],
        name=row["name"],
        alias=row["model_alias"],
        status=EndpointStatus(row["status"]),
        context_tokens=row["context_tokens"],
        max_output_tokens=row["max_output_tokens"],
        deadline_s=row["deadline_s"],
        created_s=row["created_s"],
        capabilities=frozenset(row["capabilities"]),
        backends=tuple(_backend(backend, row, secrets) for backend in backends),
        cards=cards,
        discounts=discounts,
        prompt_of_record=row["system_prompt"],
        starts_in_s=row["starts_in_s"],
        sleeps=row["idle_s"] is not None,
        asleep=row["asleep"],
        task_id=row["task_id"],
    )


def _backend(row: Record, endpoint: Record, secrets: Mapping[str, str]) -> BackendSpec:
    options: dict[str, Any] = orjson.loads(row["options"])
    health_path = options.get("health_path", "/health")
    if not isinstance(health_path, str) or not health_path.startswith("/") or not health_path.isprintable():
        raise ValueError(f"the health path of its backend {row['id']} is no path")
    if urlsplit(row["url"]).port == 0:  # reading a port that is none raises
        raise ValueError(f"the address of its backend {row['id']} has no port")
    if row["kind"] not in BACKEND_KINDS:
        raise ValueError(f"its backend {row['id']} is of a kind that this release does not know")
    return BackendSpec(
        id=row["id"],
        url=row["url"],
        kind=row["kind"],
        model=endpoint["real_model"],
        api_key=secrets.get(str(options.get("api_key_file", ""))),
        tolerates_unknown_fields=options.get("tolerates_unknown_fields", True),
        health_path=health_path,
        model_folder=_text(options, "model_folder"),
        metrics_url=_text(options, "metrics_url"),
        context_tokens=endpoint["context_tokens"],
        deadline_s=endpoint["deadline_s"],
    )


def _text(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"the option {name} of a backend is no text")
    return value


async def _backend_secrets(rows: Sequence[Record]) -> dict[str, str]:
    """The keys we present to backends, by the file that holds each; they live in files, never in the database."""
    named = {str(path) for row in rows if (path := orjson.loads(row["options"]).get("api_key_file"))}
    return await asyncio.to_thread(_read_secrets, named) if named else {}


def _read_secrets(paths: set[str]) -> dict[str, str]:
    secrets = {}
    for path in paths:
        try:
            secrets[path] = Path(path).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            log.warning("The key file of a backend, %s, can't be read: %s.", path, type(error).__name__)
    return secrets


def _key(row: Record) -> Key:
    expires_at = row["expires_at"]
    return Key(
        id=row["id"],
        org_id=row["org_id"],
        secret_hash=bytes(row["secret_hash"]),
        scope=Scope(row["scope"]),
        expires_at_s=None if expires_at is None else expires_at.timestamp(),
        revoked=row["revoked_at"] is not None,
        limits=Limits(row["requests_per_minute"], row["tokens_per_minute"], row["concurrent"]),
        org_limits=Limits(row["org_rpm"], row["org_tpm"], row["org_concurrent"]),
        org_name=row["org_name"],
    )
