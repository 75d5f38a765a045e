"""Many organizations, endpoints and keys, put into Postgres in bulk as the control plane and the ledger would.

Rows go in by COPY, with what each module writes for one: hashed keys under the installation's pepper, endpoints with
their backend and price card, accounts of organizations. Only those that are called later have credit, booked by the
ledger itself.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterable, Sequence
from itertools import count, islice

import asyncpg

from gateway.control.database import new_id
from gateway.core import keys as core_keys
from ledger.core.meters import Meter

ROWS_AT_ONCE = 20_000

_numbers = count(1)


async def add_keys(conn: asyncpg.Connection[asyncpg.Record], org_id: str, wanted: int, *, keep: int) -> list[str]:
    """Mint keys for an organization.

    Args:
        keep: how many of them are returned, drawn from all; of the others nobody will know the secret.
    """
    pepper: bytes = await conn.fetchval("SELECT pepper FROM control.installation")
    chance = random.Random(wanted)
    kept_places = set(chance.sample(range(wanted), min(keep, wanted)))
    kept: list[str] = []

    def rows() -> Iterable[tuple[str, str, bytes, str, str]]:
        for place in range(wanted):
            key = core_keys.mint(pepper, os.urandom(core_keys.MINT_BYTES))
            if place in kept_places:
                kept.append(key.token)
            yield key.id, org_id, key.secret_hash, "full", "growth"

    columns = ("id", "org_id", "secret_hash", "scope", "name")
    await _copy(conn, "control", "api_key", columns, rows())
    return kept


async def add_endpoints(
    conn: asyncpg.Connection[asyncpg.Record],
    org_ids: Sequence[str],
    wanted: int,
    *,
    model: str,
    engine_url: str,
    rates: dict[Meter, int],
) -> list[str]:
    """Endpoints, dealt out to the organizations in turns; returns their ids in that order."""
    ids = [new_id("ep") for _ in range(wanted)]
    owners = [org_ids[place % len(org_ids)] for place in range(wanted)]
    prices = json.dumps({str(meter): rate for meter, rate in rates.items()})
    async with conn.transaction():
        # Its price comes first, so that no worker sees it without one.
        await _copy(
            conn,
            "ledger",
            "price_card",
            ("id", "endpoint_id", "rates", "effective_from_ms"),
            ((f"pc_growth{next(_numbers)}", endpoint_id, prices, 0) for endpoint_id in ids),
        )
        await _copy(
            conn,
            "control",
            "endpoint",
            ("id", "org_id", "name", "real_model", "status", "context_tokens", "max_output_tokens", "capabilities"),
            (
                (endpoint_id, org_id, endpoint_id, model, "live", 1 << 18, 1 << 17, ["chat"])
                for endpoint_id, org_id in zip(ids, owners, strict=True)
            ),
        )
        await _copy(
            conn,
            "control",
            "backend",
            ("id", "endpoint_id", "url", "kind"),
            ((new_id("be"), endpoint_id, engine_url, "openai") for endpoint_id in ids),
        )
    return ids


async def add_organizations(conn: asyncpg.Connection[asyncpg.Record], wanted: int) -> list[str]:
    """Organizations with open and empty accounts; returns their ids."""
    ids = [new_id("org") for _ in range(wanted)]
    async with conn.transaction():
        await _copy(
            conn,
            "control",
            "organization",
            ("id", "name"),
            ((org_id, f"Growth {next(_numbers)} {org_id}") for org_id in ids),
        )
        await conn.execute(
            "INSERT INTO ledger.account (kind, org_id)"
            " SELECT kind, org_id FROM unnest($1::text[]) org_id, unnest(ARRAY['available', 'escrow', 'frozen']) kind",
            ids,
        )
        await conn.execute("INSERT INTO ledger.balance (org_id) SELECT unnest($1::text[])", ids)
    return ids


async def _copy(
    conn: asyncpg.Connection[asyncpg.Record],
    schema: str,
    table: str,
    columns: Sequence[str],
    rows: Iterable[tuple[object, ...]],
) -> None:
    left = iter(rows)
    while piece := list(islice(left, ROWS_AT_ONCE)):
        await conn.copy_records_to_table(table, schema_name=schema, columns=columns, records=piece)
