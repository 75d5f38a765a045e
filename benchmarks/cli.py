"""The command line of the benchmarks: ``python -m benchmarks run | list | load | growth | soak | self-check``."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import load as loads
from benchmarks import plots, report
from benchmarks import self_check as checking
from benchmarks import stack as stacks
from benchmarks.carry_out import Bench, Deployment, Way
from benchmarks.growth import commands as growing
from benchmarks.load import Arrivals, Distribution, Load, LoadFailed, PlanError, Target
from benchmarks.processes import open_many_files
from benchmarks.results import Result, commit, document
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.stack import BenchStack
from gateway.settings import Settings
from gateway.stack.processes import StackError

NEEDS_A_PERSON = 3
"""Exit status when requests went wrong."""
_RESULTS = Path(__file__).parent / "results"
_WIDTH = 190
_OTHER_FILES = 500
"""What a gateway has open besides its streams, amply."""


class _Lengths(click.ParamType[Distribution]):
    """A distribution."""

    name = "lengths"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Distribution:
        try:
            return value if isinstance(value, Distribution) else Distribution.parse(value)
        except PlanError as error:
            self.fail(str(error), param, ctx)


_LENGTHS = _Lengths()


@click.group(help=__doc__)
def main() -> None:
    """Measure."""
    # What was started is stopped also when this process is asked to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@main.command("list")
def list_scenarios() -> None:
    """List the scenarios of the standard set."""
    table = Table("name", "what", "repeats", "seconds each")
    for scenario in SCENARIOS.values():
        load = scenario.load
        table.add_row(scenario.name, scenario.about, str(scenario.repeats), f"{load.total_s:g}")
    _console().print(table)


@main.command()
@click.argument("names", nargs=-1, metavar="[SCENARIO]...", type=click.Choice(list(SCENARIOS)))
@click.option("--base-url", help="Your own deployment instead of a stack of our own.")
@click.option("--api-key", envvar="OPENAI_API_KEY", help="Its key; $OPENAI_API_KEY if not given.")
@click.option("--model", help="Its model.")
@click.option("--pid", "pids", multiple=True, type=int, help="Its processes on this machine, for CPU and memory.")
@click.option("--seconds", type=click.FloatRange(0.1), help="Instead of each scenario's own length.")
@click.option("--repeats", type=click.IntRange(1), help="Instead of each scenario's own number.")
@click.option(
    "--workers", default=1, show_default=True, type=click.IntRange(1), help="Of the gateway in our own stack."
)
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Of the load generator.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for JSON, tables and plots.")
@click.option("--no-plots", is_flag=True, help="Draw none.")
def run(
    names: tuple[str, ...],
    base_url: str | None,
    api_key: str | None,
    model: str | None,
    pids: tuple[int, ...],
    seconds: float | None,
    repeats: int | None,
    workers: int,
    processes: int,
    out: Path | None,
    no_plots: bool,
) -> None:
    """Run scenarios, all if none is named, and show, save and draw what they bring.

    Without --base-url they run against a gateway of their own, with metering on, in front of a mock engine. The exit
    status is 3 if requests went wrong.
    """
    chosen = [scenario for scenario in SCENARIOS.values() if scenario.name in names or not names]
    if base_url is not None:
        chosen = _for_others(chosen, named=bool(names))
        if not (api_key and model):
            raise click.UsageError("--base-url needs --api-key and --model.")
        house: AbstractContextManager[BenchStack | Deployment] = nullcontext(
            Deployment(_target(base_url, api_key, model), pids)
        )
    else:
        chosen = _that_fit(chosen)
        house = stacks.running(workers=workers, say=Console(stderr=True).log)
    with _said_plainly(), house as place:
        cores = place.cores.others if isinstance(place, BenchStack) else None
        if isinstance(place, BenchStack) and place.cores.are_shared:
            click.echo("there is one core for all: rates are those of everything together", err=True)
        results = _carry_out(chosen, place, processes=processes, cores=cores, seconds=seconds, repeats=repeats)
        settings = _settings(place) | {"generator_processes": processes}
    if not results:
        raise click.ClickException("Nothing was measured.")
    folder = out or _folder(names)
    _save(results, folder, settings=settings)
    report.show(results, _console())
    if not no_plots:
        _draw(results, folder)
    print(f"saved in {os.path.relpath(folder)}")
    if any(one.error_count for result in results for one in result.measured):
        sys.exit(NEEDS_A_PERSON)


@main.command("load")
@click.option("--base-url", required=True)
@click.option("--api-key", required=True, envvar="OPENAI_API_KEY")
@click.option("--model", required=True)
@click.option("--connections", type=click.IntRange(1), help="Closed loop: so many at once.  [default: 64]")
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Open loop instead: so many a second.")
@click.option("--arrivals", type=click.Choice([a.value for a in Arrivals]), default="poisson", show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
@click.option("--warm-up", default=2.0, show_default=True, help="Seconds that do not count.")
@click.option("--stream/--no-stream", default=False, show_default=True)
@click.option("--prompt-tokens", type=_LENGTHS, default="32", show_default=True)
@click.option("--max-tokens", type=_LENGTHS, default="16", show_default=True)
@click.option("--body", default="{}", help="JSON members to add to the body.")
@click.option("--header", "headers", multiple=True, help="Name: value.")
@click.option("--pid", "pids", multiple=True, type=int, help="Processes whose CPU time and memory are reported.")
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Of the load generator.")
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def one_load(
    base_url: str,
    api_key: str,
    model: str,
    connections: int | None,
    rate: float | None,
    arrivals: str,
    seconds: float,
    warm_up: float,
    stream: bool,
    prompt_tokens: Distribution,
    max_tokens: Distribution,
    body: str,
    headers: tuple[str, ...],
    pids: tuple[int, ...],
    processes: int,
    as_json: bool,
) -> None:
    """Send one load of your own to any OpenAI-compatible address.

    Lengths are a number (64), a range (16..128), a list (16,64,256) or lognormal(200,0.6,max=2000): median and sigma.
    """
    with _said_plainly():
        load = Load(
            name="load",
            stream=stream,
            connections=connections or (None if rate else 64),
            rate_per_s=rate,
            arrivals=Arrivals(arrivals),
            seconds=seconds,
            warm_up_s=warm_up,
            prompt_tokens=prompt_tokens,
            max_tokens=max_tokens,
            body=_members(body),
        )
        target = _target(base_url, api_key, model, dict(_header(header) for header in headers))
        with _bar(load.total_s) as progress:
            measured = loads.run(
                target, load, watch={"gateway": pids} if pids else {}, processes=processes, progress=progress
            )
    result = Result("load", "gateway", (measured,))
    if as_json:
        print(json.dumps(document([result], settings={"generator_processes": processes}), indent=1))
    else:
        report.show([result], _console())
    if measured.error_count:
        sys.exit(NEEDS_A_PERSON)


@main.command("self-check")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.1))
@click.option("--processes", default=1, show_default=True, type=click.IntRange(1), help="Of the load generator.")
def self_check(seconds: float, processes: int) -> None:
    """Load the bare mock engine: what the load generator can do, and what the engine costs."""
    with _said_plainly(), _bar(checking.length_s(seconds)) as progress:
        measured = checking.self_check(seconds=seconds, processes=processes, progress=progress)
    checking.show(measured, _console())


main.add_command(growing.growth)
main.add_command(growing.soak)

# ---------------------------------------------------------------------------------------- parts of `run`


def _carry_out(
    chosen: list[Scenario],
    place: BenchStack | Deployment,
    *,
    processes: int,
    cores: tuple[int, ...] | None,
    seconds: float | None,
    repeats: int | None,
) -> list[Result]:
    """All scenarios under one bar; Ctrl-C keeps what is there."""
    results: list[Result] = []
    plan = Bench(place, Way(seconds=seconds, repeats=repeats))
    with _bar(plan.how_long_s(chosen)) as progress:
        way = Way(processes=processes, cores=cores, seconds=seconds, repeats=repeats, progress=progress)
        bench = Bench(place, way)
        try:
            for scenario in chosen:
                results += bench.carry_out(scenario)
        except KeyboardInterrupt:
            click.echo("stopped; this is what was measured until then", err=True)
    return results


def _for_others(chosen: list[Scenario], *, named: bool) -> list[Scenario]:
    left_out = [scenario.name for scenario in chosen if not scenario.for_others]
    if named and left_out:
        raise click.UsageError(f"Only our own stack can be measured with {', '.join(left_out)}.")
    return [scenario for scenario in chosen if scenario.for_others]


def _that_fit(chosen: list[Scenario]) -> list[Scenario]:
    """With as many connections as this user may have files open: a stream is two of its gateway's."""
    most = (open_many_files() - _OTHER_FILES) // 2
    fitting = []
    for scenario in chosen:
        wanted = scenario.load.connections or 0
        if wanted > most:
            click.echo(
                f"{scenario.name} has {most:,} connections instead of {wanted:,}: no more files may be open", err=True
            )
            scenario = replace(scenario, load=replace(scenario.load, connections=most))
        fitting.append(scenario)
    return fitting


def _target(base_url: str, api_key: str, model: str, headers: dict[str, str] | None = None) -> Target:
    try:
        return Target(base_url, api_key, model, headers or {})
    except PlanError as error:
        raise click.UsageError(str(error)) from None


def _members(text: str) -> dict[str, Any]:
    try:
        members = json.loads(text)
    except ValueError:
        members = None
    if not isinstance(members, dict):
        raise click.UsageError(f"The body {text!r} is no JSON object.")
    return members


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[A-Za-z0-9-]+", name):
        raise click.UsageError(f"A header looks like 'name: value', got {text!r}.")
    return name, value.strip()


def _settings(place: BenchStack | Deployment) -> dict[str, Any]:
    """Where it ran, and what of the gateway's settings is not as it comes; addresses and secrets stay out."""
    if isinstance(place, Deployment):
        return {"deployment": place.target.base_url, "model": place.target.model}
    own = {"host", "port", "admin_port", "data_dir", "database_url", "redis_url"}
    changed = {
        spec.name: value
        for spec in fields(Settings)
        if spec.name not in own and (value := getattr(place.settings, spec.name)) != spec.default
    }
    cores = {"gateway_cores": list(place.cores.measured), "other_cores": list(place.cores.others)}
    return {"deployment": "our own stack, metering on, mock engine", "gateway": changed, **cores}


def _folder(names: tuple[str, ...]) -> Path:
    """Where results go by default: the date, the commit, and what was run."""
    what = "-".join(names) if 0 < len(names) <= 3 else "some" if names else "standard"
    return _RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{commit()}-{what}"


def _save(results: list[Result], folder: Path, *, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "results.json", "w") as file:
        json.dump(document(results, settings=settings), file, indent=1)
        file.write("\n")
    with open(folder / "tables.txt", "w") as file:
        report.show(results, Console(file=file, width=_WIDTH))


def _draw(results: list[Result], folder: Path) -> None:
    try:
        plots.draw(results, folder)
    except ImportError:
        print(plots.MISSING)


# ---------------------------------------------------------------------------------------- what a person sees


def _console() -> Console:
    """Standard output; wide where nobody's terminal sets the width."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


@contextmanager
def _said_plainly() -> Iterator[None]:
    """What goes wrong is a sentence."""
    try:
        yield
    except (LoadFailed, PlanError, StackError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def _bar(total_s: float) -> Iterator[Callable[[loads.Progress], None]]:
    """A live bar over all loads, by their time; gives what is to be told of each."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(bar_width=30),
        TimeRemainingColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=total_s, state="")
        done_s = 0.0

        def tell(now: loads.Progress) -> None:
            nonlocal done_s
            state = f"{now.phase}: {now.requests:,} answers, {now.events:,} chunks, {now.open:,} open"
            errors = f", [red]{now.errors:,} errors[/red]" if now.errors else ""
            shown.update(
                task, description=now.name, completed=done_s + min(now.elapsed_s, now.total_s), state=state + errors
            )
            if now.phase == "done":
                done_s += now.total_s

        yield tell
