"""Blocks of the documentation against a gateway."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / ".venv" / "clients"
VERSIONS = ("0.1.0", "0.3.1")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a block left in ``out``, or how it failed, and what it printed."""

    out: Any
    error: dict[str, Any] | None
    printed: str


def block(version: str, base_url: str, api_key: str, code: str, *, options: Any = None, **given: Any) -> Outcome:
    """Run a block; ``given`` are names that it finds, JSON values."""
    folder = CLIENTS / f"pareta-{version}"
    if not folder.is_dir():
        pytest.fail(f"pareta {version} is not installed: run `sh .ci/set-up clients` (make test does).")
    wanted = {
        "base_url": base_url,
        "api_key": api_key,
        "code": textwrap.dedent(code),
        "given": given,
        "options": {"max_retries": 0} if options is None else options,
    }
    run = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "client.py")],
        input=json.dumps(wanted),
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    printed, _, said = run.stdout.rstrip("\n").rpartition("\n")
    answer = json.loads(said)
    assert answer["version"] == version
    return Outcome(answer["out"], answer["error"], printed)
