"""Curves for a person: tables, a picture of small multiples, and JSON that says where they come from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.growth.axes import AXES, Point
from benchmarks.plots import MISSING
from benchmarks.results import commit, machine, versions

WIDTH = 150
Curves = Mapping[str, Sequence[Point]]


def show(curves: Curves, console: Console) -> None:
    """Print a table for each axis."""
    for name, points in curves.items():
        table = Table(title=f"{name}: {AXES[name].about}", title_justify="left")
        extras = sorted({extra for point in points for extra in point.extra})
        for column in ("there are", "µs CPU a request", "× the first", "p50, ms", "p99, ms", "RSS, MiB", "start, s"):
            table.add_column(column, justify="right")
        for extra in extras:
            table.add_column(extra.replace("_", " "), justify="right")
        for point in points:
            table.add_row(
                f"{point.size:,}",
                f"{point.cpu_us:,.0f}",
                f"{point.cpu_us / points[0].cpu_us:.2f}",
                f"{point.latency_ms:.2f}",
                f"{point.p99_ms:.2f}",
                f"{point.rss_mib:,.0f}",
                "–" if point.start_s is None else f"{point.start_s:.1f}",
                *(f"{point.extra[extra]:.1f}" if extra in point.extra else "–" for extra in extras),
            )
        console.print(table)


def save(curves: Curves, folder: Path, *, settings: Mapping[str, Any]) -> None:
    """Write JSON, tables and the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine(),
        "versions": versions("asyncpg", "httptools", "orjson", "redis", "uvloop"),
        "settings": dict(settings),
        "curves": {name: [point.to_json() for point in points] for name, points in curves.items()},
    }
    (folder / "growth.json").write_text(json.dumps(document, indent=1) + "\n")
    with open(folder / "growth.txt", "w") as file:
        show(curves, Console(file=file, width=WIDTH))
    try:
        draw(curves, folder / "growth.png")
    except ImportError:
        print(MISSING)


def draw(curves: Curves, file: Path) -> None:
    """One small picture for each axis: CPU a request against what grows.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(curves), figsize=(3.2 * len(curves), 3.2), layout="constrained", sharey=True, squeeze=False
    )
    top = 1.1 * max(point.cpu_us for points in curves.values() for point in points)
    for axes, (name, points) in zip(panels[0], curves.items(), strict=True):
        places = range(len(points))
        axes.plot(places, [point.cpu_us for point in points], marker="o", color="#0b6e99")
        axes.set_xticks(list(places), [_short(point.size) for point in points])
        axes.set(title=name, xlabel=AXES[name].about, ylim=(0, top))
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("µs of the worker's CPU a request")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _short(number: int) -> str:
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return str(number)
