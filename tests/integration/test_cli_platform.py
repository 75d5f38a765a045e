"""The operator's commands of the platform: catalogue, what serves it, eval runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main as cli_main
from tests.integration.test_cli import Run, ask, bare, no_environment, org, run, servers
from tests.seed import demo

__all__ = ["ask", "bare", "no_environment", "org", "run", "servers"]

MODEL, TASK = "orgb/Thicket-14B", "contract-key-fields"


@pytest.fixture
def catalogue(tmp_path: Path, run: Run) -> Path:
    """A folder with the tests' catalogue, which is in the database."""
    folder = tmp_path / "catalogue"
    for name, content in demo.files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    assert run("catalog", "import", str(folder)).status == 0
    return folder


def test_a_catalogue_is_tried_then_imported(catalogue: Path, run: Run, ask: Callable[..., Any]) -> None:
    """A dry run says what would change and changes nothing; the import says the same, and after it nothing changes."""
    assert ask("catalog", "import", str(catalogue)) == []
    file = catalogue / "boards" / f"{TASK}.json"
    board = json.loads(file.read_bytes())
    board["open"] = board["open"][:-1]
    file.write_text(json.dumps(board))
    would = ask("catalog", "import", str(catalogue), "--dry-run")
    assert would
    assert ask("catalog", "import", str(catalogue), "--dry-run") == would
    assert ask("catalog", "import", str(catalogue)) == would
    assert ask("catalog", "import", str(catalogue)) == []
    file.write_text("{")
    refused = run("catalog", "import", str(catalogue))
    assert refused.status == cli_main.REFUSED
    assert file.name in refused.err
    assert {task["id"] for task in ask("catalog", "tasks")} >= set(demo.REAL)
    shown = ask("catalog", "board", TASK)
    assert shown["recommended"] in {model["name"] for model in shown["models"]}
    run("catalog", "board", "nothing").fails(cli_main.REFUSED, "no task 'nothing'")


@pytest.mark.usefixtures("catalogue")
def test_what_serves_a_model(run: Run, ask: Callable[..., Any], tmp_path: Path) -> None:
    """Four ways, of which a model has one; what engines want to be shown and told goes along."""

    def served(*arguments: str) -> Any:
        rows = ask("serving", "set", MODEL, *arguments)
        return next(row for row in rows if row["model"] == MODEL)

    assert served("--backend", "http://a:1/v1", "--backend", "http://b:2") == {
        "model": MODEL,
        "driver": "static",
        "served_by": "http://a:1, http://b:2",
    }
    command = "vllm serve {model} --port {port}"
    assert served("--command", command, "--env", "A=b=c") == {
        "model": MODEL,
        "driver": "process",
        "served_by": command.replace("{model}", "'{model}'").replace("{port}", "'{port}'"),
    }
    folder = tmp_path / "folder"
    assert (
        served("--triton", "triton://gpu:8001/m", "--model-folder", str(folder), "--idle-stop", "900")["driver"]
        == "triton"
    )
    template = tmp_path / "template.json"
    template.write_text('{"image": "engine:1"}')
    assert served("--kubernetes", str(template))["served_by"] == "engine:1"
    assert ask("serving", "list") == ask("serving", "list")
    for arguments, sentence in (
        ((), "one of them"),
        (("--backend", "http://a", "--command", command), "one of them"),
        (("--backend", "ftp://a"), "http"),
        (("--command", "vllm serve"), r"\{port\}"),
        (("--command", "vllm 'serve {port}"), "cannot be read"),
        (("--command", command, "--env", "A"), "NAME=VALUE"),
        (("--backend", "http://a", "--health-path", "ping"), "slash"),
        (("--backend", "http://a", "--metrics-url", "a:9"), "http://"),
    ):
        run("serving", "set", MODEL, *arguments).fails(cli_main.REFUSED, sentence)
    template.write_text("[]")
    run("serving", "set", MODEL, "--kubernetes", str(template)).fails(cli_main.REFUSED, "image")
    run("serving", "set", "org/none", "--backend", "http://a").fails(cli_main.REFUSED, "no open model")


@pytest.mark.usefixtures("catalogue")
def test_eval_runs_of_nobody(run: Run, ask: Callable[..., Any], org: str) -> None:
    """Lists that are empty, and a run that is not there."""
    assert ask("evals", "runs", "list", "--org", org) == []
    run("evals", "runs", "list", "--org", "nobody").fails(cli_main.REFUSED, "no organization")
    run("evals", "runs", "watch", "run_none").fails(cli_main.REFUSED, "no eval run|no run")
