"""migrate and check-config: what comes before the first start.

Floor: cli.
"""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import click

from gateway.cli.output import show_list, show_text
from gateway.cli.place import Place, operator
from gateway.settings import Settings

_PASSWORD = re.compile(r"(?<=:)[^:/@]*(?=@)|(?<=password=)[^&]*")


@click.command()
@operator
async def migrate(place: Place, /) -> None:
    """Bring the database schemas up to date; a repeat changes nothing."""
    from gateway.stack.prepare import migrate_all

    applied = await migrate_all(place.database_url)
    show_text(
        place, {"applied": applied}, f"Applied {', '.join(applied)}." if applied else "The schemas are up to date."
    )


@click.command("check-config")
@operator
async def check_config(place: Place, /) -> None:
    """Show every setting with its value, default and meaning; a wrong one is refused with a sentence."""
    rows = [_row(spec, place.settings) for spec in fields(Settings)]
    show_list(place, rows, columns=("setting", "value", "default", "meaning"), title="Settings")


def _row(spec: Any, settings: Settings) -> dict[str, Any]:
    value = getattr(settings, spec.name)
    if spec.metadata.get("secret"):
        value = "…" if value else ""
    elif spec.name.endswith("_url"):
        value = _PASSWORD.sub("…", value)
    return {
        "setting": spec.name,
        "value": value,
        "default": spec.default,
        "meaning": spec.metadata["doc"],
    }
