"""The desk: takes samples of live answers, has them graded, and keeps the grades by hour. No answer is kept.

Floor: control. Tasks whose scorer needs no good answer (a JSON schema) are graded by it; the others by the judging
model, if there is one. What comes faster than it is judged is dropped: a sample is a sample.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from gateway.control.catalog import store as catalog
from gateway.control.database import ControlError
from gateway.control.evals.engines import AskFailed
from gateway.control.evals.grading import JSON_SCHEMA, JUDGE_TOKENS, Grader
from gateway.control.metrics.windows import floor_hour
from gateway.core.samples import Sample, read_sample
from gateway.core.scoring.judge import live_judge_messages, read_verdict
from gateway.core.scoring.texts import without_thought

if TYPE_CHECKING:
    from gateway.control.catalog.values import Task
    from gateway.control.database import Store
    from gateway.control.judging.judge import JudgeModel

MAX_WAITING: Final = 128
AT_ONCE: Final = 4
log = logging.getLogger("pareta.judging")


class JudgeDesk:
    """Judges samples.

    Args:
        judge: the judging model; None: only what a task's own scorer can grade is judged.
    """

    def __init__(self, database: Store, grader: Grader, judge: JudgeModel | None) -> None:
        self._database = database
        self._grader = grader
        self._judge = judge
        self._waiting: asyncio.Queue[Sample] = asyncio.Queue(MAX_WAITING)

    async def take(self, data: bytes) -> None:
        """A worker hands a sample over."""
        try:
            self._waiting.put_nowait(read_sample(data))
        except asyncio.QueueFull:
            log.info("Answers come faster than they are judged; one is left out.")

    async def run(self) -> None:
        """Judge until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(self._work())

    async def _work(self) -> None:
        while True:
            sample = await self._waiting.get()
            try:
                await self._judged(sample)
            except (AskFailed, ControlError) as error:
                log.info("An answer of %s was not judged: %s", sample.endpoint_id, error)
            except Exception as error:
                # Its text could hold a customer's words, so only its kind is said.
                log.error("An answer of %s could not be judged: %s", sample.endpoint_id, type(error).__name__)

    async def _judged(self, sample: Sample) -> None:
        async with self._database.connection() as conn:
            task_id = await conn.fetchval("SELECT task_id FROM control.endpoint WHERE id = $1", sample.endpoint_id)
            task = await catalog.task(conn, task_id) if task_id is not None else None
        if task is None:
            return
        if task.default_scorer == JSON_SCHEMA:
            score, micros = await self._grader.grade(JSON_SCHEMA, None, sample.answer, task.scorer_settings, None), 0
        elif self._judge is not None:
            score, micros = await self._asked(self._judge, task, sample)
        else:
            return
        async with self._database.connection() as conn:
            await conn.execute(
                "INSERT INTO control.judge_window AS w (endpoint_id, hour, judged, score_sum, cost_micros)"
                " VALUES ($1, $2, 1, $3, $4) ON CONFLICT (endpoint_id, hour) DO UPDATE SET judged = w.judged + 1,"
                " score_sum = w.score_sum + EXCLUDED.score_sum, cost_micros = w.cost_micros + EXCLUDED.cost_micros",
                sample.endpoint_id,
                floor_hour(datetime.now(UTC)),
                score,
                micros,
            )

    async def _asked(self, judge: JudgeModel, task: Task, sample: Sample) -> tuple[float, int]:
        output = without_thought(sample.answer)
        mark = f"#{secrets.token_hex(8)}"
        said = await judge.ask(
            live_judge_messages(task.title, sample.question, output, task.scorer_settings, mark=mark),
            most_tokens=JUDGE_TOKENS,
        )
        verdict = read_verdict(said.text)
        if verdict is None:
            raise AskFailed("The judge gave no grade.")
        return verdict, judge.micros(said)
