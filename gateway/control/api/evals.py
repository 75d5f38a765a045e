"""Eval sets and runs: a customer's rows, and what they cost and say.

Floor: control. Contract: sections 2.6 and 2.8.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import orjson
from aiohttp import BodyPartReader, web
from aiohttp.http_exceptions import HttpProcessingError

from gateway.control.api.caller import Call, Handler, answer, claim_of
from gateway.control.catalog import store as catalog
from gateway.control.catalog.values import Task
from gateway.control.claims import ClaimDiffers
from gateway.control.database import new_id
from gateway.control.evals import runs, sets
from gateway.control.evals.prices import most_micros
from gateway.control.evals.prompts import messages
from gateway.control.evals.results import in_order
from gateway.control.evals.rows import EvalRow, LineReader, RowInvalid
from gateway.control.evals.sets import Attached
from gateway.control.evals.values import Candidate, EvalSet, ItemAnswer, Measure, Result, Run, RunStatus
from gateway.core import errors, idempotency
from gateway.core.errors import Refused
from gateway.core.scoring.gold import gold_problem

if TYPE_CHECKING:
    from gateway.control.database import Connection, Store
    from gateway.control.evals.money import RunMoney
    from gateway.control.evals.runner import EvalRunner

MAX_NAME_LETTERS: Final = 200
MAX_SETS: Final = 10_000
MAX_CANDIDATES: Final = 50
MAX_OUTPUT_TOKENS: Final = 2048
"""Of one answer. What a run holds follows from it, so it is not what a model could write at most."""
LISTED_RUNS: Final = 100
SHOWN_ROWS: Final = 20


class EvalSets:
    """The handlers of sets."""

    def __init__(self, database: Store) -> None:
        self._database = database

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {
            ("GET", "/v1/eval-sets"): self.list_all,
            ("POST", "/v1/eval-sets"): self.create,
            ("GET", "/v1/eval-sets/{set_id}"): self.retrieve,
            ("DELETE", "/v1/eval-sets/{set_id}"): self.delete,
        }

    async def list_all(self, call: Call) -> web.StreamResponse:
        """The organization's sets, the oldest first."""
        async with self._database.connection() as conn:
            return answer({"eval_sets": [public_set(one) for one in await sets.list_of(conn, call.org_id)]})

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """One set."""
        async with self._database.connection() as conn:
            return answer({"eval_set": public_set(await found_set(conn, call))})

    async def delete(self, call: Call) -> web.StreamResponse:
        """Remove a set; what was measured with it stays."""
        async with self._database.connection() as conn:
            if not await sets.remove(conn, call.org_id, call.ids["set_id"]):
                raise Refused(errors.eval_set_not_found(call.ids["set_id"]))
        return web.Response(status=204)

    async def create(self, call: Call) -> web.StreamResponse:
        """Keep rows: multipart, a file of JSON lines beside the task and a name."""
        rows: list[EvalRow] | None = None
        fields: dict[str, str] = {}
        async for part in parts_of(call):
            if part.name == "items":
                rows = await _rows(part)
            elif part.name in ("task_id", "name"):
                fields[part.name] = await text_of(part)
        task_id, name = fields.get("task_id", ""), fields.get("name", "")
        if not task_id:
            raise Refused(errors.unprocessable("task_id", "must be the id of a task"))
        if len(name) > MAX_NAME_LETTERS:
            raise Refused(errors.unprocessable("name", f"must not have more than {MAX_NAME_LETTERS} letters"))
        if "\x00" in name:
            raise Refused(errors.unprocessable("name", "must not hold the character U+0000"))
        async with self._database.connection() as conn:
            task = await catalog.task(conn, task_id)
            if task is None:
                raise Refused(errors.task_not_found(task_id))
            if rows is None:
                raise Refused(errors.unprocessable("items", "must be a file of JSON lines"))
            _require_golds(rows, task.default_scorer, task.scorer_settings)
            if await sets.count_of(conn, call.org_id) >= MAX_SETS:
                raise Refused(errors.eval_quota(MAX_SETS))
            what = orjson.dumps([task_id, name, [[row.input, row.expected, row.extra] for row in rows]])
            try:
                made = await sets.create(
                    conn,
                    call.org_id,
                    task_id=task_id,
                    name=name or f"eval set ({len(rows)} rows)",
                    rows=rows,
                    claim=claim_of(call, what),
                )
            except ClaimDiffers:
                raise Refused(errors.idempotency_mismatch()) from None
        return answer({"eval_set": public_set(made)}, status=201)


class EvalRuns:
    """The handlers of runs."""

    def __init__(self, database: Store, money: RunMoney, runner: EvalRunner) -> None:
        self._database = database
        self._money = money
        self._runner = runner

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {
            ("GET", "/v1/eval-runs"): self.list_newest,
            ("POST", "/v1/eval-runs"): self.create,
            ("GET", "/v1/eval-runs/{run_id}"): self.retrieve,
        }

    async def list_newest(self, call: Call) -> web.StreamResponse:
        """The organization's newest runs, without their results."""
        async with self._database.connection() as conn:
            found = await runs.list_of(conn, call.org_id, most=LISTED_RUNS)
            return answer({"runs": [public_run(run, await runs.candidates_of(conn, run.id)) for run in found]})

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """One run; its results once it has ended."""
        async with self._database.connection() as conn:
            run = await runs.find(conn, call.org_id, call.ids["run_id"])
            if run is None:
                raise Refused(errors.eval_run_not_found(call.ids["run_id"]))
            candidates = await runs.candidates_of(conn, run.id)
            if run.status not in (RunStatus.COMPLETED, RunStatus.FAILED):
                return answer({"run": public_run(run, candidates), "results": []})
            results = in_order(await runs.results_of(conn, run.id))
            answers = await runs.answers_of(conn, run.id)
        return answer(
            {
                "run": public_run(run, candidates),
                "results": [public_result(one, answers.get(one.name, ())) for one in results],
            }
        )

    async def create(self, call: Call) -> web.StreamResponse:
        """Hold the credit, queue the run, and return."""
        body = await call.json()
        set_id, wanted = _wanted(body)
        what = orjson.dumps([set_id, sorted(wanted)])
        claim, fingerprint = claim_of(call, what), idempotency.fingerprint(what)
        async with self._database.connection() as conn:
            eval_set = await sets.find(conn, call.org_id, set_id)
            if eval_set is None:
                raise Refused(errors.eval_set_not_found(set_id))
            task = await catalog.task(conn, eval_set.task_id)
            if task is None:
                raise Refused(errors.task_not_found(eval_set.task_id))
            try:
                earlier = await runs.earlier(conn, call.org_id, claim, fingerprint)
            except ClaimDiffers:
                raise Refused(errors.idempotency_mismatch()) from None
            if earlier is not None:
                return await self._accepted(conn, call.org_id, earlier)
            candidates = await self._candidates(conn, task, wanted)
            rows, documents = await sets.rows_of(conn, set_id), await sets.documents_of(conn, set_id)
        if task.has_blob_input:
            _require_documents(rows, documents)
        measure = Measure(
            task.default_scorer, task.scorer_settings, task.system_prompt, task.prompt_scaffold, MAX_OUTPUT_TOKENS
        )
        hold = await self._money.hold(
            call.org_id,
            call.key_id,
            most_micros=most_micros(
                candidates,
                prompt_bytes=[_prompt_bytes(row, measure) for row in rows],
                documents=sum(len(attached) for attached in documents.values()),
                most_tokens=measure.max_output_tokens,
            ),
        )
        run_id = new_id("run")
        try:
            async with self._database.connection() as conn:
                now = await conn.fetchval("SELECT now()")
                run = Run(
                    run_id, call.org_id, call.key_id, set_id, RunStatus.QUEUED, None, measure, hold, 0, created_at=now
                )
                accepted = await runs.create(conn, run, candidates, claim=claim, fingerprint=fingerprint)
        except BaseException as error:
            await self._money.release(call.org_id, call.key_id, hold)
            if isinstance(error, ClaimDiffers):
                raise Refused(errors.idempotency_mismatch()) from None
            raise
        if accepted != run_id:
            await self._money.release(call.org_id, call.key_id, hold)
        self._runner.rouse()
        async with self._database.connection() as conn:
            return await self._accepted(conn, call.org_id, accepted)

    async def _accepted(self, conn: Connection, org_id: str, run_id: str) -> web.Response:
        run = await runs.find(conn, org_id, run_id)
        status = RunStatus.QUEUED if run is None else run.status
        return answer({"run_id": run_id, "status": status.public}, status=202)

    async def _candidates(self, conn: Connection, task: Task, wanted: Sequence[str]) -> list[Candidate]:
        """The models that were asked for: by alias of the task, or by a vendor's id.

        Raises:
            Refused: 400, one is neither.
        """
        board = {row.alias: row for row in (await catalog.board(conn, task.id)).rows}
        vendors = {one.id: one for one in await catalog.vendor_models(conn, needs_vision=task.has_blob_input)}
        found: list[Candidate] = []
        for position, name in enumerate(wanted):
            if (row := board.get(name)) is not None:
                found.append(
                    Candidate(
                        position,
                        name,
                        "open",
                        row.model_id,
                        cost_per_request_micros=row.cost_per_request_micros,
                    )
                )
            elif (vendor := vendors.get(name)) is not None:
                found.append(
                    Candidate(
                        position,
                        name,
                        "frontier",
                        vendor.id,
                        vendor=vendor.vendor,
                        prompt_rate_nanos=vendor.prompt_rate_nanos,
                        completion_rate_nanos=vendor.completion_rate_nanos,
                    )
                )
            else:
                raise Refused(errors.unknown_candidate(name))
        return found


# ------------------------------------------------------------------------------------------------------- what is shown


def public_set(one: EvalSet) -> dict[str, Any]:
    """A set as its owner sees it."""
    return {
        "id": one.id,
        "task_id": one.task_id,
        "name": one.name,
        "item_count": one.item_count,
        "scoring_strategy": one.scoring_strategy,
        "created_at": int(one.created_at.timestamp()),
    }


def public_run(run: Run, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A run as its owner sees it; it costs nothing until it has."""
    is_settled = run.status is RunStatus.COMPLETED
    return {
        "id": run.id,
        "eval_set_id": run.set_id,
        "status": run.status.public,
        "candidate_model_ids": [one.name for one in candidates],
        "total_cost_micro_usd": run.total_cost_micros if is_settled else 0,
        "error_detail": run.error_detail if run.status is RunStatus.FAILED else None,
        "created_at": int(run.created_at.timestamp()),
    }


def public_result(one: Result, answers: Sequence[ItemAnswer]) -> dict[str, Any]:
    """What a run says of one model."""
    return {
        "model_id": one.name,
        "kind": one.kind,
        "quality_mean": one.quality_mean,
        "quality_ci_low": one.quality_low,
        "quality_ci_high": one.quality_high,
        "mean_cost_micro_usd": one.mean_cost_micros,
        "n_succeeded": one.succeeded,
        "error_count": one.failed,
        "per_item": [
            {"idx": item.idx, "score": item.score, "prediction": item.prediction, "error": item.error}
            for item in answers
        ],
    }


# -------------------------------------------------------------------------------------------------------- what is read


async def found_set(conn: Connection, call: Call) -> EvalSet:
    """The set that the path names.

    Raises:
        Refused: 404.
    """
    found = await sets.find(conn, call.org_id, call.ids["set_id"])
    if found is None:
        raise Refused(errors.eval_set_not_found(call.ids["set_id"]))
    return found


async def parts_of(call: Call) -> AsyncIterator[BodyPartReader]:
    """The parts of a multipart body, one after the other.

    Raises:
        Refused: 422, it is none.
    """
    if call.request.content_type != "multipart/form-data":
        raise Refused(errors.unprocessable("body", "must be multipart/form-data"))
    try:
        async for part in await call.request.multipart():
            if not isinstance(part, BodyPartReader):
                raise Refused(errors.unprocessable("body", "must not hold a multipart body inside another"))
            yield part
    except (ValueError, AssertionError, web.HTTPException, HttpProcessingError):
        raise Refused(errors.unprocessable("body", "is no well-formed multipart/form-data")) from None


async def text_of(part: BodyPartReader, *, most_bytes: int = 4096) -> str:
    """A short text field.

    Raises:
        Refused: 422, it is too long or not UTF-8.
    """
    data = bytearray()
    while chunk := await part.read_chunk(4096):
        data += chunk
        if len(data) > most_bytes:
            raise Refused(errors.unprocessable(part.name or "body", f"must not be longer than {most_bytes} bytes"))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(errors.unprocessable(part.name or "body", "must be text in UTF-8")) from None


async def _rows(part: BodyPartReader) -> list[EvalRow]:
    reader = LineReader()
    rows: list[EvalRow] = []
    try:
        while chunk := await part.read_chunk(64 * 1024):
            rows += reader.feed(chunk)
        rows += reader.end()
    except RowInvalid as error:
        raise Refused(errors.unprocessable("items", str(error))) from None
    return rows


def _require_golds(rows: Sequence[EvalRow], scorer: str, settings: Mapping[str, Any]) -> None:
    for row in rows:
        problem = gold_problem(scorer, row.expected, settings)
        if problem is not None:
            raise Refused(errors.unprocessable("items", f"row {row.idx} cannot be scored: its good answer {problem}"))


def _wanted(body: Mapping[str, Any]) -> tuple[str, list[str]]:
    set_id, wanted = body.get("eval_set_id"), body.get("candidate_model_ids")
    if not isinstance(set_id, str) or not set_id:
        raise Refused(errors.unprocessable("eval_set_id", "must be the id of an eval set, as text"))
    if not isinstance(wanted, list) or not wanted or not all(isinstance(name, str) and name for name in wanted):
        raise Refused(errors.unprocessable("candidate_model_ids", "must be a list of at least one model's name"))
    names = list(dict.fromkeys(wanted))
    if len(names) > MAX_CANDIDATES:
        raise Refused(errors.unprocessable("candidate_model_ids", f"must not hold more than {MAX_CANDIDATES} models"))
    return set_id, names


def _require_documents(rows: Sequence[EvalRow], documents: Mapping[int, Sequence[Attached]]) -> None:
    missing = [row.idx for row in rows if row.idx not in documents]
    if missing:
        more = f" and {len(missing) - SHOWN_ROWS} more" if len(missing) > SHOWN_ROWS else ""
        raise Refused(errors.documents_missing(", ".join(map(str, missing[:SHOWN_ROWS])) + more))


def _prompt_bytes(row: EvalRow, measure: Measure) -> int:
    asked = messages(
        row.input,
        system_prompt=measure.system_prompt,
        prompt_scaffold=measure.prompt_scaffold,
        labels=measure.scorer_settings.get("labels", ()),
    )
    return sum(len(one["content"].encode("utf-8", "surrogatepass")) for one in asked)
