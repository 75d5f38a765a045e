"""judge: list. What live answers were worth, and what judging them cost.

Floor: cli.
"""

from __future__ import annotations

import click

from gateway.cli.output import show_list
from gateway.cli.place import Place, operator


@click.group()
def judge() -> None:
    """Judged live answers (settings JUDGE_SHARE and JUDGE_MODEL)."""


@judge.command("list")
@click.option("--days", type=click.IntRange(1, 90), default=7, show_default=True, help="So far back.")
@operator
async def list_(place: Place, /, days: int) -> None:
    """List the endpoints whose answers were judged, with the mean grade and what the judge cost the platform."""
    async with place.control() as conn:
        rows = await conn.fetch(
            "SELECT w.endpoint_id, e.org_id, e.task_id, sum(w.judged)::bigint AS judged,"
            " sum(w.score_sum) / sum(w.judged) AS quality_mean, sum(w.cost_micros)::bigint AS cost_micros"
            " FROM control.judge_window w JOIN control.endpoint e ON e.id = w.endpoint_id"
            " WHERE w.hour > now() - make_interval(days => $1) GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1",
            days,
        )
    show_list(
        place,
        [{**dict(row), "quality_mean": round(row["quality_mean"], 4)} for row in rows],
        columns=("endpoint_id", "org_id", "task_id", "judged", "quality_mean", "cost_micros"),
        title=f"Judged answers of {days} days",
        empty="No answer was judged.",
    )
