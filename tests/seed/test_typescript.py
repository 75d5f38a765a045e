"""Seed map K: the TypeScript client against what `make run` starts, and its built form against its source."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from gateway.control import keys, organizations
from gateway.control.database import session
from tests.seed.run import ROOT
from tests.services import run_apart
from tests.stack import Stack

CLIENT = ROOT / "clients" / "typescript"


def node() -> str:
    """Node 18 or newer."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed, so the TypeScript client cannot be run.")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    major = int(version[1:].split(".")[0])
    if major < 18:
        pytest.skip(f"node {major} is too old for the TypeScript client.")
    return found


def test_t01_to_t39_the_pages_blocks(stack: Stack) -> None:
    """Every TypeScript block of the page, and the client's own tests of its wire."""
    program = node()

    async def poor_key() -> str:
        async with session(stack.run_file["database_url"]) as conn:
            made, _ = await organizations.create(conn, f"Poor {os.getpid()}")
            return (await keys.mint(conn, made.id))[1]

    environment = {
        **os.environ,
        "PARETA_BASE_URL": stack.base_url,
        "PARETA_API_KEY": stack.api_key,
        "PARETA_POOR_KEY": run_apart(poor_key()),
    }
    files = sorted(str(file) for file in (CLIENT / "test").glob("*.test.mjs"))
    ran = subprocess.run(
        [program, "--test", "--test-reporter=tap", *files],
        env=environment,
        cwd=CLIENT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
    assert "# skipped 0" in ran.stdout, ran.stdout[-3000:]


def test_what_is_shipped_is_what_was_built(tmp_path: Path) -> None:
    """The committed `dist` is what the pinned compiler makes of `src`."""
    node()
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed.")
    shutil.copytree(CLIENT, tmp_path / "client", ignore=shutil.ignore_patterns("node_modules", "dist"))
    here = tmp_path / "client"
    fetch = [npm, "ci", "--silent", "--no-audit", "--no-fund"]
    got = subprocess.run(fetch, cwd=here, capture_output=True, text=True, timeout=100, check=False)
    if got.returncode != 0:
        pytest.skip(f"The compiler cannot be fetched: {got.stderr.strip()[-200:]}")
    subprocess.run([npm, "run", "--silent", "build"], cwd=here, check=True, timeout=100)
    for file in sorted((CLIENT / "dist").iterdir()):
        assert (here / "dist" / file.name).read_text() == file.read_text(), f"{file.name}: run `npm run build`"
    assert json.loads((CLIENT / "package.json").read_text()).get("dependencies") is None
