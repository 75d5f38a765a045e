"""Plots of results as PNG files: latency percentiles, throughput against concurrency, CPU a chunk.

Needs matplotlib (``pip install pareta-gateway[bench]``); without it there are no plots, and a sentence says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import GATEWAY, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MISSING = "There are no plots: matplotlib is not installed (pip install 'pareta-gateway[bench]' brings it)."
_PERCENTS = (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99)
_COLOURS = ("#0b6e99", "#d9730d", "#448361", "#9065b0", "#d44c47", "#cb912f", "#787774", "#c14c8a")


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Draw what there is something to draw of; returns the files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl

    mpl.use("Agg")  # to files, whatever display there is
    from matplotlib import pyplot

    drawn = []
    for name, paint in (
        ("latency", _latency),
        ("throughput", _throughput),
        ("cpu-per-chunk", _cpu_per_chunk),
    ):
        figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
        if paint(results, axes):
            axes.grid(visible=True, alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            file = folder / f"{name}.png"
            figure.savefig(file, dpi=110)
            drawn.append(file)
        pyplot.close(figure)
    return drawn


def _latency(results: Sequence[Result], axes: Axes) -> bool:
    """Percentiles of the open loops: time to first token of streams, latency of whole answers."""
    shown = [result for result in results if result.measured[0].load.is_open_loop]
    colours = dict(zip(dict.fromkeys(result.scenario for result in shown), _COLOURS, strict=False))
    for result in shown:
        is_stream = result.measured[0].load.stream
        times = result.times("first_token" if is_stream else "latency")
        if not times.total:
            continue
        percents = [percent for percent in _PERCENTS if times.total * (100 - percent) >= 100]
        axes.plot(
            [100 / (100 - percent) for percent in percents],
            [times.percentile_s(percent) * 1e3 for percent in percents],
            color=colours[result.scenario],
            linestyle="-" if result.via == GATEWAY else "--",
            label=f"{result.scenario}, {'first token' if is_stream else 'whole answer'}, {result.via}",
        )
    if not axes.lines:
        return False
    axes.set(xscale="log", yscale="log", xlabel="percentile", ylabel="ms", title="Latency percentiles, from when due")
    axes.set_xticks([100 / (100 - percent) for percent in (0, 50, 90, 99, 99.9)], ["0", "50", "90", "99", "99.9"])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.legend(fontsize="small")
    return True


def _throughput(results: Sequence[Result], axes: Axes) -> bool:
    """Answers a second against connections."""
    shown = [result for result in results if result.scenario == "concurrency"]
    for via, colour in zip(dict.fromkeys(result.via for result in shown), _COLOURS, strict=False):
        points = [result for result in shown if result.via == via]
        axes.plot(
            [result.measured[0].load.connections or 0 for result in points],
            [result.median(lambda one: one.requests_per_s) or 0.0 for result in points],
            color=colour,
            marker="o",
            label=via,
        )
    if not shown:
        return False
    ticks = sorted({result.measured[0].load.connections or 0 for result in shown})
    axes.set(xscale="log", xlabel="connections", ylabel="answers a second", title="Small whole answers", ylim=(0, None))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.legend()
    return True


def _cpu_per_chunk(results: Sequence[Result], axes: Axes) -> bool:
    """The gateway's CPU time for each chunk of a stream, with the spread of the repeats."""
    names, middles, below, above = [], [], [], []
    for result in results:
        load = result.measured[0].load
        if not load.stream or result.via != GATEWAY or result.measured[0].open_mean >= 5000:
            continue
        spread = result.spread(lambda one: one.cpu_us_per_event("gateway") if "gateway" in one.groups else None)
        if spread is not None:
            names.append(load.name)
            middles.append(spread.median)
            below.append(spread.median - spread.low)
            above.append(spread.high - spread.median)
    if not names:
        return False
    bars = axes.barh(names, middles, xerr=(below, above), color=_COLOURS[0], capsize=3, height=0.6)
    axes.bar_label(bars, fmt="%.1f", padding=6)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.set(xlabel="µs of the gateway's CPU for each chunk", title="CPU a chunk, metering on")
    return True
