"""Eval runs in Postgres.

Floor: control. What customers read names the organization. What the runner writes is guarded by where the run stands,
so that a runner which was thought dead can't change what its successor has finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import orjson

from gateway.control.evals.money import RunHold
from gateway.control.evals.sets import CLAIM_KEPT, Claim, ClaimDiffers
from gateway.control.evals.values import Candidate, ItemAnswer, Measure, Result, Run, RunStatus

if TYPE_CHECKING:
    import asyncpg

    from gateway.control.database import Connection

UNDER_WAY: Final = (RunStatus.QUEUED, RunStatus.RUNNING, RunStatus.EVALUATING)
_SELECT = (
    "SELECT id, org_id, key_id, set_id, status, error_detail, scorer, scorer_settings, system_prompt, prompt_scaffold,"
    " max_output_tokens, hold_id, hold_epoch, held_micros, total_cost_micros, created_at FROM control.eval_run"
)


async def earlier(conn: Connection, org_id: str, claim: Claim | None, fingerprint: str) -> str | None:
    """The run that a request asks for again: one of the same idempotency key, or, without one, an equal run that is
    still under way.

    Raises:
        ClaimDiffers: the key was used for another request.
    """
    if claim is None:
        found: str | None = await conn.fetchval(
            "SELECT id FROM control.eval_run WHERE org_id = $1 AND fingerprint = $2 AND ended_at IS NULL"
            " ORDER BY created_at LIMIT 1",
            org_id,
            fingerprint,
        )
        return found
    row = await conn.fetchrow(
        "SELECT id, fingerprint FROM control.eval_run WHERE org_id = $1 AND claim = $2"
        " AND created_at > now() - $3::interval",
        org_id,
        claim.name,
        CLAIM_KEPT,
    )
    if row is None:
        return None
    if row["fingerprint"] != fingerprint:
        raise ClaimDiffers
    return str(row["id"])


async def create(
    conn: Connection, run: Run, candidates: Sequence[Candidate], *, claim: Claim | None, fingerprint: str
) -> str:
    """Queue a run whose credit is held; if an equal one was queued meanwhile, the id of that.

    Raises:
        ClaimDiffers.
    """
    measure, hold = run.measure, run.hold
    async with conn.transaction():
        # Two equal requests at once: the second finds what the first has made.
        name = fingerprint if claim is None else claim.name
        lock = f"pareta eval run {run.org_id} {name}"
        await conn.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", lock)
        found = await earlier(conn, run.org_id, claim, fingerprint)
        if found is not None:
            return found
        if claim is not None:
            await conn.execute(
                "UPDATE control.eval_run SET claim = NULL WHERE org_id = $1 AND claim = $2", run.org_id, claim.name
            )
        await conn.execute(
            "INSERT INTO control.eval_run (id, org_id, key_id, set_id, scorer, scorer_settings, system_prompt,"
            " prompt_scaffold, max_output_tokens, hold_id, hold_epoch, held_micros, claim, fingerprint)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
            run.id,
            run.org_id,
            run.key_id,
            run.set_id,
            measure.scorer,
            orjson.dumps(measure.scorer_settings).decode(),
            measure.system_prompt,
            measure.prompt_scaffold,
            measure.max_output_tokens,
            hold.hold_id,
            hold.epoch,
            hold.held_micros,
            None if claim is None else claim.name,
            fingerprint,
        )
        await conn.executemany(
            "INSERT INTO control.eval_candidate (run_id, position, name, kind, model_id, vendor,"
            " cost_per_request_micros, prompt_rate_nanos, completion_rate_nanos)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            [
                (
                    run.id,
                    one.position,
                    one.name,
                    one.kind,
                    one.model_id,
                    one.vendor,
                    one.cost_per_request_micros,
                    one.prompt_rate_nanos,
                    one.completion_rate_nanos,
                )
                for one in candidates
            ],
        )
    return run.id


async def find(conn: Connection, org_id: str, run_id: str) -> Run | None:
    """An organization's run."""
    row = await conn.fetchrow(f"{_SELECT} WHERE id = $1 AND org_id = $2", run_id, org_id)
    return _run(row) if row is not None else None


async def list_of(conn: Connection, org_id: str | None, *, most: int) -> list[Run]:
    """The newest runs of an organization, or of all; the newest first."""
    rows = await conn.fetch(
        f"{_SELECT} WHERE $1::text IS NULL OR org_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2", org_id, most
    )
    return [_run(row) for row in rows]


async def candidates_of(conn: Connection, run_id: str) -> list[Candidate]:
    """The models of a run, in the order in which they were asked for."""
    rows = await conn.fetch(
        "SELECT position, name, kind, model_id, vendor, cost_per_request_micros, prompt_rate_nanos,"
        " completion_rate_nanos FROM control.eval_candidate WHERE run_id = $1 ORDER BY position",
        run_id,
    )
    return [Candidate(**dict(row)) for row in rows]


async def results_of(conn: Connection, run_id: str) -> list[Result]:
    """What an ended run says of its models."""
    rows = await conn.fetch(
        "SELECT name, kind, quality_mean, quality_low, quality_high, mean_cost_micros, succeeded, failed"
        " FROM control.eval_candidate WHERE run_id = $1 AND succeeded IS NOT NULL ORDER BY position",
        run_id,
    )
    return [Result(**dict(row)) for row in rows]


async def answers_of(conn: Connection, run_id: str) -> dict[str, list[ItemAnswer]]:
    """The answers of a run so far, by the candidate's name, in the order of the rows."""
    found: dict[str, list[ItemAnswer]] = {}
    for row in await conn.fetch(
        "SELECT c.name, a.idx, a.prediction, a.score, a.error, a.cost_micros, a.prompt_tokens, a.completion_tokens"
        " FROM control.eval_answer a JOIN control.eval_candidate c ON c.run_id = a.run_id AND c.position = a.position"
        " WHERE a.run_id = $1 ORDER BY a.position, a.idx",
        run_id,
    ):
        fields = dict(row)
        found.setdefault(fields.pop("name"), []).append(ItemAnswer(**fields))
    return found


async def progress_of(conn: Connection, run_id: str) -> tuple[int, int]:
    """How many answers there are, of how many."""
    row = await conn.fetchrow(
        "SELECT (SELECT count(*) FROM control.eval_answer WHERE run_id = r.id) AS done, s.item_count *"
        " (SELECT count(*) FROM control.eval_candidate WHERE run_id = r.id) AS wanted"
        " FROM control.eval_run r JOIN control.eval_set s ON s.id = r.set_id WHERE r.id = $1",
        run_id,
    )
    return (row["done"], row["wanted"]) if row is not None else (0, 0)


# ------------------------------------------------------------------------------------------------------ for the runner


async def under_way(conn: Connection) -> list[Run]:
    """Runs that have not ended, of all organizations, the oldest first."""
    return [_run(row) for row in await conn.fetch(f"{_SELECT} WHERE ended_at IS NULL ORDER BY created_at, id")]


async def advance(conn: Connection, run_id: str, to: RunStatus, *, only_from: Sequence[RunStatus]) -> bool:
    """Move a run on, if it still stands where it was seen; whether it did."""
    return (
        await conn.fetchval(
            "UPDATE control.eval_run SET status = $2 WHERE id = $1 AND status = ANY($3::text[]) RETURNING true",
            run_id,
            to.value,
            [status.value for status in only_from],
        )
    ) is not None


async def hold_anew(conn: Connection, run_id: str, hold: RunHold, *, instead_of: str) -> bool:
    """Put another hold in the place of one that was lost; whether the run still had that one."""
    return (
        await conn.fetchval(
            "UPDATE control.eval_run SET hold_id = $2, hold_epoch = $3, held_micros = $4"
            " WHERE id = $1 AND hold_id = $5 AND status = ANY($6::text[]) RETURNING true",
            run_id,
            hold.hold_id,
            hold.epoch,
            hold.held_micros,
            instead_of,
            [status.value for status in UNDER_WAY],
        )
    ) is not None


async def keep_answer(conn: Connection, run_id: str, position: int, answer: ItemAnswer) -> bool:
    """Write an answer down, once, and only while the run is running; whether it was."""
    return (
        await conn.fetchval(
            "INSERT INTO control.eval_answer (run_id, position, idx, prediction, score, error, cost_micros,"
            " prompt_tokens, completion_tokens) SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9"
            " WHERE EXISTS (SELECT 1 FROM control.eval_run WHERE id = $1 AND status = 'running' FOR SHARE)"
            " ON CONFLICT DO NOTHING RETURNING true",
            run_id,
            position,
            answer.idx,
            answer.prediction,
            answer.score,
            answer.error,
            answer.cost_micros,
            answer.prompt_tokens,
            answer.completion_tokens,
        )
    ) is not None


async def decide(
    conn: Connection, run_id: str, results: Sequence[tuple[int, Result]], *, total_micros: int, error_detail: str | None
) -> bool:
    """Write down what a run says and costs; from here on only the money is left to do.

    Args:
        results: by the candidates' positions.
        error_detail: why it failed; it then costs nothing.
    """
    async with conn.transaction():
        moved = await conn.fetchval(
            "UPDATE control.eval_run SET status = 'settling', total_cost_micros = $2, error_detail = $3"
            " WHERE id = $1 AND status = ANY($4::text[]) RETURNING true",
            run_id,
            0 if error_detail is not None else total_micros,
            error_detail,
            [status.value for status in UNDER_WAY],
        )
        if moved is None:
            return False
        await conn.executemany(
            "UPDATE control.eval_candidate SET quality_mean = $3, quality_low = $4, quality_high = $5,"
            " mean_cost_micros = $6, succeeded = $7, failed = $8 WHERE run_id = $1 AND position = $2",
            [
                (
                    run_id,
                    position,
                    one.quality_mean,
                    one.quality_low,
                    one.quality_high,
                    one.mean_cost_micros,
                    one.succeeded,
                    one.failed,
                )
                for position, one in results
            ],
        )
    return True


async def finish(conn: Connection, run_id: str) -> None:
    """Its money is settled: it has ended, well or not."""
    await conn.execute(
        "UPDATE control.eval_run SET status = CASE WHEN error_detail IS NULL THEN 'completed' ELSE 'failed' END,"
        " ended_at = now() WHERE id = $1 AND status = 'settling'",
        run_id,
    )


def _run(row: asyncpg.Record) -> Run:
    return Run(
        id=row["id"],
        org_id=row["org_id"],
        key_id=row["key_id"],
        set_id=row["set_id"],
        status=RunStatus(row["status"]),
        error_detail=row["error_detail"],
        measure=Measure(
            scorer=row["scorer"],
            scorer_settings=orjson.loads(row["scorer_settings"]),
            system_prompt=row["system_prompt"],
            prompt_scaffold=row["prompt_scaffold"],
            max_output_tokens=row["max_output_tokens"],
        ),
        hold=RunHold(row["hold_id"], row["hold_epoch"], row["held_micros"]),
        total_cost_micros=row["total_cost_micros"],
        created_at=row["created_at"],
    )
