"""The example that the README walks through, with both SDKs against what `make run` starts."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.seed.run import CLIENTS, ROOT
from tests.stack import Stack


def test_s004_the_example_walks_the_whole_funnel(stack: Stack, version: str) -> None:
    """Six steps, each of which says what really came: the winner is deployed, answers, and is charged its flat rate."""
    walk_the_funnel(stack, version)


def walk_the_funnel(stack: Stack, version: str) -> None:
    """Run the example against a stack, and believe nothing that it does not print."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(CLIENTS / f"pareta-{version}"),
        "PARETA_API_KEY": stack.api_key,
        "PARETA_BASE_URL": stack.base_url,
    }
    ran = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "funnel.py")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    steps = [line.split()[1] for line in ran.stdout.splitlines() if line[:1].isdigit()]
    assert steps == ["match", "leaderboard", "eval", "deploy", "chat", "metrics"]
    assert "-> contract-key-fields" in ran.stdout
    assert "alder-1 is live as ep_" in ran.stdout
    assert '"party_a": "Alder Works Ltd"' in ran.stdout
    assert "1 request, 150 micro-USD instead of" in ran.stdout
