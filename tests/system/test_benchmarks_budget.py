"""The hot path has not grown: calls of a real worker with metering on, against ``benchmarks/budget/budget.json``."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.budget import budgets
from benchmarks.budget.budgets import Budget
from benchmarks.budget.cases import CASES, Case
from benchmarks.budget.rounds import Counted, Counts, counted
from tests.stack import ROOT

BY_NAME = {case.name: case for case in CASES}
CHUNK, SMALL = BY_NAME["chunk"], BY_NAME["small"]


@pytest.fixture(scope="module")
def worker() -> Iterator[Counted]:
    """One worker for all cases."""
    with counted() as started:
        yield started


@pytest.mark.timeout(180)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_hot_path_keeps_its_budget(worker: Counted, case: Case) -> None:
    """No case makes more calls than its budget and the tolerance; whoever needs more gives a reason."""
    found = worker.count(case)
    assert found.loop >= 1, "a worker that serves makes calls"
    said = budgets.exceeded(case, found, budgets.allowed(case, budgets.read(), budgets.version()))
    assert not said, f"{said} {budgets.HOW_TO_CHANGE}"


def test_the_functions_of_a_case_are_named(worker: Counted) -> None:
    """Where calls are made: a small request is parsed once, and its settlement goes to the journal."""
    found = worker.names(SMALL)
    assert sum(found.values()) > 100
    per_request = {name.rpartition("/")[2].partition(":")[0]: count for name, count in found.items() if count >= 0.9}
    assert {"server.py", "pipeline.py", "connection.py", "settle.py", "journal.py"} <= set(per_request)


def test_one_call_more_for_a_chunk_is_too_much() -> None:
    """The tolerance is smaller than the smallest thing that can be added to a chunk."""
    for python, cases in budgets.read().items():
        counts = cases["chunk"].counts
        most = budgets.allowed(CHUNK, budgets.read(), python)
        assert budgets.exceeded(CHUNK, counts, most) == ""
        assert "calls" in budgets.exceeded(CHUNK, counts._replace(loop=counts.loop + 1), most)
        assert "C calls" in budgets.exceeded(CHUNK, counts._replace(loop_c=counts.loop_c + 1), most)


def test_every_case_has_a_budget_and_a_reason() -> None:
    """For each version of Python that has any."""
    for python, cases in budgets.read().items():
        assert set(cases) == set(BY_NAME), python
        assert all(budget.reason.strip() and budget.date for budget in cases.values())


def test_a_version_without_budgets_borrows_the_largest() -> None:
    """A new Python is judged too, less tightly."""
    known = {
        "3.1": {"chunk": Budget(Counts(8, 10, 0, 0), "r", "d")},
        "3.2": {"chunk": Budget(Counts(7, 12, 0, 0), "r", "d")},
    }
    most = budgets.allowed(CHUNK, known, "3.3")
    assert most is not None
    assert (round(most.loop, 2), round(most.loop_c, 2)) == (8.64, 12.96)
    assert budgets.allowed(SMALL, known, "3.3") is None
    assert "no budget" in budgets.exceeded(SMALL, Counts(1, 1, 0, 0), None)


def test_other_threads_are_judged_where_requests_are_alone() -> None:
    """How many of sixteen share a trip to the disk is luck."""
    counts, most = Counts(1, 1, 9, 9), Counts(2, 2, 3, 3)
    assert "other threads" in budgets.exceeded(SMALL, counts, most)
    assert budgets.exceeded(BY_NAME["small-16"], counts, most) == ""


def test_a_budget_is_rewritten_only_where_it_changed(tmp_path: Path) -> None:
    """The reason of what stayed as it was stays as well, and so do the budgets of other versions."""
    file = tmp_path / "budget.json"
    file.write_text(
        json.dumps({"3.0": {"chunk": {"counts": Counts(1, 2, 3, 4)._asdict(), "reason": "old", "date": "d"}}})
    )
    found = {"chunk": Counts(8, 10, 0, 0), "small": Counts(300, 400, 3, 5)}
    assert budgets.write(found, {}, reason="first", cases=BY_NAME, file=file) == ["chunk", "small"]
    found = {"chunk": Counts(9, 10, 0, 0), "small": Counts(301, 399, 3, 5)}
    assert budgets.write(found, {}, reason="second", cases=BY_NAME, file=file) == ["chunk"]
    written = budgets.read(file)
    assert written["3.0"]["chunk"].reason == "old"
    assert {name: (one.reason, one.counts.loop) for name, one in written[budgets.version()].items()} == {
        "chunk": ("second", 9),
        "small": ("first", 300),
    }


COUNTING = """
import json, threading
from benchmarks.budget.counting import CallCounter

def one(): return len("abc")
def many(times):
    for _ in range(times): one()

counter = CallCounter()
counter.install()
before = counter.totals(), counter.by_name()
many(50)
thread = threading.Thread(target=many, args=(20,))
thread.start(); thread.join()
after = counter.totals(), counter.by_name()
print(json.dumps([before, after]))
"""


def test_calls_are_counted_by_thread_and_by_name() -> None:
    """Fifty calls are fifty, and those of another thread are not among them."""
    done = subprocess.run(
        [sys.executable, "-c", COUNTING], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    (before, named_before), (after, named) = json.loads(done.stdout)
    of_one = next(count for name, count in named.items() if name.endswith(" one"))
    assert of_one == 50
    assert named["(len)"] - named_before.get("(len)", 0) >= 50
    assert 50 <= after["loop"][0] - before["loop"][0] < 150
    others = [mine - theirs for mine, theirs in zip(after["others"], before["others"], strict=True)]
    assert 20 <= others[0] < 60
    assert 20 <= others[1] < 60
