"""A small catalogue for tests. Its numbers are of the tests' own making and measure nothing."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.control.catalog import folder

REAL = {
    "contract-key-fields": ["orga/Sprout-7B-Instruct", "orgb/Thicket-14B", "orgc/Meadow-3B", "orga/Sprout-1B"],
    "support-ticket-triage": ["orga/Sprout-7B-Instruct", "orgc/Meadow-3B", "orgb/Thicket-14B"],
    "comment-moderation": ["orgc/Meadow-3B", "orga/Sprout-7B-Instruct", "orga/Sprout-1B"],
    "invoice-extraction": ["orgb/Thicket-VL-14B"],
}
"""Real ids of open models by task, the best first; none of them may ever be seen by a customer."""

FAMILIES = {
    "orga/Sprout-7B-Instruct": "sprout",
    "orga/Sprout-1B": "sprout",
    "orgb/Thicket-14B": "thicket",
    "orgb/Thicket-VL-14B": "thicket-vl",
    "orgc/Meadow-3B": "meadow",
}
FRONTIER = "atlas-5"
BLIND_FRONTIER = "nimbus-text-2"


def task(task_id: str) -> dict[str, Any]:
    """A shipped task, with examples of the tests' own."""
    content: dict[str, Any] = orjson.loads((folder.shipped() / "tasks" / f"{task_id}.json").read_bytes())
    rows = [{"input": f"Example {number} of {task_id}", "expected": {"answer": str(number)}} for number in range(5)]
    return {**content, "examples": rows}


TASKS = [task(task_id) for task_id in REAL]


def measured(model: str, quality: float, cost: int) -> dict[str, Any]:
    """One line of a board."""
    return {
        "model": model,
        "quality": quality,
        "quality_low": max(0.0, quality - 0.05),
        "quality_high": min(1.0, quality + 0.05),
        "items": 40,
        "cost_per_request_micros": cost,
        "provenance": {"by": "nobody: a test's own numbers"},
    }


def files(*, boards: dict[str, Any] | None = None, tasks: list[dict[str, Any]] | None = None) -> dict[str, bytes]:
    """The files of the catalogue; ``boards`` replaces some."""
    content: dict[str, Any] = {
        "catalog.json": {"version": "test-1"},
        "models.json": [
            {"id": model, "family": family, "context_tokens": 32_768, "vision": "vl" in family}
            for model, family in FAMILIES.items()
        ],
        "frontier.json": [
            {"id": name, "vendor": vendor, "vision": vision, "context_tokens": 200_000,
             "prompt_nanos_per_million": 3_000_000_000, "completion_nanos_per_million": 15_000_000_000}
            for name, vendor, vision in ((FRONTIER, "atlas", True), (BLIND_FRONTIER, "nimbus", False))
        ],
    }  # fmt: skip
    for one in TASKS if tasks is None else tasks:
        content[f"tasks/{one['id']}.json"] = one
        content[f"boards/{one['id']}.json"] = board(one["id"])
    for task_id, changed in (boards or {}).items():
        content[f"boards/{task_id}.json"] = changed
    return {name: orjson.dumps(value) for name, value in content.items()}


def board(task_id: str) -> dict[str, Any]:
    """What was measured on a task: each model a little worse than the one before."""
    models = REAL.get(task_id, [])
    return {
        "open": [measured(model, 0.9 - place / 10, 300 + place * 37) for place, model in enumerate(models)],
        "frontier": [measured(FRONTIER, 0.93, 4_100)],
        "recommended": None,
    }
