"""Results for a person: tables in the terminal, and what the gateway adds in sentences."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.load import Histogram, Measurement
from benchmarks.results import DIRECT, GATEWAY, Result, Spread, added_ms

_NOTHING = "–"
_FEW = 100
"""Streams that say nothing have no rate worth showing."""
_BUSY_SHARE = 0.85
"""A load generator that works so much of the time may be what was measured."""


def show(results: Sequence[Result], console: Console) -> None:
    """Print all tables that have something to say."""
    console.print(_work(results))
    if any(result.times("latency").total or result.times("inter_token").total for result in results):
        console.print(_times(results))
    for sentence in [*_added(results), *_memory(results), *_errors(results), *_warnings(results)]:
        console.print(sentence, highlight=False)


def _work(results: Sequence[Result]) -> Table:
    """What was done, and the CPU time that it took the gateway."""
    table = Table(title="Work: medians (lowest – highest)", title_justify="left")
    for name in ("scenario", "way"):
        table.add_column(name)
    for name in ("answers/s", "chunks/s", "µs CPU/answer", "µs CPU/chunk", "a core could", "errors", "generator"):
        table.add_column(name, justify="right")
    for result in results:
        use = _use(result)
        table.add_row(
            _name(result),
            result.via,
            _text(result.spread(lambda one: one.requests_per_s or None)),
            _of_due(result),
            _text(use(lambda one: one.cpu_us_per_request("gateway") if one.requests >= one.events / 100 else None)),
            _text(use(lambda one: one.cpu_us_per_event("gateway"))),
            _a_core(result),
            f"{sum(one.error_count for one in result.measured):,}",
            _generator(result),
        )
    table.caption = "CPU: of the gateway's workers. Generator: its CPU, and how many times this rate it could send."
    table.caption_justify = "left"
    return table


def _a_core(result: Result) -> str:
    """What a second of the gateway's CPU is good for: chunks of a stream, or whole answers."""
    is_stream = result.measured[0].load.stream
    rate = _use(result)(
        lambda one: one.events_per_core_s("gateway") if is_stream else one.requests_per_core_s("gateway")
    )
    if rate is None or rate.median < _FEW:
        return _NOTHING
    return f"{rate.median:,.0f} {'chunks' if is_stream else 'answers'}/s"


def _of_due(result: Result) -> str:
    """Chunks a second, and how many the engine was to send."""
    rate, due = result.spread(lambda one: one.events_per_s or None), result.median(lambda one: one.due_events_per_s)
    return _text(rate) if due is None else f"{_text(rate, short=True)} of {due:,.0f} due"


def _generator(result: Result) -> str:
    """What the load generator's busiest process worked, and how many times that it could."""
    share = result.median(lambda one: max(one.generator_shares, default=None) or None)
    return _NOTHING if share is None else f"{share:.0%}, {1 / share:.1f} ×"


def _use(result: Result) -> Callable[[Callable[[Measurement], float | None]], Spread | None]:
    """A figure of the gateway's own use, where it took part and was watched."""

    def use(figure: Callable[[Measurement], float | None]) -> Spread | None:
        return result.spread(lambda one: figure(one) if result.via == GATEWAY and "gateway" in one.groups else None)

    return use


def _times(results: Sequence[Result]) -> Table:
    """Percentiles over all repeats, in milliseconds."""
    table = Table(title="Times in ms, over all repeats: p50 / p99 / p99.9 / max", title_justify="left")
    for name in ("scenario", "way"):
        table.add_column(name)
    for name in ("latency", "first token", "between tokens", "sent late by"):
        table.add_column(name, justify="right")
    for result in results:
        columns = [result.times(name) for name in ("latency", "first_token", "inter_token", "send_lag")]
        if any(times.total for times in columns):
            table.add_row(_name(result), result.via, *map(_percentiles, columns))
    table.caption = "An open loop's latency and first token count from when a request was due."
    table.caption_justify = "left"
    return table


def _added(results: Sequence[Result]) -> list[str]:
    """What the gateway adds where both ways were measured with the same load."""
    lines = []
    for scenario in dict.fromkeys(result.scenario for result in results if result.via == DIRECT):
        of_it = [result for result in results if result.scenario == scenario]
        if not of_it[0].measured[0].load.is_open_loop:
            continue
        for words, times in (("first token", "first_token"), ("latency", "latency")):
            p50, p99 = (added_ms(results, scenario, times, percent) for percent in (50, 99))
            if p50 is not None and p99 is not None:
                lines.append(f"{scenario}: {words} over direct: p50 {p50:+.2f} ms, p99 {p99:+.2f} ms")
    return lines


def _memory(results: Sequence[Result]) -> list[str]:
    """Memory of each open stream, where there were enough of them to see it."""
    lines = []
    for result in results:
        each = _use(result)(lambda one: one.bytes_per_open("gateway") if one.open_mean >= 1000 else None)
        if each is not None:
            open_mean = result.median(lambda one: one.open_mean) or 0.0
            lines.append(
                f"{_name(result)}: {each.median / 1000:.1f} KB of the gateway for each of {open_mean:,.0f} open"
            )
    return lines


def _errors(results: Sequence[Result]) -> list[str]:
    lines = []
    for result in results:
        kinds: dict[str, int] = {}
        for one in result.measured:
            for kind, count in one.errors.items():
                kinds[kind] = kinds.get(kind, 0) + count
        if kinds:
            listed = ", ".join(f"{count:,} × {kind}" for kind, count in sorted(kinds.items()))
            lines.append(f"[red]{_name(result)}, {result.via}: {listed}[/red]")
    return lines


def _warnings(results: Sequence[Result]) -> list[str]:
    """What makes figures doubtful."""
    lines = []
    busy = [r for r in results if any(share > _BUSY_SHARE for one in r.measured for share in one.generator_shares)]
    if busy:
        names = ", ".join(dict.fromkeys(f"{_name(result)} ({result.via})" for result in busy))
        lines.append(f"[yellow]The load generator itself was at its limit in {names}: try --processes 2.[/yellow]")
    late = [r for r in results if (due := r.median(lambda one: one.due_events_per_s)) and _events(r) < 0.95 * due]
    if late:
        names = ", ".join(dict.fromkeys(_name(result) for result in late))
        lines.append(f"[yellow]Fewer chunks than due in {names}: the machine had no more to give.[/yellow]")
    if (load := os.getloadavg()[0]) > 2 * len(os.sched_getaffinity(0)) + 2:
        lines.append(
            f"[yellow]This machine is busy (load average {load:.1f}): trust CPU times more than rates.[/yellow]"
        )
    return lines


def _events(result: Result) -> float:
    return result.median(lambda one: one.events_per_s) or 0.0


def _name(result: Result) -> str:
    load = result.measured[0].load
    if load.name == "concurrency":
        return f"{load.name}, {load.connections}"
    return load.name if load.rate_per_s is None else f"{load.name}, {load.rate_per_s:,.0f}/s"


def _percentiles(times: Histogram) -> str:
    if not times.total:
        return _NOTHING
    return " / ".join(_ms(times.percentile_s(percent)) for percent in (50, 99, 99.9, 100))


def _ms(duration_s: float) -> str:
    ms = duration_s * 1e3
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def _text(spread: Spread | None, *, short: bool = False) -> str:
    if spread is None:
        return _NOTHING
    digits = ",.0f" if spread.median >= 100 else ".1f"
    text = f"{spread.median:{digits}}"
    return text if short or spread.low == spread.high else f"{text} ({spread.low:{digits}} – {spread.high:{digits}})"
