"""What a newcomer finds after `make run`: an organization with credit, a key, a live endpoint with a price.

Floor: stack. Everything here is idempotent, so the same folder keeps the same balance and key from run to run. A
second, small organization pays for the completion that proves readiness; the newcomer's balance is left alone.

``DATA_DIR/demo.json`` (0600) holds the demo keys in the clear, against the rule that a key is shown once: this is a
key to a simulator on this machine, and showing it again is what makes the second run as easy as the first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.control import endpoints, keys, organizations
from gateway.control.database import NotFound, new_id, session
from gateway.control.endpoints import EndpointRecord, NewBackend, NewEndpoint
from gateway.core import keys as core_keys
from gateway.core.state import EndpointStatus
from gateway.stack.processes import write_private
from ledger.books.ledger import Ledger
from ledger.core.meters import Meter
from ledger.core.money import NANOS_PER_USD

if TYPE_CHECKING:
    from gateway.control.database import Connection

DEMO_CREDIT_NANOS = 10 * NANOS_PER_USD
PROBE_CREDIT_NANOS = 1 * NANOS_PER_USD
SIMULATED_MODEL = "sim-8b"
RATES: Mapping[Meter, int] = {
    # Nano-USD per million tokens: 0.15 USD, 0.075 USD and 0.60 USD.
    Meter.PROMPT: 150_000_000,
    Meter.CACHED_PROMPT: 75_000_000,
    Meter.COMPLETION: 600_000_000,
}


@dataclass(frozen=True, slots=True)
class Tenant:
    """One organization with all it needs to call its endpoint."""

    org_id: str
    endpoint_id: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Demo:
    """The newcomer's tenant, and the one that pays for the readiness probe."""

    newcomer: Tenant
    probe: Tenant


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a tenant should have. ``name`` is also the field in ``demo.json``."""

    name: str
    organization: str
    endpoint: str
    credit_nanos: int


_NEWCOMER = _Wish("demo", "Demo", "demo", DEMO_CREDIT_NANOS)
_PROBE = _Wish("probe", "Readiness probe", "readiness-probe", PROBE_CREDIT_NANOS)


async def prepare_demo(*, database_url: str, ledger: Ledger, folder: Path, simulator_url: str, new_key: bool) -> Demo:
    """Make, find or repair both tenants.

    Args:
        folder: the data folder.
        simulator_url: where the engine of this run listens; it replaces the one of an earlier run.
        new_key: mint another key for the newcomer; the old one stays valid until it is revoked.
    """
    file = folder / "demo.json"
    kept = _read(file)
    async with session(database_url) as conn:
        newcomer = await _tenant(conn, ledger, _NEWCOMER, kept, simulator_url, new_key=new_key)
        probe = await _tenant(conn, ledger, _PROBE, kept, simulator_url, new_key=False)
    remembered = {
        "comment": "Plaintext keys of a local demo. Mint real keys with `pareta-gateway key mint`.",
        "simulator_url": simulator_url,
        _NEWCOMER.name: newcomer.api_key,
        _PROBE.name: probe.api_key,
    }
    write_private(file, json.dumps(remembered, indent=2) + "\n")
    return Demo(newcomer, probe)


async def _tenant(
    conn: Connection, ledger: Ledger, wish: _Wish, kept: Mapping[str, str], simulator_url: str, *, new_key: bool
) -> Tenant:
    organization, _ = await organizations.create(conn, wish.organization)
    await ledger.open_accounts(organization.id)
    await ledger.top_up(organization.id, wish.credit_nanos, f"stack-{wish.name}-credit", "Demo credit, not a payment")
    endpoint = await _endpoint(conn, organization.id, wish, simulator_url, kept.get("simulator_url", ""))
    if not await ledger.current_cards(endpoint_id=endpoint.id):
        await ledger.set_price(endpoint.id, RATES)
    token = kept.get(wish.name, "")
    if new_key or not await _still_good(conn, token, organization.id):
        _, token = await keys.mint(conn, organization.id, name=f"made by up for the {wish.name}")
    return Tenant(organization.id, endpoint.id, token)


async def _endpoint(conn: Connection, org_id: str, wish: _Wish, url: str, earlier_url: str) -> EndpointRecord:
    try:
        found = await endpoints.find(conn, wish.endpoint, org_id=org_id)
    except NotFound:
        new = NewEndpoint(
            org_id=org_id,
            name=wish.endpoint,
            alias="simulator-1",
            real_model=SIMULATED_MODEL,
            context_tokens=8192,
            max_output_tokens=4096,
            capabilities=("chat", "completion", "embedding"),
            backends=(NewBackend(url),),
        )
        found, _ = await endpoints.add(conn, new)
    if found.status is not EndpointStatus.LIVE:
        found = await endpoints.start(conn, found.id)
    if url not in {backend.url for backend in found.backends}:
        await _point_to(conn, found.id, url, earlier_url)
    return found


async def _point_to(conn: Connection, endpoint_id: str, url: str, earlier_url: str) -> None:
    """The engine got another port: move our backend, and leave alone what an operator added."""
    moved = await conn.fetchval(
        "UPDATE control.backend SET url = $3 WHERE endpoint_id = $1 AND url = $2 RETURNING id",
        endpoint_id,
        earlier_url,
        url,
    )
    if moved is None:
        await conn.execute(
            "INSERT INTO control.backend (id, endpoint_id, url) VALUES ($1, $2, $3)", new_id("be"), endpoint_id, url
        )


async def _still_good(conn: Connection, token: str, org_id: str) -> bool:
    parsed = core_keys.parse(token)
    if parsed is None:
        return False
    try:
        record = await keys.find(conn, parsed[0])
    except NotFound:
        return False
    return record.org_id == org_id and record.state_at(datetime.now(UTC)) == "active"


def _read(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}
