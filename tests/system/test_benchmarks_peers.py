"""Peers side by side, for a second each: real processes on their cores, figures of their own CPU."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.peers.catalog import DIRECT, GATEWAY, NGINX, UNMETERED
from tests.stack import ROOT, clean_environment


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where peers are: no test downloads one."""
    folder = ROOT / ".bench-peers"
    return folder if folder.is_dir() else tmp_path_factory.mktemp("peers")


@pytest.fixture(scope="module")
def there(installed: Path) -> list[str]:
    """The peers that can be started without a download."""
    has_nginx = (
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or (installed / NGINX / "installed").exists()
    )
    return [DIRECT, *([NGINX] if has_nginx else []), GATEWAY, UNMETERED]


@pytest.mark.long
@pytest.mark.timeout(240)
def test_one_short_run(there: list[str], installed: Path, tmp_path: Path) -> None:
    """One command starts the peers, measures each, prints tables and floors, and leaves files and no process."""
    out = tmp_path / "results"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.peers", "--rounds", "1", "--seconds", "1"),
            *("--scenario", "small", "--installed", str(installed), "--out", str(out)),
            *(part for peer in there for part in ("--peer", peer)),
        ],
        cwd=ROOT,
        env=clean_environment(TMPDIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=220,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads((out / "results.json").read_text())
    assert {peer["name"]: peer["absent_because"] for peer in content["peers"]} == dict.fromkeys(there)
    found = {(one["peer"], one["scenario"]): one for one in content["measurements"]}
    assert set(found) == {(peer, "small") for peer in there}
    for (peer, scenario), one in found.items():
        assert not one["errors"], (peer, scenario, one["errors"])
        assert one["rate_per_s"] > 0
        if peer == DIRECT:
            assert one["proxy_cpu_us"] is None
        else:
            assert one["proxy_cpu_us"] > 0
            assert one["proxy_share"] <= 1.1, "a proxy has one core"
    for name in ("results.json", "table.txt", "peers.png"):
        assert (out / name).stat().st_size > 1000
    table = (out / "table.txt").read_text()
    assert "small whole answers, 64 connections" in table
    assert "not known: 64-token streams at once" in table
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "its data is gone"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in command_of(pid)]


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""
