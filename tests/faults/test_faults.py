"""A short storm of every fault, as part of every test run. The long one is ``make faults SECONDS=3600``."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from tests.faults.world import ROOT

SECONDS = 45


@pytest.mark.timeout(900)
def test_no_fault_loses_doubles_or_invents_a_charge() -> None:
    """Everything is broken once under load, in random order; then the money is right to the nano."""
    seed = int(os.environ.get("TEST_SEED", "0")) or time.time_ns() % 2**32
    print(f"seed {seed}")
    command = [sys.executable, "-m", "tests.faults", "--seconds", str(SECONDS), "--seed", str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
