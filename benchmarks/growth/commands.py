"""``python -m benchmarks growth`` and ``python -m benchmarks soak``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks import stack as stacks
from benchmarks.growth import report
from benchmarks.growth.axes import AXES, GrowthFailed, Point, Run
from benchmarks.growth.soak import BOUND_MIB_AN_HOUR, Soak
from benchmarks.growth.soak import soak as soak_for
from benchmarks.load import LoadFailed
from benchmarks.plots import MISSING
from benchmarks.processes import open_many_files
from benchmarks.results import commit, machine
from gateway.stack.processes import StackError

_RESULTS = Path(__file__).parent.parent / "results"
NEEDS_A_PERSON = 3
_OUT = click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for what comes of it.")


@click.command()
@click.option("--axis", "names", multiple=True, type=click.Choice(list(AXES)), help="Only this; may be repeated.")
@click.option("--seconds", default=4.0, show_default=True, type=click.FloatRange(0.3), help="Of each measurement.")
@click.option("--quick", is_flag=True, help="Small sizes: to see that it works, not to learn something.")
@_OUT
def growth(names: tuple[str, ...], seconds: float, quick: bool, out: Path | None) -> None:
    """Show that a request costs the same however much there is: keys, endpoints, organizations, streams, uptime.

    Takes about a quarter of an hour. Each curve has a gateway and databases of its own.
    """
    open_many_files()
    curves: dict[str, list[Point]] = {}
    failed: list[str] = []
    console = Console() if sys.stdout.isatty() else Console(width=report.WIDTH)
    chosen = [AXES[name] for name in names or AXES]
    points = sum(len(axis.quick_sizes if quick else axis.sizes) for axis in chosen)
    with _bar(points) as (say, step):
        for axis in chosen:
            sizes = axis.quick_sizes if quick else axis.sizes
            try:
                say_here = partial(_say_of, axis.name, say)
                with stacks.running(say=say_here) as stack:
                    run = Run(stack, sizes, seconds, say_here, None)
                    for point in axis.points(run):
                        curves.setdefault(axis.name, []).append(point)
                        step()
            except (GrowthFailed, LoadFailed, StackError) as error:
                failed.append(f"{axis.name}: {error}")
    if not any(curves.values()):
        raise click.ClickException("; ".join(failed))
    report.show(curves, console)
    folder = out or _RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{commit()}-growth"
    report.save(curves, folder, settings={"seconds": seconds, "quick": quick})
    print(f"growth.json, growth.txt and growth.png in {folder}")
    if failed:
        raise click.ClickException("; ".join(failed))


@click.command()
@click.option("--minutes", default=60.0, show_default=True, type=click.FloatRange(0.05))
@_OUT
def soak(minutes: float, out: Path | None) -> None:
    """Constant mixed load for an hour: memory, open files, journal and Redis have to stay flat.

    The exit status is 3 if memory grows, or requests went wrong.
    """
    open_many_files()
    try:
        with _bar(minutes * 60) as (say, _), stacks.running(say=say) as stack:
            say("loading")
            found = soak_for(stack, minutes * 60, say=say, progress=say.progress)
    except (LoadFailed, StackError) as error:
        raise click.ClickException(str(error)) from None
    folder = out or _RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}-{commit()}-soak"
    folder.mkdir(parents=True, exist_ok=True)
    document = {"commit": commit(), "machine": machine(), "minutes": minutes, **found.to_json()}
    (folder / "soak.json").write_text(json.dumps(document, indent=1) + "\n")
    console = Console() if sys.stdout.isatty() else Console(width=report.WIDTH)
    _show(found, console)
    try:
        _draw(found, folder / "soak.png")
    except ImportError:
        print(MISSING)
    print(f"soak.json and soak.png in {folder}")
    if found.failures or not found.is_flat:
        sys.exit(NEEDS_A_PERSON)


def _show(found: Soak, console: Console) -> None:
    table = Table(title="The worker, and what could pile up", title_justify="left")
    for column in ("after, min", "RSS, MiB", "open files", "Redis, MiB", "journal, MiB"):
        table.add_column(column, justify="right")
    step = max(1, (len(found.samples) - 1) // 12)
    for sample in [*found.samples[:-1:step], found.samples[-1]]:
        table.add_row(
            f"{sample.at_s / 60:.1f}",
            f"{sample.rss_mib:.1f}",
            str(sample.files),
            f"{sample.redis_mib:.1f}",
            f"{sample.journal_mib:.2f}",
        )
    console.print(table)
    console.print("requests: " + ", ".join(f"{count:,} {name}" for name, count in found.requests.items()))
    middle, low, high = found.slope
    verdict = "flat" if found.is_flat else "GROWING"
    console.print(
        f"memory over the second half: {verdict}: {middle:+.1f} MiB an hour (95 %: {low:+.1f} to {high:+.1f};"
        f" bound {BOUND_MIB_AN_HOUR:g})"
    )
    for failure in found.failures[:10]:
        console.print(f"went wrong: {failure}")


def _draw(found: Soak, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    minutes = [sample.at_s / 60 for sample in found.samples]
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 5), layout="constrained", sharex=True)
    series: Sequence[tuple[str, list[float]]] = (
        ("worker, MiB", [sample.rss_mib for sample in found.samples]),
        ("open files", [float(sample.files) for sample in found.samples]),
        ("Redis, MiB", [sample.redis_mib for sample in found.samples]),
        ("journal, MiB", [sample.journal_mib for sample in found.samples]),
    )
    for axes, (title, values) in zip(panels.flat, series, strict=True):
        axes.plot(minutes, values, color="#0b6e99")
        axes.set(title=title, ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_xlabel("minutes")
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def _say_of(axis: str, say: _Say, text: str) -> None:
    say(f"{axis}: {text}")


class _Say:
    """Tells the bar what is going on."""

    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown, self._task = shown, task

    def __call__(self, text: str) -> None:
        self._shown.update(self._task, description=text)

    def progress(self, done: float) -> None:
        """So much is done."""
        self._shown.update(self._task, completed=done)


@contextmanager
def _bar(total: float) -> Iterator[tuple[_Say, Callable[[], None]]]:
    """A live bar; gives what is told what is going on, and what is called for each step."""
    columns = (TextColumn("{task.description:<44}"), BarColumn(bar_width=30), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("starting", total=total)
        yield _Say(shown, task), lambda: shown.advance(task)
