"""What a newcomer finds after `make run`: an organization with credit, a key, a live endpoint with a price.

Floor: stack. Everything here is idempotent, so the same folder keeps the same balance and key from run to run. A
second, small organization pays for the completion that proves readiness; the newcomer's balance is left alone. Where a
Triton server runs, both have one more endpoint on it; in a run without one that endpoint is stopped.

``DATA_DIR/demo.json`` (0600) holds the demo keys in the clear, against the rule that a key is shown once: this is a
key to a simulator on this machine, and showing it again is what makes the second run as easy as the first.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
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
class Engine:
    """What an endpoint stands on.

    Attributes:
        kind: joins the names of endpoints, except for the simulator's.
        backend: as it runs now; another one of an earlier run is replaced.
    """

    kind: str
    alias: str
    model: str
    capabilities: tuple[str, ...]
    backend: NewBackend


SIMULATOR, TRITON = "simulator", "triton"


def simulator_engine(url: str) -> Engine:
    """The simulator at a URL."""
    capabilities = ("chat", "completion", "embedding")
    return Engine(SIMULATOR, "simulator-1", SIMULATED_MODEL, capabilities, NewBackend(url))


def triton_engine(url: str, *, metrics_url: str, model_folder: Path) -> Engine:
    """A model on a Triton server, as `triton://host:port/model`."""
    backend = NewBackend(url, metrics_url=metrics_url, model_folder=str(model_folder))
    return Engine(TRITON, "triton-1", url.rpartition("/")[2], ("chat", "completion"), backend)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One organization with all it needs to call its endpoints; the first of them is the one to show."""

    org_id: str
    endpoint_ids: Mapping[str, str]
    api_key: str

    @property
    def endpoint_id(self) -> str:
        """The endpoint to show."""
        return next(iter(self.endpoint_ids.values()))


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


async def prepare_demo(
    *, database_url: str, ledger: Ledger, folder: Path, engines: Sequence[Engine], new_key: bool
) -> Demo:
    """Make, find or repair both tenants.

    Args:
        folder: the data folder.
        engines: those that run now; an endpoint of one that doesn't is stopped.
        new_key: mint another key for the newcomer; the old one stays valid until it is revoked.
    """
    file = folder / "demo.json"
    kept = _read(file)
    async with session(database_url) as conn:
        newcomer = await _tenant(conn, ledger, _NEWCOMER, kept, engines, new_key=new_key)
        probe = await _tenant(conn, ledger, _PROBE, kept, engines, new_key=False)
    remembered = {
        **kept,
        "comment": "Plaintext keys of a local demo. Mint real keys with `pareta-gateway key mint`.",
        **{_url_field(engine): engine.backend.url for engine in engines},
        _NEWCOMER.name: newcomer.api_key,
        _PROBE.name: probe.api_key,
    }
    write_private(file, json.dumps(remembered, indent=2) + "\n")
    return Demo(newcomer, probe)


async def _tenant(
    conn: Connection, ledger: Ledger, wish: _Wish, kept: Mapping[str, str], engines: Sequence[Engine], *, new_key: bool
) -> Tenant:
    organization, _ = await organizations.create(conn, wish.organization)
    await ledger.open_accounts(organization.id)
    await ledger.top_up(organization.id, wish.credit_nanos, f"stack-{wish.name}-credit", "Demo credit, not a payment")
    ids: dict[str, str] = {}
    for engine in engines:
        endpoint = await _endpoint(conn, organization.id, _name(wish, engine.kind), engine, kept)
        if not await ledger.current_cards(endpoint_id=endpoint.id):
            await ledger.set_price(endpoint.id, RATES)
        ids[engine.kind] = endpoint.id
    if TRITON not in ids:
        await _stop(conn, organization.id, _name(wish, TRITON))
    token = kept.get(wish.name, "")
    if new_key or not await _still_good(conn, token, organization.id):
        _, token = await keys.mint(conn, organization.id, name=f"made by up for the {wish.name}")
    return Tenant(organization.id, ids, token)


def _name(wish: _Wish, kind: str) -> str:
    return wish.endpoint if kind == SIMULATOR else f"{wish.endpoint}-{kind}"


def _url_field(engine: Engine) -> str:
    return f"{engine.kind}_url"


async def _endpoint(
    conn: Connection, org_id: str, name: str, engine: Engine, kept: Mapping[str, str]
) -> EndpointRecord:
    try:
        found = await endpoints.find(conn, name, org_id=org_id)
    except NotFound:
        new = NewEndpoint(
            org_id=org_id,
            name=name,
            alias=engine.alias,
            real_model=engine.model,
            context_tokens=8192,
            max_output_tokens=4096,
            capabilities=engine.capabilities,
            backends=(engine.backend,),
        )
        found, _ = await endpoints.add(conn, new)
    if found.status is not EndpointStatus.LIVE:
        found = await endpoints.start(conn, found.id)
    if engine.backend.url not in {backend.url for backend in found.backends}:
        await _point_to(conn, found.id, engine.backend, kept.get(_url_field(engine), ""))
    return found


async def _stop(conn: Connection, org_id: str, name: str) -> None:
    with contextlib.suppress(NotFound):
        found = await endpoints.find(conn, name, org_id=org_id)
        if found.status is EndpointStatus.LIVE:
            await endpoints.stop(conn, found.id)


async def _point_to(conn: Connection, endpoint_id: str, backend: NewBackend, earlier_url: str) -> None:
    """The engine got another port: move our backend, and leave alone what an operator added."""
    kind = endpoints.kind_of(backend.url)
    options = {"metrics_url": backend.metrics_url, "model_folder": backend.model_folder}
    changed = json.dumps({name: value for name, value in options.items() if value is not None})
    moved = await conn.fetchval(
        "UPDATE control.backend SET url = $3, options = options || $4::jsonb "
        "WHERE endpoint_id = $1 AND url = $2 RETURNING id",
        endpoint_id,
        earlier_url,
        backend.url,
        changed,
    )
    if moved is None:
        await conn.execute(
            "INSERT INTO control.backend (id, endpoint_id, url, kind, options) VALUES ($1, $2, $3, $4, $5::jsonb)",
            new_id("be"),
            endpoint_id,
            backend.url,
            kind,
            changed,
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
