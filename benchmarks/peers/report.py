"""A run as files: ``results.json``, ``table.txt`` and ``peers.png`` in a folder of their own."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peers.catalog import LEFT_OUT
from benchmarks.peers.figures import WAITING, Cell, Run
from benchmarks.peers.peer import Peer
from benchmarks.peers.scenarios import Scenario
from benchmarks.peers.side_by_side import Plan
from benchmarks.peers.table import print_run, verdicts
from benchmarks.processes import Cores
from benchmarks.results import commit, machine

WIDTH = 200


def default_folder() -> Path:
    """``benchmarks/results/peers-<day>-<commit>``."""
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    return Path(__file__).parents[1] / "results" / f"peers-{day}-{commit()}"


def write(folder: Path, run: Run, plan: Plan, cores: Cores, versions: Mapping[str, str]) -> list[str]:
    """Write all of it. Returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = document(run, plan, cores, versions)
    (folder / "results.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    with (folder / "table.txt").open("w", encoding="utf-8") as file:
        print_run(Console(file=file, width=WIDTH), run, plan.peers, plan.scenarios, versions)
    names = ["results.json", "table.txt"]
    try:
        from benchmarks.peers import plots
    except ImportError:
        print("There are no plots: matplotlib is not installed.", file=sys.stderr)
        return names
    plots.draw(run, plan.peers, folder / "peers.png")
    return [*names, "peers.png"]


def document(run: Run, plan: Plan, cores: Cores, versions: Mapping[str, str]) -> dict[str, Any]:
    """All of a run as plain values, with the machine, the code and the settings that it was made with."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "cores": asdict(cores),
        "settings": {"rounds": plan.rounds, "seconds": plan.seconds, "slow_seconds": plan.slow_seconds},
        "peers": [_peer(peer, run, versions) for peer in plan.peers],
        "left_out": dict(LEFT_OUT),
        "gaps": [{"peer": peer, "scenario": name, "reason": reason} for (peer, name), reason in run.gaps.items()],
        "floors": [
            {
                "text": verdict.text,
                "is_met": verdict.is_met,
                "spread": asdict(verdict.spread) if verdict.spread else None,
            }
            for verdict in verdicts(run)
        ],
        "scenarios": [_scenario(scenario) for scenario in plan.scenarios],
        "measurements": [_cell(cell) for cell in run.cells],
    }


def _peer(peer: Peer, run: Run, versions: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": peer.name,
        "label": peer.label,
        "note": peer.note,
        "version": versions.get(peer.name, ""),
        "absent_because": run.absent.get(peer.name),
    }


def _scenario(scenario: Scenario) -> dict[str, Any]:
    return {"name": scenario.name, "label": scenario.label, "unit": scenario.unit.value}


def _cell(cell: Cell) -> dict[str, Any]:
    measured = cell.measurement
    return {
        "peer": cell.peer,
        "scenario": cell.scenario.name,
        "round": cell.round,
        "rate_per_s": cell.rate_per_s,
        "proxy_cpu_us": cell.cpu_us,
        "per_core": cell.per_core,
        "proxy_share": cell.proxy_share,
        "all_share": cell.all_share,
        "waiting_share": measured.cpu_share(WAITING) if WAITING in measured.groups else None,
        "errors": dict(measured.errors),
        "load": measured.load.to_json(),
        **measured.figures(),
    }
