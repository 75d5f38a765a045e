"""Seed map C, G, H: evals of a customer's own rows, with both SDKs against a real gateway, engines and vendors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.control.catalog.importing import import_catalog
from gateway.control.catalog.reading import read_catalog
from gateway.control.database import session
from gateway.control.deploys import store
from gateway.control.evals import sets
from gateway.control.evals.blobs import LocalBlobs
from gateway.core.state import Scope
from gateway.stack.processes import lock_holder
from tests.seed import demo
from tests.seed.personas import COMPLETION_TOKENS, PROMPT_TOKENS, VENDOR_KEY, Personas
from tests.seed.run import Outcome, block
from tests.services import PostgresService, run_apart
from tests.system.harness import Gateway, Tenant, running_gateway

TASK, DOCUMENTS = "contract-key-fields", "invoice-extraction"
BEST, SECOND, THIRD, FOURTH = demo.REAL[TASK]
OPENAI, ANTHROPIC, GOOGLE = "gpt-test-5", "claude-test-4", "gemini-test-3"
FLAT = {model: 300 + place * 37 for place, model in enumerate(demo.REAL[TASK])}
RATES = (3_000_000_000, 15_000_000_000)
VENDOR_ITEM = -(-(RATES[0] * PROMPT_TOKENS + RATES[1] * COMPLETION_TOKENS) // 10**9)


@pytest.fixture(scope="module")
def personas() -> Iterator[Personas]:
    """The models that are asked."""
    server = Personas(
        {BEST: "even", SECOND: "always", THIRD: "never", FOURTH: "broken", OPENAI: "always", ANTHROPIC: "even",
         GOOGLE: "never", "orgb/Thicket-VL-14B": "always"}
    )  # fmt: skip
    yield server
    server.close()


@pytest.fixture(scope="module")
def evals(postgres_service: PostgresService, personas: Personas) -> Iterator[Gateway]:
    """A gateway whose open models and vendors are the personas."""
    with running_gateway(
        postgres_service,
        simulators=1,
        openai_api_key=VENDOR_KEY,
        openai_base_url=personas.url,
        anthropic_api_key=VENDOR_KEY,
        anthropic_base_url=personas.url,
        gemini_api_key=VENDOR_KEY,
        gemini_base_url=personas.url,
    ) as gateway:

        async def prepare() -> None:
            files = demo.files()
            files["frontier.json"] = json.dumps(
                [
                    {"id": name, "vendor": vendor, "vision": vision, "context_tokens": 200_000,
                     "prompt_nanos_per_million": RATES[0], "completion_nanos_per_million": RATES[1]}
                    for name, vendor, vision in (
                        (OPENAI, "openai", True), (ANTHROPIC, "anthropic", True), (GOOGLE, "google", False)
                    )
                ]
            ).encode()  # fmt: skip
            for task_id in demo.REAL:
                board = demo.board(task_id)
                board["frontier"] = [demo.measured(OPENAI, 0.93, 4100)]
                files[f"boards/{task_id}.json"] = json.dumps(board).encode()
            async with session(gateway.settings.database_url) as conn:
                await import_catalog(conn, read_catalog(files))
                for model in (BEST, SECOND, THIRD, FOURTH, "orgb/Thicket-VL-14B"):
                    spec = {"backends": [f"{personas.url}/engine"], "model": model}
                    await store.register(conn, model, "static", spec, max_output_tokens=1024)

        run_apart(prepare())
        wait_for_control(gateway)
        yield gateway


def wait_for_control(gateway: Gateway) -> None:
    """Until the control process has said where it is."""
    until_s = time.monotonic() + 30
    while not gateway.settings.control_file.exists():
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.fixture
def owner(evals: Gateway) -> Tenant:
    """An organization of its own, with credit."""
    return run_apart(evals.tenant())


@pytest.fixture
def run(evals: Gateway, owner: Tenant, version: str) -> Any:
    """Run a block of the page with one SDK."""

    def runner(code: str, **given: Any) -> Outcome:
        return block(version, evals.base_url, owner.key, code, **given)

    return runner


def good(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.out


def rows(count: int) -> list[dict[str, Any]]:
    """Rows that carry their answers for the personas."""
    return [
        {"input": f"row {number} [[{json.dumps({'party': f'P{number}', 'term': str(number)})}]]",
         "expected": {"party": f"P{number}", "term": str(number)}}
        for number in range(count)
    ]  # fmt: skip


async def create_run(gateway: Gateway, key: str, items: list[dict[str, Any]], models: list[str], **headers: str) -> Any:
    """A set and a run over plain HTTP; the run's answer."""
    made = await gateway.post("/v1/eval-sets", key, **upload(multipart(items)))
    assert made.status == 201, made.json
    body = {"eval_set_id": made.json["eval_set"]["id"], "candidate_model_ids": models}
    return await gateway.post("/v1/eval-runs", key, body, headers=headers)


def multipart(items: list[Any], *, task: str = TASK, name: str | None = "mine", raw: bytes | None = None) -> Any:
    """A body as SDKs send it, and its type."""
    boundary = "b0undary"
    jsonl = "\n".join(json.dumps(item) for item in items).encode() if raw is None else raw
    fields = {"task_id": task} | ({"name": name} if name is not None else {})
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="items"; filename="items.{task}.jsonl"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    ).encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    return b"".join([*parts, head, jsonl, end]), f"multipart/form-data; boundary={boundary}"


async def ended(gateway: Gateway, key: str, run_id: str, *, within_s: float = 60) -> Any:
    """The run once it has ended."""
    async with asyncio.timeout(within_s):
        while True:
            answer = await gateway.get(f"/v1/eval-runs/{run_id}", key)
            assert answer.status == 200, answer.json
            if answer.json["run"]["status"] in ("completed", "failed"):
                return answer.json
            assert answer.json["run"]["status"] in ("queued", "running", "evaluating")
            assert answer.json["results"] == []
            assert answer.json["run"]["total_cost_micro_usd"] == 0
            await asyncio.sleep(0.1)


def upload(body: Any) -> dict[str, Any]:
    """Arguments of a POST with a multipart body."""
    data, content_type = body
    return {"body": data, "headers": {"Content-Type": content_type}}


# ------------------------------------------------------------------------------------------------------------- the page


def test_s112_s115_to_s125_the_funnel(run: Any) -> None:
    """Match, board, eval on own rows, deploy of the winner, chat: one path, as the page prints it."""
    out = good(
        run(
            """
            match = pa.tasks.match("extract the parties, the term and the governing law from our contracts")
            task = match.chosen.task_id
            lb = pa.tasks.leaderboard(task)
            top = [m.name for m in lb.models[:3]]
            done = pa.evals.runs.create(task=task, items=items, models=top, frontier="benchmarked", wait=True,
                                        poll_interval=0.1)
            for r in sorted(done.results, key=lambda r: -(r.quality_mean or 0)):
                print(r.model_id, r.kind, r.quality_mean, r.mean_cost_micro_usd, r.n_succeeded)
            winner = done.results[0].model_id
            ep = pa.endpoints.deploy(task=task, model=winner, wait=True)
            chat = pa.chat.completions.create(model=ep.id, messages=[{"role": "user", "content": "row 2 [[yes]]"}])
            roster = [m.id for m in pa.evals.frontier_models(task) if m.benchmarked]
            out.update(task=task, top=top, kinds=[m.kind for m in lb.models], status=done.status,
                       cost=str(done.cost), micros=done.cost_micro_usd, roster=roster, winner=winner,
                       model=ep.model, live=ep.is_live, said=chat.choices[0].message.content,
                       results=[[r.model_id, r.kind, r.quality_mean, r.mean_cost_micro_usd, r.n_succeeded,
                                 r.error_count] for r in done.results])
            """,
            items=rows(6),
        )
    )
    assert out["task"] == TASK
    assert set(out["kinds"]) == {"open"}
    assert out["status"] == "completed"
    names = [row[0] for row in out["results"]]
    assert set(names) == {*out["top"], *out["roster"]}
    assert out["roster"] == [OPENAI]
    by_kind = [row[1] for row in out["results"]]
    assert by_kind == ["open", "open", "open", "frontier"]
    qualities = [row[2] for row in out["results"]]
    assert qualities == [1.0, 0.5, 0.0, 1.0]  # on these rows the second of the board is the best
    assert out["winner"] == out["model"] == names[0] == out["top"][1]
    assert out["live"]
    assert out["said"]
    total = 6 * (FLAT[BEST] + FLAT[SECOND] + FLAT[THIRD] + VENDOR_ITEM)
    assert out["micros"] == total
    assert out["cost"] == f"{total // 10_000 / 100:.2f}"
    assert [row[3] for row in out["results"]] == [FLAT[SECOND], FLAT[BEST], FLAT[THIRD], VENDOR_ITEM]


def test_s126_to_s131_ways_to_name_candidates(run: Any) -> None:
    """A set or task and rows; no baselines, explicit ones, all of the roster, and a keyword with a set's id."""
    out = good(
        run(
            """
            made = pa.evals.sets.create(task=task, items=items, name="my rows")
            again = pa.evals.sets.retrieve(made.id)
            listed = [s.id for s in pa.evals.sets.list()]
            def names(**more):
                done = pa.evals.runs.create(models=[top], wait=True, poll_interval=0.1, **more)
                return [[r.model_id, r.kind] for r in done.results]
            top = pa.tasks.leaderboard(task).models[1].name
            kept = [again.id, again.task_id, again.name, again.item_count]
            out.update(top=top, set=kept, listed=listed, made=made.id)
            out["none"] = names(task=task, items=items)
            out["explicit"] = names(eval_set=made.id, frontier=[one])
            out["all"] = names(eval_set=made.id, frontier="all")
            out["benchmarked"] = names(eval_set=made.id, frontier="benchmarked")
            try:
                pa.evals.runs.create(models=[top])
            except ValueError as error:
                out["neither"] = str(error)
            """,
            task=TASK,
            items=rows(2),
            one=ANTHROPIC,
        )
    )
    top = [out["top"], "open"]
    assert out["set"] == [out["made"], TASK, "my rows", 2]
    assert out["made"] in out["listed"]
    assert out["none"] == [top]
    assert out["explicit"] == [top, [ANTHROPIC, "frontier"]]
    assert out["all"] == [top, [OPENAI, "frontier"], [ANTHROPIC, "frontier"], [GOOGLE, "frontier"]]
    assert out["benchmarked"] == [top, [OPENAI, "frontier"]]
    assert out["neither"]


def test_s102_s103_no_credit_no_run(evals: Gateway, version: str) -> None:
    """402 before anything is queued; the catalogue is free."""
    poor = run_apart(evals.tenant(credit_nanos=0))
    outcome = block(
        version,
        evals.base_url,
        poor.key,
        """
        pa.tasks.match("contracts"), pa.tasks.leaderboard(task), pa.evals.frontier_models(task)
        pa.evals.runs.create(task=task, items=items, models=[pa.tasks.leaderboard(task).models[0].name])
        """,
        task=TASK,
        items=rows(2),
    )
    assert outcome.error is not None
    assert (outcome.error["class"], outcome.error["status_code"]) == ("InsufficientCreditsError", 402)
    assert run_apart(evals.get("/v1/eval-runs", poor.key)).json == {"runs": []}


def test_s134_documents_inline_and_by_upload(run: Any, personas: Personas, tmp_path: Path) -> None:
    """One file below 5 MiB and one above, then a run whose model gets both."""
    small, large = tmp_path / "a.png", tmp_path / "b.pdf"
    small.write_bytes(b"\\x89PNG" + b"s" * 100)
    large.write_bytes(b"%PDF-1.4 " + b"l" * (5 * 1024 * 1024))
    out = good(
        run(
            """
            made = pa.evals.sets.create(task=task, items=[{"document": None, "expected": {"total": "1"}},
                                                          {"expected": {"total": "2"}}])
            top = pa.tasks.leaderboard(task).models[0].name
            try:
                pa.evals.runs.create(eval_set=made.id, models=[top])
            except pareta.BadRequestError as error:
                out["missing"] = str(error)
            out["small"] = pa.evals.sets.upload_document(made.id, small, idx=0, field_name="document")
            out["large"] = pa.evals.sets.upload_document(made.id, large, idx=1, field_name="document")
            done = pa.evals.runs.create(eval_set=made.id, models=[top], frontier=[vendor], wait=True, poll_interval=0.1)
            out["results"] = [[r.model_id, r.n_succeeded, r.error_count] for r in done.results]
            out["top"] = top
            """,
            task=DOCUMENTS,
            small=str(small),
            large=str(large),
            vendor=ANTHROPIC,
        )
    )
    assert "0, 1" in out["missing"]
    assert out["small"]["kind"] == out["large"]["kind"] == "blob"
    assert (out["small"]["mime"], out["large"]["mime"]) == ("image/png", "application/pdf")
    assert out["results"] == [[out["top"], 2, 0], [ANTHROPIC, 2, 0]]
    kinds = {part["type"] for part in personas.seen[ANTHROPIC]["messages"][0]["content"]}
    assert kinds <= {"image", "document"}


# -------------------------------------------------------------------------------------------------------- money, faults


async def test_s106_to_s110_a_run_is_charged_once_and_exactly(evals: Gateway, owner: Tenant) -> None:
    """What the run says is what the books have, to the nano; failed rows cost nothing; the per-item rows add up."""
    before = await evals.balance_nanos(owner.org_id)
    board = (await evals.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
    names = [model["name"] for model in board["models"]]
    started = await create_run(evals, owner.key, rows(5), [*names, names[0], ANTHROPIC, OPENAI])
    assert started.status == 202, started.json
    said = await ended(evals, owner.key, started.json["run_id"])
    total = 5 * (FLAT[BEST] + FLAT[SECOND] + FLAT[THIRD] + 2 * VENDOR_ITEM)
    assert said["run"]["total_cost_micro_usd"] == total
    assert said["run"]["candidate_model_ids"] == [*names, ANTHROPIC, OPENAI]
    by_name = {row["model_id"]: row for row in said["results"]}
    broken = by_name[names[3]]
    assert (broken["quality_mean"], broken["n_succeeded"], broken["error_count"]) == (None, 0, 5)
    assert all(item["error"] and item["score"] is None for item in broken["per_item"])
    best = by_name[names[0]]
    assert [item["score"] for item in best["per_item"]] == [1.0, 0.0, 1.0, 0.0, 1.0]
    assert best["quality_ci_low"] <= best["quality_mean"] == 0.6 <= best["quality_ci_high"]
    assert json.loads(best["per_item"][0]["prediction"]) == {"party": "P0", "term": "0"}
    await evals.wait_quiet()
    assert before - await evals.balance_nanos(owner.org_id) == total * 1000
    assert (await evals.account(owner.org_id)).held_nanos == 0


async def test_kill_9_of_the_control_process_loses_and_doubles_nothing(evals: Gateway, personas: Personas) -> None:
    """Killed again and again while a run works: it ends well, and is charged what it says, once."""
    owner = await evals.tenant()
    before = await evals.balance_nanos(owner.org_id)
    board = (await evals.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
    names = [model["name"] for model in board["models"]][:2]
    personas.delay_s = 0.2
    try:
        started = await create_run(evals, owner.key, rows(60), [*names, OPENAI])
        kills = 0
        while kills < 4:
            await asyncio.sleep(0.9)
            pid = lock_holder(evals.settings.data_path / "run" / "control.lock")
            if pid:
                os.kill(pid, signal.SIGKILL)
                kills += 1
                await until_back(evals, other_than=pid)
        async with asyncio.timeout(60):
            while (answer := await evals.get(f"/v1/eval-runs/{started.json['run_id']}", owner.key)).status != 200:
                await asyncio.sleep(0.1)
        assert answer.json["run"]["id"] == started.json["run_id"]
        said = await ended(evals, owner.key, started.json["run_id"], within_s=90)
    finally:
        personas.delay_s = 0.0
    total = 60 * (FLAT[BEST] + FLAT[SECOND] + VENDOR_ITEM)
    assert said["run"]["status"] == "completed"
    assert said["run"]["total_cost_micro_usd"] == total
    assert all((row["n_succeeded"], row["error_count"]) == (60, 0) for row in said["results"])
    await evals.wait_quiet()
    assert before - await evals.balance_nanos(owner.org_id) == total * 1000


async def until_back(gateway: Gateway, *, other_than: int) -> None:
    """Until another control process runs."""
    async with asyncio.timeout(30):
        while lock_holder(gateway.settings.data_path / "run" / "control.lock") in (None, 0, other_than):
            await asyncio.sleep(0.05)


async def test_the_same_run_twice_is_one_run(evals: Gateway, owner: Tenant, personas: Personas) -> None:
    """Sent again while it works, or with its key afterwards, it is the same; its key with another body is refused."""
    personas.delay_s = 0.3
    try:
        board = (await evals.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
        made = await evals.post("/v1/eval-sets", owner.key, **upload(multipart(rows(3))))
        body = {"eval_set_id": made.json["eval_set"]["id"], "candidate_model_ids": [board["models"][0]["name"]]}
        answers = await asyncio.gather(*(evals.post("/v1/eval-runs", owner.key, body) for _ in range(5)))
        assert {answer.status for answer in answers} == {202}
        assert len({answer.json["run_id"] for answer in answers}) == 1
    finally:
        personas.delay_s = 0.0
    await ended(evals, owner.key, answers[0].json["run_id"])
    named = {"headers": {"Idempotency-Key": "run-once"}}
    first = await evals.post("/v1/eval-runs", owner.key, body, **named)
    assert first.json["run_id"] != answers[0].json["run_id"]
    await ended(evals, owner.key, first.json["run_id"])
    assert (await evals.post("/v1/eval-runs", owner.key, body, **named)).json["run_id"] == first.json["run_id"]
    other = {**body, "candidate_model_ids": [board["models"][1]["name"]]}
    assert (await evals.post("/v1/eval-runs", owner.key, other, **named)).status == 422


async def test_a_vendor_that_is_busy_is_asked_again(evals: Gateway, owner: Tenant, personas: Personas) -> None:
    """529 and 503 are waited out; what the vendor says about itself stays with us."""
    personas.refusals[:] = [529, 503]
    started = await create_run(evals, owner.key, rows(1), [OPENAI])
    said = await ended(evals, owner.key, started.json["run_id"])
    assert said["results"][0]["n_succeeded"] == 1
    personas.refusals[:] = [401]
    started = await create_run(evals, owner.key, rows(1), [GOOGLE])
    said = await ended(evals, owner.key, started.json["run_id"])
    assert said["run"]["status"] == "failed"
    assert said["run"]["total_cost_micro_usd"] == 0
    assert "secret words" not in json.dumps(said)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (b"", "row"),
        (b"{", "row 0"),
        (b"[]", "row 0"),
        (b"{}", "row 0"),
        (b'{"input": "a"}', "row 0"),
        (b'{"input": "a", "expected": 1}\n{"input": "b"}', "row 1"),
        (b'{"input": "a", "expected": NaN}', "row 0"),
        (b'{"input": "' + b"x" * 70_000 + b'", "expected": 1}', "row 0"),
        (b'{"input": "a", "expected": 1}\n' * 1001, "1000"),
        (b'{"input": "\xff", "expected": 1}', "row 0"),
        (b'{"input": "a\\u0000", "expected": 1}', "row 0"),
    ],
)
async def test_s149_rows_that_are_none_are_named(evals: Gateway, owner: Tenant, raw: bytes, word: str) -> None:
    """422 with a sentence that names the row."""
    answer = await evals.post("/v1/eval-sets", owner.key, **upload(multipart([], raw=raw)))
    assert answer.status == 422, answer.json
    assert word in answer.json["detail"]
    assert answer.json["error"]["param"] == "items"


async def test_s140_s142_what_is_not_there(evals: Gateway, owner: Tenant) -> None:
    """Unknown task, set, run and candidate; an empty list."""
    assert (await evals.post("/v1/eval-sets", owner.key, **upload(multipart(rows(1), task="nothing")))).status == 404
    assert (await evals.get("/v1/eval-sets/es_nothing", owner.key)).status == 404
    assert (await evals.get("/v1/eval-runs/run_nothing", owner.key)).status == 404
    made = await evals.post("/v1/eval-sets", owner.key, **upload(multipart(rows(1))))
    set_id = made.json["eval_set"]["id"]
    for names, status in (([], 422), (["nothing-1"], 400), ("x", 422), ([1], 422), ([BEST], 400)):
        answer = await evals.post("/v1/eval-runs", owner.key, {"eval_set_id": set_id, "candidate_model_ids": names})
        assert answer.status == status, (names, answer.json)
    assert (await evals.send("DELETE", f"/v1/eval-sets/{set_id}", owner.key)).status == 204
    assert (await evals.get(f"/v1/eval-sets/{set_id}", owner.key)).status == 404


async def test_another_organizations_evals_are_not_there(evals: Gateway, owner: Tenant) -> None:
    """404 for everything of another organization, read-only keys may only look."""
    board = (await evals.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
    started = await create_run(evals, owner.key, rows(1), [board["models"][0]["name"]])
    said = await ended(evals, owner.key, started.json["run_id"])
    set_id = said["run"]["eval_set_id"]
    stranger = await evals.tenant()
    for path in (f"/v1/eval-sets/{set_id}", f"/v1/eval-runs/{started.json['run_id']}"):
        assert (await evals.get(path, stranger.key)).status == 404
    body = {"eval_set_id": set_id, "candidate_model_ids": [board["models"][0]["name"]]}
    assert (await evals.post("/v1/eval-runs", stranger.key, body)).status == 404
    assert (await evals.get("/v1/eval-sets", stranger.key)).json == {"eval_sets": []}
    _, reading = await evals.key(owner.org_id, scope=Scope.READ)
    assert (await evals.get("/v1/eval-runs", reading)).status == 200
    assert (await evals.post("/v1/eval-runs", reading, body)).status == 403


async def test_an_upload_url_is_good_once_and_for_its_document(evals: Gateway, owner: Tenant) -> None:
    """Another size, another secret, a second time, an upload that never came: refused."""
    from tests.system.wire import ask

    made = await evals.post(
        "/v1/eval-sets", owner.key, **upload(multipart([{"document": None, "expected": {"a": 1}}], task=DOCUMENTS))
    )
    base = f"/v1/eval-sets/{made.json['eval_set']['id']}"
    asked = {"idx": 0, "field_name": "document", "mime": "image/png", "file_size": 5}
    for field, value in (("idx", 1), ("idx", "0"), ("field_name", "x"), ("mime", "text/html"), ("file_size", 0),
                         ("file_size", 101 * 1024 * 1024)):  # fmt: skip
        assert (await evals.post(f"{base}/blob-upload-url", owner.key, asked | {field: value})).status == 422
    given = (await evals.post(f"{base}/blob-upload-url", owner.key, asked)).json
    done = {"idx": 0, "field_name": "document", "mime": "image/png", "storage_uri": given["storage_uri"]}
    assert (await evals.post(f"{base}/blob-upload-complete", owner.key, done)).status == 400
    root, path = given["upload_url"].rsplit("/uploads/", 1)
    port = int(root.rpartition(":")[2])
    url = f"/uploads/{path}"
    assert (await ask(port, "PUT", url[:-1] + ("a" if url[-1] != "a" else "b"), body=b"12345")).status == 404
    assert (await ask(port, "PUT", url, body=b"123456")).status == 422
    assert (await ask(port, "PUT", url, body=b"12345")).status == 201
    assert (await ask(port, "PUT", url, body=b"12345")).status == 404
    assert (await evals.post(f"{base}/blob-upload-complete", owner.key, done | {"idx": 1})).status == 422
    for _ in range(2):
        answer = await evals.post(f"{base}/blob-upload-complete", owner.key, done)
        assert (answer.status, answer.json["kind"]) == (200, "blob")
    text_set = await evals.post("/v1/eval-sets", owner.key, **upload(multipart(rows(1))))
    other = f"/v1/eval-sets/{text_set.json['eval_set']['id']}/blob-upload-url"
    assert (await evals.post(other, owner.key, asked)).status == 400


async def test_documents_of_a_deleted_set_go_after_a_day(evals: Gateway, owner: Tenant) -> None:
    """Their bytes are taken out, those of others stay."""
    kept = []
    for _ in range(2):
        made = await evals.post(
            "/v1/eval-sets", owner.key, **upload(multipart([{"document": None, "expected": {"a": 1}}], task=DOCUMENTS))
        )
        set_id = made.json["eval_set"]["id"]
        body = (
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\nPNG"
            b'\r\n--b\r\nContent-Disposition: form-data; name="idx"\r\n\r\n0'
            b'\r\n--b\r\nContent-Disposition: form-data; name="field_name"\r\n\r\ndocument\r\n--b--\r\n'
        )
        answer = await evals.post(
            f"/v1/eval-sets/{set_id}/attach-blob", owner.key, **upload((body, "multipart/form-data; boundary=b"))
        )
        assert answer.status == 200, answer.json
        kept.append((set_id, answer.json["uri"].removeprefix("blob:")))
    (gone, gone_blob), (stays, stays_blob) = kept
    files = evals.settings.data_path / "documents"
    assert (files / gone_blob[:2] / gone_blob).read_bytes() == b"PNG"
    assert (await evals.send("DELETE", f"/v1/eval-sets/{gone}", owner.key)).status == 204
    async with session(evals.settings.database_url) as conn:
        blobs = LocalBlobs(files)
        assert gone_blob not in await sets.take_orphans(conn, most=100)
        await conn.execute("UPDATE control.eval_set SET deleted_at = now() - interval '25 hours' WHERE id = $1", gone)
        taken = await sets.take_orphans(conn, most=100)
        # The control process may have been quicker.
        for blob_id in taken:
            await blobs.delete(blob_id)
    async with asyncio.timeout(10):
        while (files / gone_blob[:2] / gone_blob).exists():
            await asyncio.sleep(0.05)
    assert (files / stays_blob[:2] / stays_blob).exists()
    assert stays
