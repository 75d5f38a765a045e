"""The benchmarks as a user runs them: against a stack of their own, and against somebody's deployment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stack import ROOT, clean_environment
from tests.system.harness import Gateway, Tenant


def benchmarks(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    own = clean_environment(**environment)
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.long
def test_a_scenario_runs_against_a_stack_of_its_own(tmp_path: Path) -> None:
    """One command starts everything, measures both ways, saves figures and plots, and leaves nothing behind."""
    out = tmp_path / "results"
    done = benchmarks(
        "run", "streams-30", "--seconds", "0.5", "--repeats", "1", "--out", str(out), TMPDIR=str(tmp_path)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "first token over direct" in done.stdout
    content = json.loads((out / "results.json").read_text())
    by_way = {result["via"]: result["repeats"][0] for result in content["results"]}
    assert set(by_way) == {"gateway", "direct"}
    for figures in by_way.values():
        assert figures["errors"] == 0
        assert figures["requests_per_s"] > 0
        assert figures["first_token_ms"]["p50"] > 0
    assert by_way["gateway"]["gateway_cpu_us_per_event"] > 0
    assert by_way["gateway"]["redis_cpu_share"] > 0, "credit was held and settled"
    assert content["settings"]["gateway"]["pool_max_connections"] == 20_000
    assert "password" not in json.dumps(content)
    assert (out / "tables.txt").read_text().startswith("Work")
    assert (out / "latency.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"], "its data is gone"
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and str(tmp_path) in command_of(pid)]


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize("command", [("load",), ("run", "small")])
def test_somebodys_deployment_is_measured(
    gateway: Gateway, tenant: Tenant, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Any OpenAI base URL, key and model; CPU only if it is told whose. The key stands nowhere in what is saved."""
    address = ("--base-url", f"{gateway.base_url}/v1", "--api-key", tenant.key, "--model", tenant.endpoint_id)
    pid = ("--pid", str(gateway.worker_pid(0))) if command == ("load",) else ()
    how = ("--json", "--stream", "--rate", "30") if command == ("load",) else ("--repeats", "1", "--out", str(tmp_path))
    done = benchmarks(*command, *address, "--seconds", "1", *pid, *how)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(done.stdout if command == ("load",) else (tmp_path / "results.json").read_text())
    (result,) = content["results"]
    (figures,) = result["repeats"]
    assert figures["errors"] == 0
    assert figures["requests_per_s"] > 0
    assert ("gateway_cpu_share" in figures) == bool(pid)
    assert tenant.key not in json.dumps(content)


def test_requests_that_go_wrong_are_an_exit_status(gateway: Gateway, tenant: Tenant) -> None:
    """A wrong key: every answer is an error by its status, the command says so, and its exit status is 3."""
    done = benchmarks(
        *("load", "--base-url", gateway.base_url, "--api-key", "nobody", "--model", tenant.endpoint_id),
        *("--seconds", "0.3", "--warm-up", "0.1", "--connections", "2"),
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "status 401" in done.stdout


@pytest.mark.long
def test_growth_draws_its_curves(tmp_path: Path) -> None:
    """Small sizes of one axis: it has its points, each with a cost, and nothing of it is left behind."""
    out = tmp_path / "results"
    done = benchmarks(
        *("growth", "--quick", "--seconds", "1", "--axis", "streams", "--out", str(out)),
        TMPDIR=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    curves = json.loads((out / "growth.json").read_text())["curves"]
    assert set(curves) == {"streams"}
    assert [point["size"] for point in curves["streams"]] == [0, 50]
    assert all(point["cpu_us"] > 0 and point["requests"] > 0 for points in curves.values() for point in points)
    assert curves["streams"][1]["kib_a_stream"] >= 0
    assert (out / "growth.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.long
def test_a_soak_says_whether_memory_is_flat(tmp_path: Path) -> None:
    """Seconds say nothing of memory; but all sorts of requests were sent, went as they should, and were counted."""
    out = tmp_path / "results"
    done = benchmarks("soak", "--minutes", "0.15", "--out", str(out), TMPDIR=str(tmp_path))
    assert done.returncode in (0, 3), done.stdout + done.stderr
    said = json.loads((out / "soak.json").read_text())
    assert said["failures"] == []
    assert set(said["requests"]) == {
        "whole answers",
        "streams",
        "left by their clients",
        "unknown keys",
        "without credit",
    }
    assert all(count > 0 for count in said["requests"].values())
    assert len(said["samples"]) > 5
    assert (done.returncode == 0) is said["is_flat"]
