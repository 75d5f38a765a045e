"""Importing a catalogue into a real Postgres: aliases for ever, diffs, dry runs, and files that are refused."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson
import pytest

from gateway.control.catalog import folder, store
from gateway.control.catalog.importing import Change, import_catalog
from gateway.control.catalog.reading import CatalogInvalid, read_catalog
from gateway.control.database import session
from gateway.stack.prepare import migrate_all
from tests.seed import demo
from tests.services import FreshDatabase

TASK = "contract-key-fields"


@pytest.fixture
async def conn(fresh_database: FreshDatabase) -> Any:
    """A connection to a migrated database."""
    url = fresh_database()
    await migrate_all(url)
    async with session(url) as connection:
        yield connection


async def bring(conn: Any, files: dict[str, bytes], *, dry_run: bool = False) -> list[Change]:
    return await import_catalog(conn, read_catalog(files), dry_run=dry_run)


async def names(conn: Any) -> dict[str, str]:
    rows = await conn.fetch("SELECT model_id, alias FROM control.task_alias WHERE task_id = $1", TASK)
    return {row["model_id"]: row["alias"] for row in rows}


async def test_the_same_again_changes_nothing(conn: Any) -> None:
    """And is not written down as an import."""
    assert await bring(conn, demo.files())
    assert await bring(conn, demo.files()) == []
    assert await store.version(conn) == 1


async def test_s054_an_alias_is_for_ever(conn: Any) -> None:
    """A better model joins, the others change places, one leaves and comes back: every name stays what it was."""
    await bring(conn, demo.files())
    first = await names(conn)
    assert first == {
        "orga/Sprout-7B-Instruct": "sprout-1",
        "orgb/Thicket-14B": "thicket-1",
        "orgc/Meadow-3B": "meadow-1",
        "orga/Sprout-1B": "sprout-2",
    }
    turned = demo.board(TASK)
    turned["open"] = [
        demo.measured("orgb/Thicket-VL-14B", 0.97, 900),
        demo.measured("orga/Sprout-1B", 0.95, 100),
        demo.measured("orga/Sprout-7B-Instruct", 0.4, 100),
    ]
    changes = await bring(conn, demo.files(boards={TASK: turned}))
    assert await names(conn) == {**first, "orgb/Thicket-VL-14B": "thicket-vl-1"}
    assert {(one.what, one.id, one.how) for one in changes if one.what == "alias"} == {
        ("alias", f"{TASK} thicket-vl-1", "added"),
        ("alias", f"{TASK} sprout-1", "changed"),
        ("alias", f"{TASK} sprout-2", "changed"),
        ("alias", f"{TASK} thicket-1", "retired"),
        ("alias", f"{TASK} meadow-1", "retired"),
    }
    board = await store.board(conn, TASK)
    assert [row.alias for row in board.rows] == ["thicket-vl-1", "sprout-2", "sprout-1"]
    assert board.recommended == "thicket-vl-1"
    await bring(conn, demo.files())
    assert await names(conn) == {**first, "orgb/Thicket-VL-14B": "thicket-vl-1"}


async def test_no_hand_takes_an_alias_back(conn: Any) -> None:
    """Not even SQL."""
    await bring(conn, demo.files())
    for statement in (
        "DELETE FROM control.task_alias",
        "UPDATE control.task_alias SET alias = 'other-9'",
        "UPDATE control.task_alias SET model_id = 'orgb/Thicket-VL-14B' WHERE alias = 'sprout-1'",
    ):
        with pytest.raises(asyncpg.IntegrityConstraintViolationError):
            await conn.execute(statement)


async def test_a_dry_run_says_all_and_does_nothing(conn: Any) -> None:
    """What it lists is what the import then does."""
    said = await bring(conn, demo.files(), dry_run=True)
    assert await store.tasks(conn) == []
    assert await bring(conn, demo.files()) == said


async def test_a_task_that_is_left_out_is_retired_and_can_come_back(conn: Any) -> None:
    """Its aliases stay."""
    await bring(conn, demo.files())
    rest = [one for one in demo.TASKS if one["id"] != TASK]
    changes = await bring(conn, demo.files(tasks=rest))
    assert ("task", TASK, "retired") in {(one.what, one.id, one.how) for one in changes}
    assert await store.task(conn, TASK) is None
    before = await names(conn)
    changes = await bring(conn, demo.files())
    assert ("task", TASK, "restored") in {(one.what, one.id, one.how) for one in changes}
    assert await names(conn) == before


async def test_the_operator_may_pick(conn: Any) -> None:
    """``recommended`` names a model; without it the best is recommended."""
    board = demo.board(TASK)
    board["recommended"] = "orgc/Meadow-3B"
    await bring(conn, demo.files(boards={TASK: board}))
    assert (await store.board(conn, TASK)).recommended == "meadow-1"
    await bring(conn, demo.files())
    assert (await store.board(conn, TASK)).recommended == "sprout-1"


def broken(name: str, change: Any) -> dict[str, bytes]:
    files = demo.files()
    content = orjson.loads(files[name])
    change(content)
    return {**files, name: orjson.dumps(content)}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "catalog.json is missing"),
        ({**demo.files(), "models.json": b"[{"}, "models.json is no JSON"),
        ({**demo.files(), "models.json": b"{}"}, "models.json must be a list"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"][0].pop("provenance")), "open[0]: provenance must say"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"][0].update(quality=1.5)), "quality must be a number from 0"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"][0].update(quality=True)), "quality must be a number from 0"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"][0].update(quality_low=0.95)), "must hold the quality"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"].append(b["open"][0])), "more than once"),
        (broken(f"boards/{TASK}.json", lambda b: b["open"][0].update(model="nobody/Knows")), "not among the models"),
        (broken(f"boards/{TASK}.json", lambda b: b.update(recommended="nobody")), "recommended must be null or one"),
        (broken(f"tasks/{TASK}.json", lambda t: t.update(has_blob_input="false")), "has_blob_input must be true or"),
        (broken(f"tasks/{TASK}.json", lambda t: t.update(id="other")), "id must be the file's name"),
        (
            broken(f"tasks/{TASK}.json", lambda t: t.update(prompt_scaffold="a", recommended_system_prompt="b")),
            "never both",
        ),
        (broken("models.json", lambda m: m[0].update(family="Not A Family")), "family must be lower-case"),
        (broken("frontier.json", lambda f: f[0].update(context_tokens=0)), "context_tokens must be a whole number"),
    ],
)
def test_wrong_files_are_refused_with_their_place(files: dict[str, bytes], said: str) -> None:
    """Each problem names its file."""
    with pytest.raises(CatalogInvalid) as caught:
        read_catalog(files)
    assert any(said in problem for problem in caught.value.problems), caught.value.problems


def test_every_problem_is_told_at_once() -> None:
    """Not one after the other."""
    files = broken("models.json", lambda m: (m[0].pop("vision"), m[1].pop("context_tokens")))
    with pytest.raises(CatalogInvalid) as caught:
        read_catalog(files)
    assert len(caught.value.problems) == 2


def test_the_shipped_tasks_are_sound() -> None:
    """They can be read, and name what the contract names."""
    from gateway.control.catalog.reading import read_tasks

    tasks = {task.id: task for task in read_tasks(folder.read_files(folder.shipped()))}
    assert {TASK, "support-ticket-triage", "comment-moderation", "invoice-extraction", "text-to-sql"} <= tasks.keys()
    assert {task.has_blob_input for task in tasks.values()} == {True, False}
