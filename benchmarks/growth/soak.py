"""An hour of constant load on one worker: does its memory stay flat, and everything else that could pile up?

The load is a mix of what a gateway meets: small whole answers, streams, streams that their clients leave, keys that
nobody has, customers without credit. Sampled meanwhile: memory and open files of the worker, Redis's memory, the
journal's size on disk, and settlements that are not booked. The verdict is about memory: the slope over the second half
of the time, with its 95 % interval.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import redis

from benchmarks.load import Distribution, Load, LoadFailed, Target, run
from benchmarks.stack import BenchStack

BOUND_MIB_AN_HOUR = 8.0
"""Below this, memory counts as flat: a tenth of what a worker has after its start."""
SAMPLE_S = 5.0
SLICE_S = 60.0
LEFT_S, LEFT_STREAMS = 4.0, 20
"""Every so many seconds, so many streams are left by their clients."""
Say = Callable[[str], None]
_seeds = cycle(range(1, 10_000))


@dataclass(frozen=True, slots=True)
class Sample:
    """One look. Sizes in MiB; ``at_s`` since the load began."""

    at_s: float
    rss_mib: float
    files: int
    redis_mib: float
    journal_mib: float

    def to_json(self) -> dict[str, float]:
        """As plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(slots=True)
class Soak:
    """What came of it. ``requests`` by what they were; ``failures`` are loads that could not be sent or went wrong."""

    samples: list[Sample] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def slope(self) -> tuple[float, float, float]:
        """MiB an hour over the second half: middle, low and high end of the 95 % interval."""
        half = [sample for sample in self.samples if sample.at_s >= self.samples[-1].at_s / 2]
        return slope_an_hour([(sample.at_s, sample.rss_mib) for sample in half])

    @property
    def is_flat(self) -> bool:
        """Whether memory is not seen to grow by more than the bound."""
        return self.slope[1] <= BOUND_MIB_AN_HOUR

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        middle, low, high = self.slope
        return {
            "requests": self.requests,
            "failures": self.failures,
            "slope_mib_an_hour": {"middle": middle, "low": low, "high": high, "bound": BOUND_MIB_AN_HOUR},
            "is_flat": self.is_flat,
            "samples": [sample.to_json() for sample in self.samples],
        }


def soak(stack: BenchStack, seconds: float, *, say: Say, progress: Callable[[float], None]) -> Soak:
    """Load it for so long; ``progress`` is told the seconds that are done."""
    found = Soak()
    stop = threading.Event()
    stack.mock.pace(itl_ms=5)
    parts = {
        "whole answers": (stack.target, _load("whole answers", rate_per_s=60, tokens=16)),
        "streams": (stack.target, _load("streams", rate_per_s=15, tokens=40, stream=True)),
        "left by their clients": (
            stack.target,
            _load("left by their clients", connections=LEFT_STREAMS, tokens=20_000, stream=True, seconds=LEFT_S),
        ),
        "unknown keys": (stack.stranger, _load("unknown keys", rate_per_s=5, tokens=16, expect_status=401)),
        "without credit": (stack.pauper, _load("without credit", rate_per_s=5, tokens=16, expect_status=402)),
    }
    begin_s = time.monotonic()
    threads = [
        threading.Thread(target=_keep_loading, args=(name, target, load, stack, found, stop, begin_s + seconds))
        for name, (target, load) in parts.items()
    ]
    for thread in threads:
        thread.start()
    try:
        while (elapsed_s := time.monotonic() - begin_s) < seconds:
            found.samples.append(_sample(stack, elapsed_s))
            progress(elapsed_s)
            time.sleep(min(SAMPLE_S, max(0.1, seconds / 20)))
    finally:
        stop.set()
        say("letting the last requests end")
        for thread in threads:
            thread.join()
    found.samples.append(_sample(stack, time.monotonic() - begin_s))
    return found


def slope_an_hour(points: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    """The slope of a line through points (seconds, value), an hour, with its 95 % interval.

    Neighbouring samples say nearly the same, so the interval comes from the means of eight pieces; too few points have
    no interval that means anything, and get an endless one.
    """
    pieces = 8
    if len(points) < 2 * pieces:
        return 0.0, -math.inf, math.inf
    size = len(points) / pieces
    means = []
    for number in range(pieces):
        piece = points[round(number * size) : round((number + 1) * size)]
        means.append((statistics.fmean(x for x, _ in piece), statistics.fmean(y for _, y in piece)))
    slope, intercept = statistics.linear_regression([x for x, _ in means], [y for _, y in means])
    centre = statistics.fmean(x for x, _ in means)
    spread = sum((x - centre) ** 2 for x, _ in means)
    left = sum((y - slope * x - intercept) ** 2 for x, y in means)
    half_width = 2.447 * math.sqrt(left / (pieces - 2) / spread)  # Student's t, six degrees of freedom
    return 3600 * slope, 3600 * (slope - half_width), 3600 * (slope + half_width)


def _load(
    name: str,
    *,
    tokens: int,
    stream: bool = False,
    rate_per_s: float | None = None,
    connections: int | None = None,
    seconds: float = SLICE_S,
    expect_status: int = 200,
) -> Load:
    return Load(
        name=name,
        stream=stream,
        rate_per_s=rate_per_s,
        connections=connections,
        seconds=seconds,
        warm_up_s=0.5,
        drain_s=0 if connections else 10,
        max_tokens=Distribution.parse(tokens),
        expect_status=expect_status,
    )


def _keep_loading(
    name: str, target: Target, load: Load, stack: BenchStack, found: Soak, stop: threading.Event, end_s: float
) -> None:
    while not stop.is_set() and (left_s := end_s - time.monotonic()) > 1:
        slice_ = replace(load, seconds=max(0.5, min(load.seconds, left_s - 0.5)), seed=next(_seeds))
        try:
            measured = run(target, slice_, cores=stack.cores.others)
        except LoadFailed as error:
            found.failures.append(f"{name}: {error}")
            return
        ended = measured.cut if load.drain_s == 0 else measured.requests
        found.requests[name] = found.requests.get(name, 0) + ended
        if measured.error_count:
            found.failures.append(f"{name}: {dict(measured.errors)}")


def _sample(stack: BenchStack, at_s: float) -> Sample:
    [worker] = stack.groups()["gateway"]
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    with redis.Redis.from_url(stack.settings.redis_url) as client:
        info: Mapping[str, Any] = client.info("memory")
    journal = stack.settings.data_path / "journal"
    return Sample(
        at_s=at_s,
        rss_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        files=len(os.listdir(f"/proc/{worker}/fd")),
        redis_mib=info["used_memory"] / 2**20,
        journal_mib=sum(_size(path) for path in journal.rglob("*")) / 2**20,
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # a segment that was not needed any more
        return 0
