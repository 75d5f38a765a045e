"""Tasks, their boards, and the roster of vendors' models: free to read, the same for everybody.

Floor: control. Contract: sections 2.4 and 2.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from gateway.control.api.caller import Call, Handler, answer
from gateway.control.catalog import store
from gateway.control.catalog.values import Baseline, BoardRow, Task
from gateway.core import errors
from gateway.core.errors import Refused
from gateway.core.matching import Candidate, Matcher

if TYPE_CHECKING:
    from gateway.control.database import Store

MOST_EXAMPLES: Final = 20
MOST_CANDIDATES: Final = 50
DEFAULT_CANDIDATES: Final = 5
MOST_QUERY_LETTERS: Final = 4000


class Tasks:
    """The handlers."""

    def __init__(self, database: Store) -> None:
        self._database = database
        self._matcher: tuple[int, Matcher] | None = None

    def handlers(self) -> Mapping[tuple[str, str], Handler]:
        """By method and template."""
        return {
            ("GET", "/v1/tasks"): self.list,
            ("POST", "/v1/tasks/match"): self.match,
            ("GET", "/v1/tasks/{task_id}"): self.retrieve,
            ("GET", "/v1/tasks/{task_id}/leaderboard"): self.leaderboard,
            ("GET", "/v1/eval/frontier-models"): self.frontier_models,
        }

    async def list(self, call: Call) -> web.StreamResponse:
        """All tasks."""
        del call
        async with self._database.connection() as conn:
            return answer({"tasks": [public_task(task) for task in await store.tasks(conn)]})

    async def match(self, call: Call) -> web.StreamResponse:
        """Which tasks a sentence may mean."""
        body = await call.json()
        query, top_k = body.get("query"), body.get("top_k", DEFAULT_CANDIDATES)
        if not isinstance(query, str) or not query.strip():
            raise Refused(errors.unprocessable("query", "must be a text that is not blank"))
        if len(query) > MOST_QUERY_LETTERS:
            raise Refused(errors.unprocessable("query", f"has more than {MOST_QUERY_LETTERS} letters"))
        if type(top_k) is not int or not 1 <= top_k <= MOST_CANDIDATES:
            raise Refused(errors.unprocessable("top_k", f"must be a whole number from 1 to {MOST_CANDIDATES}"))
        found = (await self._current_matcher()).match(query, top_k)
        chosen = None if found.chosen is None else _candidate(found.chosen)
        return answer(
            {
                "query": query,
                "matched": chosen is not None,
                "chosen": chosen,
                "candidates": [_candidate(one) for one in found.candidates],
                "ambiguous": found.ambiguous,
                "matcher": "keyword",
                # What SDKs from 0.2 on read besides.
                "type": "none" if chosen is None else "task",
                "confidence": None if chosen is None else chosen["confidence"],
                "capability": None,
                "reasoning": None,
            }
        )

    async def retrieve(self, call: Call) -> web.StreamResponse:
        """One task, with rows to try it on if they are asked for."""
        wanted = _examples_n(call)
        task = await self._task(call.ids["task_id"])
        record = public_task(task)
        if wanted:
            record["examples"] = list(task.examples[:wanted])
        return answer(record)

    async def leaderboard(self, call: Call) -> web.StreamResponse:
        """What was measured on a task."""
        task = await self._task(call.ids["task_id"])
        async with self._database.connection() as conn:
            board = await store.board(conn, task.id)
        return answer(
            {
                "task_id": task.id,
                "metric": task.metric,
                "cost_unit": task.cost_unit,
                "recommended": board.recommended,
                "models": [_entry(row.alias, "open", row) for row in board.rows],
                "frontier": None if board.frontier is None else _entry(board.frontier.id, "frontier", board.frontier),
            }
        )

    async def frontier_models(self, call: Call) -> web.StreamResponse:
        """Vendors' models, for one task or for all."""
        wanted = call.query_text("task") or None
        if wanted is not None:
            await self._task(wanted)
        async with self._database.connection() as conn:
            found = await store.roster(conn, wanted)
        models = [
            {"id": one.id, "vendor": one.vendor, "vision": one.vision, "benchmarked": one.benchmarked} for one in found
        ]
        return answer({"frontier_models": models, "task": wanted})

    async def _current_matcher(self) -> Matcher:
        """One that knows the catalogue as it is now; building it takes milliseconds, so only when that has changed."""
        async with self._database.connection() as conn:
            version = await store.version(conn)
            if self._matcher is None or self._matcher[0] != version:
                self._matcher = version, Matcher(await store.tasks(conn))
        return self._matcher[1]

    async def _task(self, task_id: str) -> Task:
        async with self._database.connection() as conn:
            task = await store.task(conn, task_id)
        if task is None:
            raise Refused(errors.task_not_found(task_id))
        return task


def public_task(task: Task) -> dict[str, Any]:
    """A task as customers see it."""
    return {
        "id": task.id,
        "title": task.title,
        "description": task.description,
        "category": task.category,
        "default_scorer": task.default_scorer,
        "scoring_strategy": task.scoring_strategy,
        "has_blob_input": task.has_blob_input,
        "input_fields": list(task.input_fields),
        "expected_schema": task.expected_schema,
    }


def _candidate(one: Candidate) -> dict[str, Any]:
    return {"task_id": one.task_id, "score": one.score, "confidence": one.confidence}


def _entry(name: str, kind: str, row: BoardRow | Baseline) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "quality": row.quality,
        "cost_per_request_micro_usd": row.cost_per_request_micros,
        "context_k": max(1, row.context_tokens // 1000),
        "run_mode": None,
    }


def _examples_n(call: Call) -> int:
    text = call.query_text("examples_n")
    if text is None:
        return 0
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refused(errors.unprocessable("examples_n", f"must be a whole number from 0 to {MOST_EXAMPLES}"))
    return min(int(text), MOST_EXAMPLES)
