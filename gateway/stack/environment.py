"""Hand settings to a child process: the inverse of ``gateway.settings.load``.

Floor: stack.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from gateway.settings import BARE_NAMES, Settings


def environment_of(settings: Settings) -> dict[str, str]:
    """Environment variables under which ``load`` returns these settings again, whatever else is set."""
    variables: dict[str, str] = {}
    for spec in fields(Settings):
        value = getattr(settings, spec.name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        variables[f"PARETA_{spec.name.upper()}"] = text
        if spec.name in BARE_NAMES:
            variables[spec.name.upper()] = text
    # The children run in folders of their own choice.
    variables["DATA_DIR"] = variables["PARETA_DATA_DIR"] = str(settings.data_path)
    return variables


def without_secrets(variables: Mapping[str, str]) -> dict[str, str]:
    """The same for a process that asks no vendor and no bucket: their keys are empty there, whatever else is set."""
    hidden = {spec.name for spec in fields(Settings) if spec.metadata.get("secret")} | {"blob_store_url"}
    names = {f"PARETA_{name.upper()}" for name in hidden} | {name.upper() for name in hidden & BARE_NAMES}
    return {**variables, **dict.fromkeys(names, "")}
