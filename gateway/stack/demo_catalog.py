"""The demonstration's catalogue in a local stack: tasks, boards, and the simulator behind their models.

Floor: stack. It is imported only where no operator has imported another one, and what serves its models is kept
pointing at this run's simulator.
"""

from __future__ import annotations

from typing import Final

from gateway.control.catalog import folder
from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from gateway.control.deploys import store

_OURS: Final = "demonstration-"
"""How versions of the shipped catalogue begin."""
DEMO_MODELS: Final = ("rules-small", "rules-medium", "rules-large", "demo-frontier")
"""What the simulator serves besides: rule programs, of which the last one plays a vendor's model."""


async def prepare_catalog(database_url: str, *, simulator_url: str) -> bool:
    """Import the shipped catalogue and say what serves its models; False if an operator has brought another one.

    Raises:
        ControlError: Postgres can't be asked.
    """
    shipped = read_catalog(folder.read_files(folder.shipped()))
    async with session(database_url, timeout_s=30.0) as conn:
        version = await conn.fetchval("SELECT version FROM control.catalog_import ORDER BY id DESC LIMIT 1")
        if version is not None and not version.startswith(_OURS):
            return False
        await import_catalog(conn, shipped)
        for model in shipped.models:
            if model.id in DEMO_MODELS:
                await store.register(conn, model.id, "static", {"backends": [simulator_url]}, max_output_tokens=None)
    return True
