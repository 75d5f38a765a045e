"""serving: set, list. What serves the catalogue's open models; customers see none of it.

Floor: cli.
"""

from __future__ import annotations

from typing import Any

import click
import orjson

from gateway.cli.output import show_list
from gateway.cli.place import Place, operator


@click.group()
def serving() -> None:
    """What serves the catalogue's open models."""


@serving.command("set")
@click.argument("model")
@click.option("--backend", "urls", multiple=True, required=True, metavar="URL", help="An engine; may be repeated.")
@click.option("--upstream-model", help="What the engines call it, where that is not its id.")
@click.option("--health-path", default="/health", show_default=True, help="What says that an engine is ready.")
@click.option("--strict-backend", is_flag=True, help="The engines refuse fields that they do not know.")
@click.option("--max-output-tokens", type=click.IntRange(1), help="The most that one answer may have.")
@operator
async def set_(
    place: Place,
    /,
    model: str,
    urls: tuple[str, ...],
    upstream_model: str | None,
    health_path: str,
    strict_backend: bool,
    max_output_tokens: int | None,
) -> None:
    """Say which running engines serve MODEL (a real id of the catalogue). Deploys from now on use them."""
    from gateway.control.database import NotFound, Refused
    from gateway.control.deploys import store
    from gateway.control.endpoints import normal_url

    if not health_path.startswith("/"):
        raise Refused("The health path of a backend starts with a slash.")
    options: dict[str, Any] = {"health_path": health_path, "tolerates_unknown_fields": not strict_backend}
    spec: dict[str, Any] = {"backends": [normal_url(url) for url in urls], "options": options}
    if upstream_model is not None:
        spec["model"] = upstream_model
    async with place.control() as conn:
        if not await conn.fetchval("SELECT true FROM control.model WHERE id = $1", model):
            raise NotFound(f"The catalogue has no open model {model!r}.")
        await store.register(conn, model, "static", spec, max_output_tokens=max_output_tokens)
    await _show(place)


@serving.command("list")
@operator
async def list_(place: Place, /) -> None:
    """List what serves which model."""
    await _show(place)


async def _show(place: Place) -> None:
    async with place.control() as conn:
        rows = await conn.fetch("SELECT model_id, driver, spec FROM control.serving ORDER BY model_id")
    found = [
        {
            "model": row["model_id"],
            "driver": row["driver"],
            "backends": ", ".join(orjson.loads(row["spec"]).get("backends", [])),
        }
        for row in rows
    ]
    show_list(
        place,
        found,
        columns=("model", "driver", "backends"),
        title="What serves which model",
        empty="Nothing is registered, so nothing can be deployed.",
    )
