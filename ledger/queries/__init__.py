"""Named queries that are too long to read inside Python."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def query(name: str) -> str:
    """The text of ``<name>.sql`` in this folder."""
    return resources.files(__name__).joinpath(f"{name}.sql").read_text("utf-8")
