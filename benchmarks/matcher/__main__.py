"""``python -m benchmarks.matcher``: accuracy on paraphrased queries, of the half it was tuned on and of the other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.control.catalog import folder
from gateway.control.catalog.reading import read_tasks
from gateway.core.matching import Matcher

QUERIES = Path(__file__).parent / "queries.tsv"
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Shares of the queries.

    Attributes:
        first: of those that mean a task: it came first.
        chosen: it was chosen, which takes some confidence.
        wrong: another task was chosen.
        let_go: of those that mean nothing here: nothing was chosen.
    """

    queries: int
    first: float
    chosen: float
    wrong: float
    let_go: float


def accuracy(matcher: Matcher, queries: list[tuple[str, str]]) -> Accuracy:
    """How well queries (task, sentence) are understood."""
    meant = [(task, matcher.match(text, 5)) for task, text in queries if task != NOTHING]
    nothing = [matcher.match(text, 5) for task, text in queries if task == NOTHING]
    return Accuracy(
        queries=len(queries),
        first=_share([bool(m.candidates) and m.candidates[0].task_id == task for task, m in meant]),
        chosen=_share([m.chosen is not None and m.chosen.task_id == task for task, m in meant]),
        wrong=_share([m.chosen is not None and m.chosen.task_id != task for task, m in meant]),
        let_go=_share([m.chosen is None for m in nothing]),
    )


def read_queries() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The queries that the matcher was tuned on, and those held out: every other one."""
    lines = [line.split("\t") for line in QUERIES.read_text("utf-8").splitlines() if line]
    queries = [(task, text) for task, text in lines]
    return queries[::2], queries[1::2]


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    """Print the table."""
    matcher = Matcher(read_tasks(folder.read_files(folder.shipped())))
    table = Table("queries", "number", "right task first", "chosen", "another chosen", "nothing meant, nothing chosen")
    for name, queries in zip(("tuned on", "held out"), read_queries(), strict=True):
        found = accuracy(matcher, queries)
        table.add_row(
            name,
            str(found.queries),
            *(f"{share:.1%}" for share in (found.first, found.chosen, found.wrong, found.let_go)),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
