"""How we know that the load generator is not what is measured: it loads the bare mock engine, on another core.

What it reaches here with nothing in between is what it could have reached in a benchmark; what a benchmark did reach
has to be well below. Beside it stands what the mock costs, as it shares the machine with what is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from benchmarks.load import Measurement, Progress, Target, run
from benchmarks.mock import process as mock_process
from benchmarks.processes import choose_cores, open_many_files, pin
from benchmarks.scenarios import SCENARIOS
from benchmarks.stack import MODEL

CHECKED = ("small", "streams", "paced-300", "paced-800")


def self_check(
    *, seconds: float, processes: int, progress: Callable[[Progress], None] | None = None
) -> list[Measurement]:
    """Load the bare engine with the closed loops of the standard set."""
    open_many_files()
    cores = choose_cores(1)
    measured = []
    with mock_process.running("--model", MODEL) as mock:
        pin(mock.pid, cores.measured)
        for scenario in (SCENARIOS[name] for name in CHECKED):
            mock.pace(itl_ms=scenario.itl_ms)
            load = replace(scenario.load, seconds=seconds)
            target = Target(mock.url, "none", MODEL)
            watch = {"engine": [mock.pid]}
            measured.append(run(target, load, watch=watch, processes=processes, cores=cores.others, progress=progress))
    return measured


def length_s(seconds: float) -> float:
    """How long a check takes."""
    return sum(SCENARIOS[name].load.warm_up_s + seconds for name in CHECKED)


def show(measured: Sequence[Measurement], console: Console) -> None:
    """Print what it came to."""
    table = Table(title="The load generator against the bare engine", title_justify="left")
    table.add_column("load")
    for name in ("a second", "of", "generator", "µs each", "it could do", "engine", "µs each", "errors"):
        table.add_column(name, justify="right")
    for one in measured:
        rate = _rate(one)
        share, engine = max(one.generator_shares), one.cpu_share("engine")
        due = one.due_events_per_s
        table.add_row(
            f"{one.load.name}, {'chunks' if one.load.stream else 'answers'}",
            f"{rate:,.0f}",
            f"{due:,.0f}" if due else "–",
            f"{share:.0%}",
            f"{sum(one.generator_shares) / rate * 1e6:.1f}",
            f"{rate / share:,.0f}",
            f"{engine:.0%}",
            f"{engine / rate * 1e6:.1f}",
            f"{one.error_count:,}",
        )
    console.print(table)
    if len(os.sched_getaffinity(0)) == 1:
        console.print("Both had to share the one core that there is.")


def _rate(one: Measurement) -> float:
    return max(1e-9, one.events_per_s if one.load.stream else one.requests_per_s)
