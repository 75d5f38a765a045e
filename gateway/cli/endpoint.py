"""endpoint: add, list, show, stop, start, remove.

Floor: cli. The operator sees what customers never do: the real model id and the backends' addresses.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import click

from gateway.cli.output import show_list, show_record
from gateway.cli.place import Place, operator
from gateway.control import endpoints, organizations
from gateway.control.database import NotFound
from gateway.control.endpoints import CAPABILITIES, EndpointRecord, NewBackend, NewEndpoint
from gateway.core.state import EndpointStatus

_ID = re.compile(r"ep_[A-Za-z0-9_-]{1,60}")
_WHOSE = click.option("--org", "org", metavar="ORG", help="Whose endpoint, where several have the same name.")


@click.group()
def endpoint() -> None:
    """Endpoints and the backends behind them. ENDPOINT is an id or a name."""


@endpoint.command()
@click.argument("name", required=False)
@click.option("--id", "endpoint_id", metavar="EP", help="A chosen id (ep_…); otherwise one is minted.")
@click.option("--org", "org", required=True, metavar="ORG", help="Id or name of the organization.")
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="URL",
    help="Root of an engine, or triton://host:8001/model; repeat for replicas.",
)
@click.option("--model", metavar="ID", help="The model's id at the engine; customers never see it.")
@click.option(
    "--model-folder",
    type=click.Path(resolve_path=True),
    metavar="DIR",
    help="For Triton: where the model's tokenizer and chat template lie on the workers' machine.",
)
@click.option("--metrics-url", metavar="URL", help="Where the engine tells how busy it is. Triton: its port 8002.")
@click.option("--alias", metavar="ALIAS", help="The public name of the model, such as qwen-1.")
@click.option("--context-tokens", type=int, default=32_768, show_default=True, metavar="N")
@click.option("--max-output-tokens", type=int, metavar="N", help="Default: the context.")
@click.option("--deadline-s", type=float, default=600.0, show_default=True, metavar="S")
@click.option(
    "--capability",
    "capabilities",
    multiple=True,
    type=click.Choice(CAPABILITIES),
    default=("chat", "completion"),
    show_default=True,
    help="What it serves; repeatable.",
)
@click.option("--backend-key-file", metavar="FILE", help="File on the workers' machine with the engines' own key.")
@click.option("--health-path", default="/health", show_default=True, metavar="PATH")
@click.option("--strict-backend", is_flag=True, help="The engines refuse unknown fields: drop them.")
@click.option("--seed", is_flag=True, help="A record that is listed and was never deployed; without backends.")
@operator
async def add(
    place: Place,
    /,
    name: str | None,
    endpoint_id: str | None,
    org: str,
    backends: tuple[str, ...],
    model: str | None,
    model_folder: str | None,
    metrics_url: str | None,
    alias: str | None,
    context_tokens: int,
    max_output_tokens: int | None,
    deadline_s: float,
    capabilities: tuple[str, ...],
    backend_key_file: str | None,
    health_path: str,
    strict_backend: bool,
    seed: bool,
) -> None:
    """Register the endpoint NAME; asked again with the same name or id and the same content, find it."""
    if model is None and backends:
        model = endpoints.model_of(backends[0])
    if model is None and not seed:
        raise click.UsageError("Give the model's id at the engine with --model.")
    async with place.control() as conn:
        organization = await organizations.find(conn, org)
        record, was_new = await endpoints.add(
            conn,
            NewEndpoint(
                org_id=organization.id,
                id=endpoint_id,
                name=name,
                alias=alias,
                real_model=model or "seed",
                status=EndpointStatus.SEED if seed else EndpointStatus.LIVE,
                context_tokens=context_tokens,
                max_output_tokens=max_output_tokens,
                deadline_s=deadline_s,
                capabilities=capabilities,
                backends=tuple(
                    NewBackend(
                        url,
                        api_key_file=backend_key_file,
                        tolerates_unknown_fields=not strict_backend,
                        health_path=health_path,
                        model_folder=model_folder,
                        metrics_url=metrics_url,
                    )
                    for url in backends
                ),
            ),
        )
    async with place.ledger() as ledger:
        priced = bool(await ledger.current_cards(endpoint_id=record.id))
    _show(place, record, created=was_new, priced=priced)
    if not priced and not seed:
        click.echo(f"note: it has no price yet and answers nothing before it has: price set {record.name} …", err=True)
    for sentence in await asyncio.to_thread(_doubts_of, model_folder) if model_folder else ():
        click.echo(f"note: {sentence}", err=True)


def _doubts_of(model_folder: str) -> tuple[str, ...]:
    """What is wrong with a model folder or not possible with it, as far as this machine can see."""
    from backends.model_folder import ModelFolderError, load_model_folder  # jinja2 and tokenizers: slow to load

    if not Path(model_folder).is_dir():
        return (f"{model_folder} is no folder on this machine; the workers look for it on theirs.",)
    try:
        return load_model_folder(model_folder).lacks
    except ModelFolderError as error:
        return (str(error),)


@endpoint.command("list")
@click.option("--org", "org", metavar="ORG", help="Only this organization's.")
@operator
async def list_(place: Place, /, org: str | None) -> None:
    """List the endpoints, oldest first."""
    async with place.control() as conn:
        org_id = None if org is None else (await organizations.find(conn, org)).id
        found = await endpoints.list_all(conn, org_id=org_id)
    show_list(
        place,
        [_record(record) for record in found],
        columns=("id", "name", "org_id", "alias", "model", "status", "backends"),
        title="Endpoints",
        empty="There is no endpoint yet.",
    )


@endpoint.command()
@click.argument("reference", metavar="ENDPOINT")
@_WHOSE
@operator
async def show(place: Place, /, reference: str, org: str | None) -> None:
    """Show an endpoint with its backends."""
    record = await find_endpoint(place, reference, org)
    async with place.ledger() as ledger:
        priced = bool(await ledger.current_cards(endpoint_id=record.id))
    _show(place, record, priced=priced)


@endpoint.command()
@click.argument("reference", metavar="ENDPOINT")
@_WHOSE
@operator
async def stop(place: Place, /, reference: str, org: str | None) -> None:
    """Take an endpoint out of service: new requests get 503, running ones finish. A repeat changes nothing."""
    record = await find_endpoint(place, reference, org)
    async with place.control() as conn:
        _show(place, await endpoints.stop(conn, record.id))


@endpoint.command()
@click.argument("reference", metavar="ENDPOINT")
@_WHOSE
@operator
async def start(place: Place, /, reference: str, org: str | None) -> None:
    """Put an endpoint into service again. A repeat changes nothing."""
    record = await find_endpoint(place, reference, org)
    async with place.control() as conn:
        _show(place, await endpoints.start(conn, record.id))


@endpoint.command()
@click.argument("reference", metavar="ENDPOINT")
@_WHOSE
@operator
async def remove(place: Place, /, reference: str, org: str | None) -> None:
    """Remove an endpoint for good; its receipts stay. A repeat with its id changes nothing."""
    try:
        endpoint_id = (await find_endpoint(place, reference, org)).id
    except NotFound:
        if not _ID.fullmatch(reference):
            raise
        endpoint_id = reference
    async with place.control() as conn:
        await endpoints.remove(conn, endpoint_id)
    show_record(place, {"id": endpoint_id, "removed": True}, title="Endpoint")


async def find_endpoint(place: Place, reference: str, org: str | None) -> EndpointRecord:
    """The endpoint that is meant. Raises: NotFound; Refused when the name is ambiguous."""
    async with place.control() as conn:
        org_id = None if org is None else (await organizations.find(conn, org)).id
        return await endpoints.find(conn, reference, org_id=org_id)


def _show(place: Place, record: EndpointRecord, **more: Any) -> None:
    show_record(place, {**_record(record), **more}, title="Endpoint")


def _record(record: EndpointRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "name": record.name,
        "org_id": record.org_id,
        "alias": record.alias,
        "model": record.real_model,
        "status": record.status.value,
        "context_tokens": record.context_tokens,
        "max_output_tokens": record.max_output_tokens,
        "deadline_s": record.deadline_s,
        "capabilities": list(record.capabilities),
        "created_at": record.created_at,
        "backends": [
            {"id": backend.id, "url": backend.url, "state": backend.state, **backend.options}
            for backend in record.backends
        ],
    }
