"""The runner: works on eval runs until they have ended, whatever happens to the process meanwhile.

Floor: control. One process works on them at a time (an advisory lock decides which). All that is known of a run
stands in Postgres: each answer is written down when it is there, so that a process which is killed loses the answers
that were on their way and no other, and its successor asks for those again. A customer pays for the answers that were
written down.

The steps of a run::

    queued ──> running ──> evaluating ──> settling ──> completed
       └──────────┴────────────┴────────────> settling ──> failed, and nothing is charged
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gateway.control.database import ControlError
from gateway.control.evals import runs, sets
from gateway.control.evals.blobs import BlobsUnavailable
from gateway.control.evals.engines import Asker, AskFailed, OpenModels
from gateway.control.evals.money import BEAT_EVERY_S, RunMoney
from gateway.control.evals.prices import item_micros
from gateway.control.evals.prompts import Document, messages
from gateway.control.evals.results import result_of
from gateway.control.evals.rows import EvalRow
from gateway.control.evals.sets import Attached
from gateway.control.evals.values import Candidate, ItemAnswer, Run, RunStatus
from gateway.control.leading import LedWork
from gateway.core.errors import Refused
from ledger.counter import CounterUnavailable
from ledger.errors import LedgerError
from ledger.outbox import OutboxUnavailable

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store
    from gateway.control.evals.blobs import Blobs
    from gateway.control.evals.grading import Grader
    from gateway.control.vendors.client import VendorModels

TIDY_EVERY_S: Final = 60.0
RETRY_S: Final = 1.0
RUNS_AT_ONCE: Final = 16
ITEMS_AT_ONCE: Final = 8
"""Of one candidate of a run."""
ASKED_AT_ONCE: Final = 64
"""Over all runs."""
KEPT_LETTERS: Final = 2000
"""How much of an answer is shown."""
_LOCK: Final = 0x706172657465  # "parete": names this job among advisory locks
log = logging.getLogger("pareta.evals")

_FAILED: Final = "Nothing could be scored: no model answered any row."


class EvalRunner(LedWork):
    """Works on runs.

    Args:
        money: holds and settles.
        open_models, vendor_models: who is asked.
        grader: scores answers.
        blobs: documents.
    """

    def __init__(
        self,
        database: Store,
        money: RunMoney,
        *,
        open_models: OpenModels,
        vendor_models: VendorModels,
        grader: Grader,
        blobs: Blobs,
    ) -> None:
        super().__init__(database, lock=_LOCK, name="eval runs")
        self._money = money
        self._open_models = open_models
        self._vendor_models = vendor_models
        self._grader = grader
        self._blobs = blobs
        self._asked = asyncio.Semaphore(ASKED_AT_ONCE)
        self._beat_s = self._tidy_s = 0.0

    async def look(self, conn: Connection) -> None:
        """See `LedWork.look`."""
        now_s = time.monotonic()
        wanted = {run.id: run for run in await runs.under_way(conn)}
        if now_s >= self._beat_s:
            self._beat_s = now_s + BEAT_EVERY_S
            await self._beat(list(wanted.values()))
        if now_s >= self._tidy_s:
            self._tidy_s = now_s + TIDY_EVERY_S
            for blob_id in await sets.take_orphans(conn, most=100):
                await self._forget(blob_id)
        self.follow(wanted, self._work, at_once=RUNS_AT_ONCE)

    async def _forget(self, blob_id: str) -> None:
        try:
            await self._blobs.delete(blob_id)
        except (BlobsUnavailable, OSError):
            log.warning("The document %s, which nobody needs any more, could not be deleted.", blob_id)

    # -- money -------------------------------------------------------------------------------------------------------

    async def _beat(self, wanted: Sequence[Run]) -> None:
        """Keep the holds of all runs alive, also of those that wait for their turn; replace those that were lost."""
        waiting = [run for run in wanted if run.status in runs.UNDER_WAY]
        try:
            lost = await self._money.keep([(run.hold.hold_id, run.org_id) for run in waiting])
        except CounterUnavailable as error:
            # The next beat comes in seconds; a hold outlives several missed ones.
            log.warning("The holds of eval runs could not be renewed: %s", error)
            return
        for run in waiting:
            if run.hold.hold_id in lost:
                await self._hold_anew(run)

    async def _hold_anew(self, run: Run) -> None:
        """Its hold expired while nobody worked, or was lost with Redis, and was charged nothing: take another one."""
        try:
            hold = await self._money.hold(run.org_id, run.key_id, most_micros=run.hold.held_micros)
        except Refused as refused:
            if refused.error.status != 402:
                return  # nobody can say now; the next beat asks again
            await self._fail(run, "The organization's credit was used up while the run waited.")
            return
        except LedgerError:
            return
        async with self._database.connection() as conn:
            is_taken = await runs.hold_anew(conn, run.id, hold, instead_of=run.hold.hold_id)
        if not is_taken:
            await self._money.release(run.org_id, run.key_id, hold)

    # -- one run -----------------------------------------------------------------------------------------------------

    async def _work(self, run: Run) -> None:
        try:
            if run.status is not RunStatus.SETTLING:
                await self._measure(run)
            await self._settle(run)
        except (ControlError, LedgerError, OutboxUnavailable) as error:
            log.warning("The eval run %s waits: %s", run.id, error)
            await asyncio.sleep(RETRY_S)
        except Exception:
            log.exception("The eval run %s cannot go on.", run.id)
            await asyncio.sleep(RETRY_S)
            await self._fail(run, "The run failed inside the platform.")

    async def _measure(self, run: Run) -> None:
        """Ask for every answer that is not there yet, then decide."""
        async with self._database.connection() as conn:
            await runs.advance(conn, run.id, RunStatus.RUNNING, only_from=(RunStatus.QUEUED,))
            rows = await sets.rows_of(conn, run.set_id)
            documents = await sets.documents_of(conn, run.set_id)
            candidates = await runs.candidates_of(conn, run.id)
            answered = await runs.answers_of(conn, run.id)
        if run.status is not RunStatus.EVALUATING:
            left = [(one, _missing(rows, answered.get(one.name, ()))) for one in candidates]
            await _together([self._ask_all(run, one, missing, documents) for one, missing in left if missing])
        async with self._database.connection() as conn:
            await runs.advance(conn, run.id, RunStatus.EVALUATING, only_from=(RunStatus.RUNNING,))
            answers = await runs.answers_of(conn, run.id)
        results = await asyncio.to_thread(
            lambda: [(one.position, result_of(one, answers.get(one.name, ()), seed=run.set_id)) for one in candidates]
        )
        total_micros = sum(answer.cost_micros for given in answers.values() for answer in given)
        # A vendor that counts more than can be is paid by us: no customer is charged more than was held.
        total_micros = min(total_micros, run.hold.held_micros)
        has_scored = any(result.succeeded for _, result in results)
        async with self._database.connection() as conn:
            await runs.decide(
                conn, run.id, results, total_micros=total_micros, error_detail=None if has_scored else _FAILED
            )

    async def _ask_all(
        self, run: Run, candidate: Candidate, rows: Sequence[EvalRow], documents: Mapping[int, Sequence[Attached]]
    ) -> None:
        """Ask one model about these rows, a few at a time."""
        try:
            asker = await self._open(candidate)
        except AskFailed as error:
            for row in rows:
                await self._keep(run, candidate, ItemAnswer(row.idx, None, None, str(error)))
            return
        waiting = list(reversed(rows))

        async def work() -> None:
            while waiting:
                row = waiting.pop()
                async with self._asked:
                    answer = await self._ask(run, candidate, asker, row, documents.get(row.idx, ()))
                await self._keep(run, candidate, answer)

        try:
            await _together([work() for _ in range(min(ITEMS_AT_ONCE, len(rows)))])
        finally:
            await asker.close()

    async def _open(self, candidate: Candidate) -> Asker:
        if candidate.kind == "open":
            return await self._open_models.open(candidate)
        return await self._vendor_models.open_model(candidate)

    async def _ask(
        self, run: Run, candidate: Candidate, asker: Asker, row: EvalRow, documents: Sequence[Attached]
    ) -> ItemAnswer:
        measure = run.measure
        try:
            asked = messages(
                row.input,
                system_prompt=measure.system_prompt,
                prompt_scaffold=measure.prompt_scaffold,
                labels=measure.scorer_settings.get("labels", ()),
                documents=[
                    Document(one.field_name, one.mime, await self._blobs.read(one.blob_id)) for one in documents
                ],
            )
            said = await asker.ask(asked, most_tokens=measure.max_output_tokens)
            score = await self._grader.grade(
                measure.scorer, row.expected, said.text, measure.scorer_settings, row.input
            )
        except AskFailed as error:
            return ItemAnswer(row.idx, None, None, str(error))
        except FileNotFoundError:
            return ItemAnswer(row.idx, None, None, "The row's document is not there any more.")
        cost = item_micros(candidate, prompt_tokens=said.prompt_tokens, completion_tokens=said.completion_tokens)
        return ItemAnswer(
            row.idx,
            said.text.replace("\x00", "")[:KEPT_LETTERS],
            score,
            None,
            cost,
            said.prompt_tokens,
            said.completion_tokens,
        )

    async def _keep(self, run: Run, candidate: Candidate, answer: ItemAnswer) -> None:
        async with self._database.connection() as conn:
            await runs.keep_answer(conn, run.id, candidate.position, answer)

    async def _fail(self, run: Run, why: str) -> None:
        async with self._database.connection() as conn:
            await runs.decide(conn, run.id, (), total_micros=0, error_detail=why)

    async def _settle(self, run: Run) -> None:
        """Charge what was decided, then end the run. Killed in between, it is charged again: the same charge, once."""
        async with self._database.connection() as conn:
            now = await runs.find(conn, run.org_id, run.id)
        if now is None or now.status is not RunStatus.SETTLING:
            return
        await self._money.settle(
            now.org_id,
            now.key_id,
            now.hold,
            total_micros=now.total_cost_micros,
            started_ms=int(now.created_at.timestamp() * 1000),
        )
        async with self._database.connection() as conn:
            await runs.finish(conn, now.id)


def _missing(rows: Sequence[EvalRow], answers: Sequence[ItemAnswer]) -> list[EvalRow]:
    done = {answer.idx for answer in answers}
    return [row for row in rows if row.idx not in done]


async def _together(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Do all at once; the first failure ends the others, and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
