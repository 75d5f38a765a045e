"""Short storms of faults, as part of every test run. The long one is ``make faults SECONDS=3600``."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time

import pytest

from tests.faults.catalog import FAULTS
from tests.faults.world import ROOT

SOME = 8


def _storm(seed: int, *arguments: str) -> None:
    print(f"seed {seed}")
    command = [sys.executable, "-m", "tests.faults", "--seed", str(seed), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def _seed() -> int:
    return int(os.environ.get("TEST_SEED", "0")) or time.time_ns() % 2**32


@pytest.mark.timeout(900)
def test_some_faults_lose_double_and_invent_no_charge() -> None:
    """A few things are broken under load, others each time; then the money is right to the nano."""
    seed = _seed()
    some = random.Random(seed).sample(sorted({fault.number for fault in FAULTS}), SOME)
    _storm(seed, "--seconds", "10", "--only", ",".join(some))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_fault_loses_doubles_or_invents_a_charge() -> None:
    """Everything is broken once under load, in random order; then the money is right to the nano."""
    _storm(_seed(), "--seconds", "45")
