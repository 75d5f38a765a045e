"""What scenarios brought: medians over repeats, with their spread, and a JSON form that says where they come from."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.load import Histogram, Measurement
from benchmarks.load.measurement import TIMES

GATEWAY, DIRECT = "gateway", "direct"
"""The two ways of a load: through the gateway, and straight to the engine."""
_SECRET = frozenset({"--api-key", "--header"})
_ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over repeats."""

    median: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Result:
    """A load, sent one way, some times over."""

    scenario: str
    via: str
    measured: tuple[Measurement, ...]

    def spread(self, figure: Callable[[Measurement], float | None]) -> Spread | None:
        """Median, lowest and highest of a figure; ``None`` where it does not apply."""
        values = [value for one in self.measured if (value := figure(one)) is not None and math.isfinite(value)]
        return Spread(statistics.median(values), min(values), max(values)) if values else None

    def median(self, figure: Callable[[Measurement], float | None]) -> float | None:
        """The median of a figure."""
        spread = self.spread(figure)
        return spread.median if spread else None

    def times(self, name: str) -> Histogram:
        """The durations of all repeats together."""
        merged = Histogram()
        for one in self.measured:
            merged.merge(getattr(one, name))
        return merged

    def to_json(self) -> dict[str, Any]:
        """Figures of each repeat, and the durations of all together."""
        return {
            "scenario": self.scenario,
            "via": self.via,
            "load": self.measured[0].load.to_json(),
            "repeats": [
                {**one.figures(), "error_kinds": dict(one.errors), "open_mean": one.open_mean} for one in self.measured
            ],
            "times": {name: merged.to_json() for name in TIMES if (merged := self.times(name)).total},
        }


def document(results: Iterable[Result], *, settings: Mapping[str, Any]) -> dict[str, Any]:
    """All of a run, with the machine, the code and the settings that it was made with."""
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "has_uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "command": _command(),
        "machine": machine(),
        "versions": versions("aiohttp", "asyncpg", "httptools", "orjson", "redis", "uvloop"),
        "settings": dict(settings),
        "results": [result.to_json() for result in results],
    }


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def versions(*packages: str) -> dict[str, str]:
    """Those of installed packages."""
    found = {}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of this code, or ``unknown``."""
    return _git("rev-parse", "--short", "HEAD") or "unknown"


def added_ms(results: Sequence[Result], scenario: str, times: str, percent: float) -> float | None:
    """What the gateway adds to a percentile, in milliseconds; ``None`` unless both ways were measured.

    The difference of two percentiles, over all repeats: not that of single requests, which nobody can send both ways.
    """
    both = {result.via: result.times(times) for result in results if result.scenario == scenario}
    if not all(via in both and both[via].total for via in (GATEWAY, DIRECT)):
        return None
    return (both[GATEWAY].percentile_s(percent) - both[DIRECT].percentile_s(percent)) * 1e3


def _command() -> list[str]:
    """What was typed, without what must not be written down."""
    shown: list[str] = [Path(sys.argv[0]).name]
    for argument in sys.argv[1:]:
        option, sign, _ = argument.partition("=")
        if shown[-1] in _SECRET:
            shown.append("…")
        else:
            shown.append(f"{option}=…" if sign and option in _SECRET else argument)
    return shown


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
