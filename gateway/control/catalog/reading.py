"""Reading a catalogue's files: everything that is wrong in them is told, with file and place.

Floor: control (pure). The files of a catalogue:

=====================  ==============================================================================================
``catalog.json``       ``{"version"}``
``tasks/<id>.json``    a task; see `gateway.control.catalog.values.Task`
``models.json``        a list of ``{"id", "family", "context_tokens", "vision"}``: open models, by their real ids
``frontier.json``      a list of ``{"id", "vendor", "vision", "context_tokens", "prompt_nanos_per_million",
                       "completion_nanos_per_million"}``: the vendors' list prices
``boards/<task>.json``  ``{"open": […], "frontier": […], "recommended"}``: measurements, each ``{"model", "quality",
                       "quality_low", "quality_high", "items", "cost_per_request_micros", "provenance"}``. The cost of
                       an open model is its price; ``recommended`` names a model or is null
=====================  ==============================================================================================
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.control.catalog.values import Task

MAX_TASKS: Final = 10_000
MAX_EXAMPLES: Final = 20
_TASK_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}", re.ASCII)
_FAMILY: Final = re.compile(r"[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*", re.ASCII)
_VENDOR_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_STRATEGIES: Final = ("extraction", "classification", "generation", "execution", "judge")


class CatalogInvalid(Exception):
    """The files can't be imported. ``problems`` has a line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class OpenModel:
    """An open model; ``id`` is the real one."""

    id: str
    family: str
    context_tokens: int
    vision: bool


@dataclass(frozen=True, slots=True)
class VendorModel:
    """A vendor's model with its list prices, nano-USD a million tokens."""

    id: str
    vendor: str
    vision: bool
    context_tokens: int
    prompt_nanos_per_million: int
    completion_nanos_per_million: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement of one model on one task."""

    task_id: str
    kind: str
    model: str
    quality: float
    quality_low: float | None
    quality_high: float | None
    items: int
    cost_per_request_micros: int
    provenance: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Catalog:
    """The content of a catalogue's files. ``recommended``: a real model id by task, where the operator picked one."""

    version: str
    tasks: tuple[Task, ...]
    models: tuple[OpenModel, ...]
    vendors: tuple[VendorModel, ...]
    measured: tuple[Measured, ...]
    recommended: Mapping[str, str]
    checksum: bytes


def read_catalog(files: Mapping[str, bytes]) -> Catalog:
    """Read the files of a catalogue, by their paths below its folder.

    Raises:
        CatalogInvalid: with everything that is wrong.
    """
    reader = _Reader(files)
    catalog = reader.read()
    if reader.problems:
        raise CatalogInvalid(reader.problems)
    return catalog


def read_tasks(files: Mapping[str, bytes]) -> list[Task]:
    """Only the tasks of a catalogue.

    Raises:
        CatalogInvalid: with everything that is wrong with them.
    """
    reader = _Reader(files)
    tasks = reader.tasks()
    if reader.problems:
        raise CatalogInvalid(reader.problems)
    return tasks


_MISSING: Final = object()


@dataclass(slots=True)
class _Reader:
    files: Mapping[str, bytes]
    problems: list[str] = field(default_factory=list)

    def read(self) -> Catalog:
        version = self._text(self._object("catalog.json"), "version", "catalog.json", most=100)
        tasks = self.tasks()
        models = [self._model(row, place) for row, place in self._rows("models.json")]
        vendors = [self._vendor(row, place) for row, place in self._rows("frontier.json")]
        self._unique("models.json", [model.id for model in models])
        self._unique("frontier.json", [vendor.id for vendor in vendors])
        if not tasks:
            self.problems.append("tasks/: there is no task.")
        if len(tasks) > MAX_TASKS:
            self.problems.append(f"tasks/: more than {MAX_TASKS} tasks.")
        measured: list[Measured] = []
        recommended: dict[str, str] = {}
        known = {
            "open": {model.id for model in models},
            "frontier": {vendor.id for vendor in vendors},
        }
        task_ids = {task.id for task in tasks}
        for name in self._names("boards/"):
            board = self._object(name)
            task_id = name.removeprefix("boards/").removesuffix(".json")
            if task_id not in task_ids:
                self.problems.append(f"{name}: there is no task {task_id!r}.")
            for kind in ("open", "frontier"):
                entries = self._measured(board, task_id, kind, name)
                self._unique(f"{name}: {kind}", [entry.model for entry in entries])
                for entry in entries:
                    if entry.model not in known[kind]:
                        self.problems.append(f"{name}: {kind}: {entry.model!r} is not among the models of this kind.")
                measured += entries
            pick = board.get("recommended")
            if pick is not None and pick not in {entry.model for entry in measured if entry.task_id == task_id}:
                self.problems.append(f"{name}: recommended must be null or one of its open models.")
            elif pick is not None:
                recommended[task_id] = pick
        digest = hashlib.sha256()
        for name in sorted(self.files):
            digest.update(b"%s\0%d\0%s" % (name.encode(), len(self.files[name]), self.files[name]))
        return Catalog(
            version, tuple(tasks), tuple(models), tuple(vendors), tuple(measured), recommended, digest.digest()
        )

    def tasks(self) -> list[Task]:
        return [self._task(name) for name in self._names("tasks/")]

    # -- the parts

    def _task(self, name: str) -> Task:
        row = self._object(name)
        task_id = self._text(row, "id", name, most=63)
        if _TASK_ID.fullmatch(task_id) is None or task_id == "match" or name != f"tasks/{task_id}.json":
            self.problems.append(f"{name}: id must be the file's name: lower-case letters, digits and hyphens.")
        strategy = self._text(row, "scoring_strategy", name)
        if strategy not in _STRATEGIES:
            self.problems.append(f"{name}: scoring_strategy must be one of {', '.join(_STRATEGIES)}.")
        prompt, scaffold = (
            self._optional_text(row, key, name) for key in ("recommended_system_prompt", "prompt_scaffold")
        )
        if prompt is not None and scaffold is not None:
            self.problems.append(f"{name}: a task has a recommended_system_prompt or a prompt_scaffold, never both.")
        fields = self._list(row, "input_fields", name)
        for place, one in enumerate(fields):
            if (
                not isinstance(one, dict)
                or not isinstance(one.get("name"), str)
                or one.get("type") not in ("text", "blob")
            ):
                self.problems.append(
                    f"{name}: input_fields[{place}] must be an object with name and type (text or blob)."
                )
        examples = self._list(row, "examples", name)
        if len(examples) > MAX_EXAMPLES or not all(isinstance(one, dict) and one for one in examples):
            self.problems.append(f"{name}: examples must be at most {MAX_EXAMPLES} objects.")
        keywords = self._list(row, "keywords", name)
        if not all(isinstance(word, str) and word for word in keywords):
            self.problems.append(f"{name}: keywords must be texts.")
        schema, settings = row.get("expected_schema"), row.get("scorer_settings", {})
        if schema is not None and not isinstance(schema, dict):
            self.problems.append(f"{name}: expected_schema must be an object or null.")
        if not isinstance(settings, dict):
            self.problems.append(f"{name}: scorer_settings must be an object.")
        has_blob = row.get("has_blob_input")
        if not isinstance(has_blob, bool):
            self.problems.append(f"{name}: has_blob_input must be true or false.")
        return Task(
            id=task_id,
            title=self._text(row, "title", name, most=200),
            description=self._text(row, "description", name, most=2000),
            category=self._text(row, "category", name, most=100),
            keywords=tuple(word for word in keywords if isinstance(word, str)),
            default_scorer=self._text(row, "default_scorer", name, most=100),
            scorer_settings=settings if isinstance(settings, dict) else {},
            scoring_strategy=strategy,
            has_blob_input=has_blob is True,
            input_fields=[one for one in fields if isinstance(one, dict)],
            expected_schema=schema if isinstance(schema, dict) else None,
            system_prompt=prompt,
            prompt_scaffold=scaffold,
            metric=self._text(row, "metric", name, most=100),
            cost_unit=self._text(row, "cost_unit", name, most=100),
            examples=[one for one in examples if isinstance(one, dict)],
        )

    def _model(self, row: Mapping[str, Any], place: str) -> OpenModel:
        family = self._text(row, "family", place, most=80)
        if _FAMILY.fullmatch(family) is None:
            self.problems.append(f"{place}: family must be lower-case words with hyphens in between.")
        return OpenModel(
            self._text(row, "id", place, most=300),
            family,
            self._whole(row, "context_tokens", place, 1),
            self._bool(row, "vision", place),
        )

    def _vendor(self, row: Mapping[str, Any], place: str) -> VendorModel:
        vendor_id = self._text(row, "id", place)
        if _VENDOR_ID.fullmatch(vendor_id) is None:
            self.problems.append(f"{place}: id must be letters, digits, dots, hyphens and underscores.")
        return VendorModel(
            id=vendor_id,
            vendor=self._text(row, "vendor", place, most=100),
            vision=self._bool(row, "vision", place),
            context_tokens=self._whole(row, "context_tokens", place, 1),
            prompt_nanos_per_million=self._whole(row, "prompt_nanos_per_million", place, 0),
            completion_nanos_per_million=self._whole(row, "completion_nanos_per_million", place, 0),
        )

    def _measured(self, board: Mapping[str, Any], task_id: str, kind: str, name: str) -> list[Measured]:
        found = []
        for place, row in enumerate(self._list(board, kind, name)):
            spot = f"{name}: {kind}[{place}]"
            if not isinstance(row, dict):
                self.problems.append(f"{spot} must be an object.")
                continue
            quality = self._share(row, "quality", spot)
            low, high = (
                self._share(row, key, spot) if row.get(key) is not None else None
                for key in ("quality_low", "quality_high")
            )
            if (low is not None and low > quality) or (high is not None and high < quality):
                self.problems.append(f"{spot}: the interval must hold the quality.")
            provenance = row.get("provenance")
            if not isinstance(provenance, dict) or not provenance:
                self.problems.append(f"{spot}: provenance must say how this was measured.")
            found.append(
                Measured(
                    task_id=task_id,
                    kind=kind,
                    model=self._text(row, "model", spot, most=300),
                    quality=quality,
                    quality_low=low,
                    quality_high=high,
                    items=self._whole(row, "items", spot, 1),
                    cost_per_request_micros=self._whole(row, "cost_per_request_micros", spot, 0),
                    provenance=provenance if isinstance(provenance, dict) else {},
                )
            )
        return found

    # -- single values

    def _names(self, folder: str) -> list[str]:
        return sorted(name for name in self.files if name.startswith(folder) and name.endswith(".json"))

    def _load(self, name: str) -> Any:
        if name not in self.files:
            self.problems.append(f"{name} is missing.")
            return None
        try:
            return orjson.loads(self.files[name])
        except orjson.JSONDecodeError as error:
            self.problems.append(f"{name} is no JSON: {error}.")
            return None

    def _object(self, name: str) -> Mapping[str, Any]:
        found = self._load(name)
        if found is not None and not isinstance(found, dict):
            self.problems.append(f"{name} must be an object.")
        return found if isinstance(found, dict) else {}

    def _rows(self, name: str) -> Iterable[tuple[Mapping[str, Any], str]]:
        found = self._load(name)
        if found is not None and not isinstance(found, list):
            self.problems.append(f"{name} must be a list.")
        for place, row in enumerate(found if isinstance(found, list) else []):
            if isinstance(row, dict):
                yield row, f"{name}[{place}]"
            else:
                self.problems.append(f"{name}[{place}] must be an object.")

    def _list(self, row: Mapping[str, Any], key: str, place: str) -> list[Any]:
        value = row.get(key, [])
        if not isinstance(value, list):
            self.problems.append(f"{place}: {key} must be a list.")
            return []
        return value

    def _text(self, row: Mapping[str, Any], key: str, place: str, *, most: int = 300) -> str:
        value = row.get(key)
        if not isinstance(value, str) or not value.strip() or len(value) > most:
            self.problems.append(f"{place}: {key} must be a text of 1 to {most} letters.")
            return ""
        return value

    def _optional_text(self, row: Mapping[str, Any], key: str, place: str) -> str | None:
        return None if row.get(key) is None else self._text(row, key, place, most=20_000)

    def _whole(self, row: Mapping[str, Any], key: str, place: str, least: int) -> int:
        value = row.get(key, _MISSING)
        if type(value) is not int or not least <= value < 2**53:
            self.problems.append(f"{place}: {key} must be a whole number of at least {least}.")
            return least
        return value

    def _bool(self, row: Mapping[str, Any], key: str, place: str) -> bool:
        value = row.get(key)
        if not isinstance(value, bool):
            self.problems.append(f"{place}: {key} must be true or false.")
        return value is True

    def _share(self, row: Mapping[str, Any], key: str, place: str) -> float:
        value = row.get(key)
        if type(value) not in (int, float) or not 0 <= value <= 1:  # type: ignore[operator]
            self.problems.append(f"{place}: {key} must be a number from 0 to 1.")
            return 0.0
        return float(value)  # type: ignore[arg-type]

    def _unique(self, place: str, ids: Sequence[str]) -> None:
        for one in sorted({one for one in ids if ids.count(one) > 1}):
            self.problems.append(f"{place}: {one!r} stands there more than once.")
