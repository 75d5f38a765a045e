"""Hand settings to a child process: the inverse of ``gateway.settings.load``.

Floor: stack.
"""

from __future__ import annotations

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
