"""What a run of benchmarks says of itself: medians, spread, tables, JSON, plots."""

from __future__ import annotations

import builtins
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import plots, report
from benchmarks.cli import main
from benchmarks.load import GroupUse, Histogram, Load, Measurement
from benchmarks.load.measurement import TIMES
from benchmarks.processes import choose_cores
from benchmarks.results import DIRECT, GATEWAY, Result, added_ms, document
from benchmarks.scenarios import SCENARIOS

KEY = ("--api-key", "k", "--model", "m")


def measured(load: Load, *, requests: int, events: int = 0, first_ms: float = 1.0, **more: Any) -> Measurement:
    """Ten seconds in which the gateway used five of CPU."""
    times = {name: Histogram() for name in TIMES}
    times["latency"] = times["first_token"] = Histogram([first_ms / 1e3] * 1000)
    values: dict[str, Any] = {
        "seconds": 10.0, "statuses": {200: requests}, "errors": {}, "cut": 0, "open_mean": 64.0,
        "groups": {"gateway": GroupUse(5.0, 1, 2, 3)}, "generator_shares": (0.25, 0.5),
    }  # fmt: skip
    return Measurement(load=load, requests=requests, events=events, **(values | times | more))


def results() -> list[Result]:
    small, open_loop, streams = (SCENARIOS[name].load for name in ("small", "streams-30", "paced-300"))
    sweep = SCENARIOS["concurrency"].load
    return [
        Result("small", GATEWAY, tuple(measured(small, requests=n * 10_000) for n in (3, 1, 2))),
        Result("streams-30", GATEWAY, (measured(open_loop, requests=1000, events=66_000, first_ms=3.0),)),
        Result("streams-30", DIRECT, (measured(open_loop, requests=1000, events=66_000, first_ms=1.0),)),
        Result("paced-300", GATEWAY, (measured(streams, requests=0, events=100_000, open_mean=300, errors={"x": 7}),)),
        Result("concurrency", GATEWAY, (measured(sweep, requests=500),)),
    ]


def test_figures_are_medians_with_their_spread() -> None:
    """Of the repeats, not their mean; a figure that does not apply is none."""
    small = results()[0]
    spread = small.spread(lambda one: one.requests_per_s)
    assert spread is not None
    assert (spread.median, spread.low, spread.high) == (2000, 1000, 3000)
    assert small.median(lambda one: one.cpu_us_per_request("gateway")) == 250
    assert small.spread(lambda one: one.cpu_us_per_event("gateway")) is None
    assert small.times("latency").total == 3000


def test_what_is_added_is_the_difference_to_direct() -> None:
    """And nothing is claimed where only one way was measured."""
    found = added_ms(results(), "streams-30", "first_token", 99)
    assert found == pytest.approx(2.0, rel=0.02)
    assert added_ms(results(), "small", "latency", 50) is None


def test_the_tables_say_what_was_measured() -> None:
    """Medians with spread, chunks of those due, errors by kind, the load generator's headroom."""
    out = StringIO()
    report.show(results(), Console(file=out, width=200))
    shown = out.getvalue()
    for wanted in (
        "2,000 (1,000 – 3,000)",
        "10,000 of 30,000 due",
        "50%, 2.0 ×",
        "7 × x",
        "Fewer chunks than due in paced-300",
        "streams-30: first token over direct: p50 +2.0",
        "20,000 chunks/s",
        "concurrency, 64",
    ):
        assert wanted in shown, shown


def test_the_document_says_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine, commit, command (without its secrets) and settings beside the figures; it is JSON, without NaN."""
    command = ["benchmarks", "load", "--api-key", "secret-1", "--api-key=secret-2", "--header", "x: secret-3", "--no"]
    monkeypatch.setattr("sys.argv", command)
    text = json.dumps(document(results(), settings={"cores": 2}), allow_nan=False)
    content = json.loads(text)
    assert {"made_at", "commit", "machine", "versions", "settings", "results"} <= set(content)
    assert {"processor", "kernel", "python", "cores"} <= set(content["machine"])
    assert content["settings"] == {"cores": 2}
    assert content["command"] == ["benchmarks", "load", "--api-key", "…", "--api-key=…", "--header", "…", "--no"]
    assert "secret" not in text
    first = content["results"][0]
    assert (first["scenario"], first["via"], first["load"]["connections"]) == ("small", GATEWAY, 64)
    assert [repeat["requests_per_s"] for repeat in first["repeats"]] == [3000, 1000, 2000]
    assert Histogram.from_json(first["times"]["latency"]).total == 3000


def test_plots_are_drawn(tmp_path: Path) -> None:
    """Latency, throughput and CPU a chunk, each a PNG; of nothing there is none."""
    drawn = plots.draw(results(), tmp_path)
    assert [file.name for file in drawn] == ["latency.png", "throughput.png", "cpu-per-chunk.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in drawn)
    assert plots.draw([], tmp_path) == []


def test_without_matplotlib_there_are_no_plots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`draw` says so with the error that its caller turns into a sentence."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError):
        plots.draw(results(), tmp_path)


def test_the_standard_set_stays_under_ten_minutes() -> None:
    """By its own times: every load, as often and both ways as it says, and what its rates are looked for with."""
    from benchmarks.carry_out import Bench, Way
    from benchmarks.stack import BenchStack

    stack = BenchStack.__new__(BenchStack)
    assert Bench(stack, Way()).how_long_s(SCENARIOS.values()) < 450


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--base-url", "http://h", "--model", "m"], "--base-url needs --api-key and --model"),
        (["run", "quiet", "--base-url", "http://h", *KEY], "Only our own stack"),
        (["run", "small", "--base-url", "h:80", *KEY], "must look like http://host:port"),
        (["load", "--base-url", "http://h", *KEY, "--max-tokens", "many"], "no distribution"),
        (["load", "--base-url", "http://h", *KEY, "--header", "x"], "A header looks like"),
        (["load", "--base-url", "http://h", *KEY, "--body", "[1"], "is no JSON object"),
    ],
)
def test_wrong_arguments_are_said_in_a_sentence(
    arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the usage, before anything starts."""
    from click.testing import CliRunner

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    outcome = CliRunner().invoke(main, arguments)
    assert outcome.exit_code == 2
    assert sentence in outcome.output


@pytest.mark.parametrize(
    ("allowed", "workers", "measured_on", "others"),
    [
        ({0, 1}, 1, (0,), (1,)),
        ({0, 1}, 4, (0,), (1,)),
        ({2, 3, 5, 7}, 2, (2, 3), (5, 7)),
        ({4}, 1, (4,), (4,)),
    ],
)
def test_what_is_measured_has_cores_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
    allowed: set[int],
    workers: int,
    measured_on: tuple[int, ...],
    others: tuple[int, ...],
) -> None:
    """One for each worker, as long as one is left for all else; a single core is shared, and that is known."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: allowed)
    cores = choose_cores(workers)
    assert (cores.measured, cores.others) == (measured_on, others)
    assert cores.are_shared == (len(allowed) == 1)
