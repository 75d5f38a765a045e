"""What evals are made of, as values.

Floor: control (pure). Money in whole micro-USD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from gateway.control.evals.money import RunHold

Kind = Literal["open", "frontier"]


class RunStatus(StrEnum):
    """Where a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    EVALUATING = "evaluating"
    SETTLING = "settling"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def public(self) -> str:
        """What customers read: to them, a run that settles is still being evaluated."""
        return RunStatus.EVALUATING.value if self is RunStatus.SETTLING else self.value


@dataclass(frozen=True, slots=True)
class EvalSet:
    """An organization's rows for a task."""

    id: str
    task_id: str
    name: str
    item_count: int
    scoring_strategy: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model to be measured.

    Attributes:
        name: as it was asked for: the alias, or the vendor's id.
        model_id: the real one.
        cost_per_request_micros: of an open model.
        prompt_rate_nanos, completion_rate_nanos: of a vendor's, nano-USD a million tokens.
    """

    position: int
    name: str
    kind: Kind
    model_id: str = field(repr=False)
    vendor: str | None = None
    cost_per_request_micros: int | None = None
    prompt_rate_nanos: int | None = None
    completion_rate_nanos: int | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """What a run measures with."""

    scorer: str
    scorer_settings: Mapping[str, Any]
    system_prompt: str | None
    prompt_scaffold: str | None
    max_output_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """A run as it stands in Postgres."""

    id: str
    org_id: str
    key_id: str
    set_id: str
    status: RunStatus
    error_detail: str | None
    measure: Measure
    hold: RunHold
    total_cost_micros: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ItemAnswer:
    """What a model answered to a row. Either ``score`` or ``error`` is there."""

    idx: int
    prediction: str | None
    score: float | None
    error: str | None
    cost_micros: int = 0
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a run says of one model."""

    name: str
    kind: Kind
    quality_mean: float | None
    quality_low: float | None
    quality_high: float | None
    mean_cost_micros: int | None
    succeeded: int
    failed: int
