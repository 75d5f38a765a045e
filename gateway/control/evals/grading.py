"""Grading: what an answer is worth, by the scorer that its task names.

Floor: control. Pure scorers run on a thread; SQL in a process of its own; BLEU through its library; a judge
is a model that the platform asks and pays for.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Self

import orjson

from gateway.control.evals.engines import Asker, AskFailed
from gateway.core.scoring import SCORERS
from gateway.core.scoring.json_text import NOTHING, find_code, find_json
from gateway.core.scoring.judge import judge_messages, read_verdict
from gateway.core.scoring.texts import text_of, without_thought

SANDBOX_S: Final = 10.0
SANDBOXES: Final = 4
JUDGE_TOKENS: Final = 256
MAX_SCORED_LETTERS: Final = 20_000
"""Of a text for BLEU."""
log = logging.getLogger("pareta.grading")

EXECUTION: Final = "execution_accuracy"
JSON_SCHEMA: Final = "json_schema"
JUDGE: Final = "judge"


class Grader:
    """Scores answers.

    Args:
        judge: who is asked by the scorer ``judge``; None if the operator has set none.
    """

    def __init__(self, judge: Asker | None = None) -> None:
        self._judge = judge
        self._sandboxes = asyncio.Semaphore(SANDBOXES)
        self._sandbox = str(importlib.resources.files("gateway.control.evals") / "sql_sandbox.py")

    @classmethod
    @asynccontextmanager
    async def open(cls, judge: Asker | None = None) -> AsyncIterator[Self]:
        """One for the life of a process."""
        yield cls(judge)

    def knows(self, scorer: str) -> bool:
        """Whether answers can be graded so here."""
        return (
            scorer in SCORERS
            or scorer in _TEXTS
            or scorer in (EXECUTION, JSON_SCHEMA)
            or (scorer == JUDGE and self._judge is not None)
        )

    async def grade(
        self, scorer: str, expected: Any, output: str, settings: Mapping[str, Any], row_input: Any
    ) -> float:
        """What an answer is worth, 0 to 1.

        Args:
            row_input: what was asked; SQL needs its schema, a judge its question.

        Raises:
            AskFailed: the judge gave no verdict.
            ValueError: there is no such scorer.
        """
        output = without_thought(output)
        if scorer == EXECUTION:
            return await self._executed(expected, output, settings, row_input)
        if scorer == JUDGE and self._judge is not None:
            return await self._judged(expected, output, settings, row_input)
        if scorer == JSON_SCHEMA:
            return await asyncio.to_thread(_fits_schema, output, settings)
        if (score := SCORERS.get(scorer)) is not None:
            value = await asyncio.to_thread(score, expected, output, settings)
        elif (compare := _TEXTS.get(scorer)) is not None:
            good, given = text_of(expected)[:MAX_SCORED_LETTERS], output[:MAX_SCORED_LETTERS]
            value = await asyncio.to_thread(compare, good, given)
        else:
            raise ValueError(f"There is no scorer {scorer!r}.")
        return min(1.0, max(0.0, value))

    async def _executed(self, expected: Any, output: str, settings: Mapping[str, Any], row_input: Any) -> float:
        """Whether a query gives the rows of the good one on the row's own database."""
        name = settings.get("schema_field", "schema")
        setup = row_input.get(name, "") if isinstance(row_input, Mapping) else ""
        asked = {"setup": text_of(setup), "expected": text_of(expected), "given": find_code(output)}
        async with self._sandboxes:
            return float(await _in_sandbox(self._sandbox, asked))

    async def _judged(self, expected: Any, output: str, settings: Mapping[str, Any], row_input: Any) -> float:
        assert self._judge is not None
        question = row_input if isinstance(row_input, str) else orjson.dumps(row_input).decode()
        asked = judge_messages(question, text_of(expected), output, settings, mark=f"#{secrets.token_hex(8)}")
        said = await self._judge.ask(asked, most_tokens=JUDGE_TOKENS)
        verdict = read_verdict(said.text)
        if verdict is None:
            raise AskFailed("The judge gave no grade.")
        return verdict


async def _in_sandbox(script: str, asked: Mapping[str, str]) -> bool:
    """Whether the sandbox says that two queries give the same. One that dies or hangs says no."""
    # -I: nothing of this environment, its variables or its packages gets in.
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        script,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(SANDBOX_S):
            said, _ = await process.communicate(orjson.dumps(asked))
    except TimeoutError:
        return False
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    try:
        return orjson.loads(said)["same"] is True
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return False


def _fits_schema(output: str, settings: Mapping[str, Any]) -> float:
    """1 if the answer is JSON that fits the task's schema.

    Settings:
        schema: a JSON Schema.
    """
    import jsonschema
    import referencing

    found = find_json(output)
    if found is NOTHING:
        return 0.0
    # With a registry of its own, a reference in a schema is never fetched.
    validator = jsonschema.Draft202012Validator(settings.get("schema", {}), registry=referencing.Registry())
    try:
        return float(validator.is_valid(found))
    except (RecursionError, referencing.exceptions.Unresolvable):
        log.warning("a task's JSON schema cannot be applied")
        return 0.0


def _bleu(good: str, given: str) -> float:
    from sacrebleu.metrics.bleu import BLEU

    # Of one sentence: smoothed, or every short one would be 0.
    return float(BLEU(effective_order=True).sentence_score(given, [good]).score / 100)


_TEXTS: Final[Mapping[str, Callable[[str, str], float]]] = {
    "bleu": _bleu,
}
