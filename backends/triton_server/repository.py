"""Writes the model repository that a Triton server loads: one folder for each model.

Runs where the server is started, not inside it. A `model.py` there only names the class in this package, so that the
code has one home and is checked like the rest.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from backends.triton_server.interfaces import MODELS, Interface, Tensor

MODELS_FOLDER = "models"

# Triton's Python is isolated: it reads no PYTHONPATH.
_MODEL = """\
import sys

sys.path.append({folder!r})
from backends.triton_server.models.{module} import TritonPythonModel
"""


def write_repository(
    folder: Path, models: Iterable[str], *, parameters: Mapping[str, Mapping[str, str]] | None = None
) -> None:
    """Write the models into `folder/models`, and what they import into `folder/python`.

    Args:
        models: names of `MODELS`.
        parameters: more of them for a model's configuration, by the model's name.
    """
    python = folder.absolute() / "python"
    for name in models:
        interface = MODELS[name]
        version = folder / MODELS_FOLDER / name / "1"
        version.mkdir(parents=True, exist_ok=True)
        more = (parameters or {}).get(name, {})
        (version.parent / "config.pbtxt").write_text(config_text(interface, more), "utf-8")
        (version / "model.py").write_text(_MODEL.format(folder=str(python), module=interface.module), "utf-8")
    _link_package(python)


def _link_package(folder: Path) -> None:
    """Only this project's `backends` may be seen from there: beside it might lie another numpy."""
    folder.mkdir(parents=True, exist_ok=True)
    link, package = folder / "backends", Path(__file__).resolve().parents[1]
    if not link.is_symlink() or Path(os.readlink(link)) != package:
        link.unlink(missing_ok=True)
        link.symlink_to(package, target_is_directory=True)


def config_text(interface: Interface, parameters: Mapping[str, str]) -> str:
    """The `config.pbtxt` of a model."""
    lines = [
        f'name: "{interface.name}"',
        'backend: "python"',
        f"max_batch_size: {interface.max_batch_size}",
        f"model_transaction_policy {{ decoupled: {str(interface.decoupled).lower()} }}",
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *(_tensor_text("input", tensor) for tensor in interface.inputs),
        *(_tensor_text("output", tensor) for tensor in interface.outputs),
        *(
            f'parameters {{ key: "{key}" value: {{ string_value: "{_escaped(value)}" }} }}'
            for key, value in {**interface.parameters, **parameters}.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensor_text(kind: str, tensor: Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    optional = " optional: true" if kind == "input" and tensor.optional else ""
    return f'{kind} {{ name: "{tensor.name}" data_type: {tensor.datatype} dims: [ {dims} ]{optional} }}'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
