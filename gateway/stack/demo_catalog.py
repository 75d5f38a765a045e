"""The demonstration's catalogue in a local stack: tasks, boards, and what serves their models.

Floor: stack. It is imported only where no operator has imported another one, and what serves its models is kept
pointing at this run's engines: the simulator, or the Triton server where the operator asked for that.
"""

from __future__ import annotations

from typing import Any, Final

from backends.triton_server.interfaces import PROGRAMS
from gateway.control.catalog import folder
from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from gateway.control.deploys import store
from gateway.stack.demo import Engine

_OURS: Final = "demonstration-"
"""How versions of the shipped catalogue begin."""
DEMO_MODELS: Final = ("rules-small", "rules-medium", "rules-large", "demo-frontier")
"""What the simulator serves besides: rule programs, of which the last one plays a vendor's model."""


async def prepare_catalog(database_url: str, *, simulator_url: str, triton: Engine | None = None) -> bool:
    """Import the shipped catalogue and say what serves its models; False if an operator has brought another one.

    Args:
        triton: a model on the Triton server that shall load them instead of the simulator.

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
            if triton is not None and model.id in _ON_TRITON:
                driver, spec = "triton", _on_triton(triton, model.id)
            elif model.id in DEMO_MODELS:
                driver, spec = "static", {"backends": [simulator_url]}
            else:
                continue
            await store.register(conn, model.id, driver, spec, max_output_tokens=None)
    return True


_ON_TRITON: Final = frozenset(program.name for program in PROGRAMS)


def _on_triton(engine: Engine, model: str) -> dict[str, Any]:
    """What the driver `triton` reads: this model beside the engine's, with the same template and tokenizer."""
    server, _, _ = engine.backend.url.rpartition("/")
    return {"url": f"{server}/{model}", "options": {"model_folder": engine.backend.model_folder}}
