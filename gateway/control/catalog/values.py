"""What the catalogue holds, as values.

Floor: control (pure). Real ids of open models stand in `BoardRow.model_id` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Task:
    """A job that models were measured on.

    Attributes:
        scorer_settings: what its scorer is told.
        input_fields: ``{"name", "type"}`` of each, the type ``text`` or ``blob``.
        system_prompt: what the measurements were taken with; never together with a scaffold.
        prompt_scaffold: a template for callers, never applied by us.
        examples: rows in the form in which eval sets are uploaded.
    """

    id: str
    title: str
    description: str
    category: str
    keywords: tuple[str, ...]
    default_scorer: str
    scorer_settings: Mapping[str, Any]
    scoring_strategy: str
    has_blob_input: bool
    input_fields: Sequence[Mapping[str, str]]
    expected_schema: Mapping[str, Any] | None
    system_prompt: str | None
    prompt_scaffold: str | None
    metric: str
    cost_unit: str
    examples: Sequence[Mapping[str, Any]] = field(default=())


@dataclass(frozen=True, slots=True)
class BoardRow:
    """An open model on a task's board. ``cost_per_request_micros``: what a request costs its customer, micro-USD."""

    alias: str
    model_id: str = field(repr=False)
    quality: float
    cost_per_request_micros: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Named:
    """An open model on a task: its public name there, and the real id."""

    alias: str
    model_id: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Baseline:
    """The frontier model on a board: the best that was measured, with its mean list price a request, micro-USD."""

    id: str
    quality: float
    cost_per_request_micros: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Board:
    """What was measured on a task.

    Attributes:
        rows: open models, the best first: by quality, then by cost.
        recommended: the alias that deploys as ``recommended``; None if no open model was measured.
    """

    rows: tuple[BoardRow, ...]
    frontier: Baseline | None
    recommended: str | None


@dataclass(frozen=True, slots=True)
class FrontierModel:
    """A model that its vendor hosts. ``benchmarked``: it was measured on the task that was asked about."""

    id: str
    vendor: str
    vision: bool
    benchmarked: bool


@dataclass(frozen=True, slots=True)
class VendorPrices:
    """What a vendor's model costs, nano-USD a million tokens."""

    id: str
    vendor: str
    prompt_rate_nanos: int
    completion_rate_nanos: int
