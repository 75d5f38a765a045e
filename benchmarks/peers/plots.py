"""A run as a picture: cost of a chunk, requests a core, added time to the first token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from benchmarks.peers.catalog import DIRECT, GATEWAY, UNMETERED
from benchmarks.peers.figures import Run, cpu_us, per_core
from benchmarks.peers.peer import Peer
from benchmarks.peers.scenarios import BURST, PACED_300, PACED_800, SMALL, TTFT
from benchmarks.results import Spread

OURS, OTHERS, PALE = "#0b6e4f", "#8a8f98", 0.5
WIDTH_IN, HEIGHT_IN, DPI = 11.0, 8.0, 110

mpl.use("Agg")


def draw(run: Run, peers: Sequence[Peer], file: Path) -> None:
    """Four panels; a bar is the median, its whisker the range of the rounds."""
    shown = [peer for peer in peers if peer.name != DIRECT]
    picture = Picture(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    panels = picture.subplots(2, 2)
    _pair(
        panels[0][0],
        shown,
        "CPU of the proxy a relayed chunk, µs (less is better)",
        ("300 streams", lambda name: run.spread(name, PACED_300.name, cpu_us)),
        ("800 streams", lambda name: run.spread(name, PACED_800.name, cpu_us)),
    )
    _bars(
        panels[0][1],
        shown,
        "small requests a CPU second of the proxy",
        lambda name: run.spread(name, SMALL.name, per_core),
    )
    _bars(
        panels[1][0],
        shown,
        "64-token streams a CPU second of the proxy",
        lambda name: run.spread(name, BURST.name, per_core),
    )
    _pair(
        panels[1][1],
        shown,
        "time to first token at 30 % load, added over direct, ms",
        ("p50", lambda name: run.added_ms(TTFT.name, name, 50)),
        ("p99", lambda name: run.added_ms(TTFT.name, name, 99)),
    )
    picture.savefig(file, dpi=DPI)


Value = Callable[[str], Spread | None]


def _bars(axes: Axes, peers: Sequence[Peer], title: str, value: Value) -> None:
    _frame(axes, peers, title)
    _draw(axes, peers, value, offset=0.0, height=0.7, alpha=1.0)


def _pair(axes: Axes, peers: Sequence[Peer], title: str, first: tuple[str, Value], second: tuple[str, Value]) -> None:
    _frame(axes, peers, f"{title}\nfull: {first[0]}, pale: {second[0]}")
    _draw(axes, peers, first[1], offset=-0.2, height=0.38, alpha=1.0)
    _draw(axes, peers, second[1], offset=0.2, height=0.38, alpha=PALE)


def _frame(axes: Axes, peers: Sequence[Peer], title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_yticks(range(len(peers)), [peer.label for peer in peers], fontsize=9)
    axes.set_ylim(len(peers) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.grid(axis="x", which="major", alpha=0.3)
    axes.margins(x=0.25)


def _draw(axes: Axes, peers: Sequence[Peer], value: Value, *, offset: float, height: float, alpha: float) -> None:
    for place, peer in enumerate(peers):
        spread = value(peer.name)
        if spread is None or spread.median <= 0:
            axes.text(0.02, place + offset, "no figure", fontsize=7, va="center", transform=axes.get_yaxis_transform())
            continue
        color = OURS if peer.name in (GATEWAY, UNMETERED) else OTHERS
        range_ = [[spread.median - spread.low], [spread.high - spread.median]]
        axes.barh(place + offset, spread.median, height=height, color=color, alpha=alpha, xerr=range_, ecolor="#333333")
        axes.text(spread.high, place + offset, f" {_short(spread.median)}", fontsize=7, va="center")


def _short(value: float) -> str:
    """Three digits, or all those before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
