"""Seed map B and C: tasks, boards, the roster. The SDKs run unmodified against a real gateway."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from typing import Any

import pytest

from gateway.core.state import Scope
from gateway.stack.processes import lock_holder
from tests.seed import demo
from tests.seed.run import Outcome, block
from tests.services import run_apart
from tests.system.harness import Gateway, Tenant
from tests.system.wire import ask

pytestmark = pytest.mark.usefixtures("catalog")
ALIAS = re.compile(r"[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*-[1-9][0-9]*")
PAGE_TASKS = ("contract-key-fields", "support-ticket-triage", "comment-moderation")


@pytest.fixture
def run(gateway: Gateway, tenant: Tenant, version: str) -> Any:
    """Run a block of the page with one SDK."""

    def runner(code: str, **given: Any) -> Outcome:
        return block(version, gateway.base_url, tenant.key, code, **given)

    return runner


def good(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.out


def test_s011_s013_s014_s018_tasks_are_listed(run: Any) -> None:
    """The page's loop runs over the tasks; ids are stable and each of the page's jobs is there."""
    code = """
    for task in pa.tasks.list():
        print(task.id, task.default_scorer, task.has_blob_input)
    out = [[t.id, t.default_scorer, t.has_blob_input] for t in pa.tasks.list()]
    """
    first, second = run(code), run(code)
    assert good(first) == good(second)
    found = {row[0]: row for row in first.out}
    assert set(PAGE_TASKS) < set(found)
    assert [line.split()[0] for line in first.printed.splitlines() if line] == [row[0] for row in first.out]


def test_s015_s019_one_task_is_the_same_as_in_the_list(run: Any) -> None:
    """Scorer and kind of a task are equal in list and retrieve."""
    out = good(
        run("""
        out = [[t.id, t.default_scorer, t.has_blob_input] for t in pa.tasks.list()]
        out = [out, [[t.id, t.default_scorer, t.has_blob_input] for t in (pa.tasks.retrieve(o[0]) for o in out)]]
        """)
    )
    assert out[0] == out[1]
    assert all(isinstance(scorer, str) and scorer for _, scorer, _ in out[0])


def test_s017_documents_are_a_bool(run: Any) -> None:
    """There are tasks of both kinds, told apart by JSON's own booleans."""
    kinds = good(run("out = [t.has_blob_input for t in pa.tasks.list()]"))
    assert set(map(type, kinds)) == {bool}
    assert set(kinds) == {True, False}


def test_s020_examples_come_when_asked_for(run: Any) -> None:
    """``examples_n=3`` brings three rows, 0 none, and more than there are brings all."""
    out = good(
        run("""
        def examples(n):
            return pa.tasks.retrieve("contract-key-fields", examples_n=n).to_dict().get("examples", [])
        out = [len(examples(n)) for n in (1, 3, 20)]
        out.append("examples" in pa.tasks.retrieve("contract-key-fields").to_dict())
        """)
    )
    assert out == [1, 3, 5, False]


async def test_examples_n_is_checked(gateway: Gateway, tenant: Tenant) -> None:
    """Too many are cut to what is given out; what is no number is refused by name."""
    path = "/v1/tasks/contract-key-fields?examples_n="
    assert len((await gateway.get(path + "999", tenant.key)).json["examples"]) == 5
    for text in ("-1", "x", "1.5", "1e9", "%C2%B2"):
        answer = await gateway.get(path + text, tenant.key)
        assert (answer.status, answer.json["error"]["code"]) == (422, "examples_n_invalid"), text


def test_s031_s036_s040_a_board_has_open_models_and_one_baseline(run: Any) -> None:
    """Open models only in ``models``; the baseline is one object, and not among them."""
    for task_id in PAGE_TASKS:
        out = good(
            run(
                """
                lb = pa.tasks.leaderboard(task)
                out = {"models": [[m.name, m.kind] for m in lb.models], "frontier": lb.frontier and lb.frontier.name}
                if lb.frontier:
                    print(lb.frontier.name, lb.frontier.quality, lb.frontier.cost_per_request_micro_usd)
                """,
                task=task_id,
            )
        )
        assert len(out["models"]) >= 3
        assert {kind for _, kind in out["models"]} == {"open"}
        assert out["frontier"] == demo.FRONTIER
        assert out["frontier"] not in {name for name, _ in out["models"]}


def test_s035_s039_s041_rows_are_ranked_and_typed(run: Any) -> None:
    """Quality does not rise down the board; the page's f-string prints every row."""
    outcome = run("""
        lb = pa.tasks.leaderboard("contract-key-fields")
        for e in lb.models:
            print(f"{e.name} {e.kind} {e.quality:.2f} {e.cost_per_request_micro_usd} {e.context_k}k")
        rows = list(lb.models) + [lb.frontier]
        out = [[e.name, e.kind, e.quality, e.cost_per_request_micro_usd, e.context_k] for e in rows]
        """)
    *models, frontier = good(outcome)
    assert [row[2] for row in models] == sorted((row[2] for row in models), reverse=True)
    for name, kind, quality, cost, context_k in [*models, frontier]:
        assert isinstance(name, str)
        assert kind in ("open", "frontier")
        assert isinstance(quality, float)
        assert type(cost) is int
        assert cost > 0
        assert type(context_k) is int
    assert len([line for line in outcome.printed.splitlines() if line]) == len(models)


def test_s037_s042_s058_the_recommendation_is_on_the_board(run: Any) -> None:
    """It is an alias of the board, and ``recommended()`` says the same."""
    out = good(
        run("""
        lb = pa.tasks.leaderboard("contract-key-fields")
        out = [lb.recommended, pa.tasks.recommended("contract-key-fields"), [m.name for m in lb.models]]
        """)
    )
    assert out[0] == out[1]
    assert out[0] in out[2]
    assert ALIAS.fullmatch(out[0])


def test_s038_metric_and_cost_unit_are_said(run: Any) -> None:
    """Both are texts."""
    out = good(run('lb = pa.tasks.leaderboard("contract-key-fields"); out = [lb.metric, lb.cost_unit]'))
    assert all(isinstance(word, str) and word for word in out)


def test_s044_s045_s046_s047_the_roster(run: Any) -> None:
    """With a task it is annotated, and for documents only models that see are left."""
    out = good(
        run("""
        def rows(found):
            return [[m.id, m.vendor, m.vision, m.benchmarked] for m in found]
        out = [rows(pa.evals.frontier_models()), rows(pa.evals.frontier_models(task="contract-key-fields")),
               rows(pa.evals.frontier_models(task="invoice-extraction"))]
        """)
    )
    everything, text, documents = out
    assert {row[0] for row in everything} == {demo.FRONTIER, demo.BLIND_FRONTIER}
    assert not any(row[3] for row in everything)
    assert [row[0] for row in text if row[3]] == [demo.FRONTIER]
    assert documents
    assert all(row[2] for row in documents)


def test_s050_boards_show_aliases(run: Any) -> None:
    """Names have the form of an alias."""
    names = good(run('out = [m.name for m in pa.tasks.leaderboard("contract-key-fields").models]'))
    assert all(ALIAS.fullmatch(name) for name in names)


def test_s135_reading_is_free(gateway: Gateway, version: str) -> None:
    """An organization without credit reads tasks, boards and roster."""
    tenant = run_apart(gateway.tenant(credit_nanos=0))
    outcome = block(
        version,
        gateway.base_url,
        tenant.key,
        """
        out = [len(list(pa.tasks.list())), pa.tasks.recommended("contract-key-fields")]
        out.append(len(list(pa.evals.frontier_models())))
        """,
    )
    assert good(outcome)


@pytest.mark.parametrize(
    "call",
    [
        'pa.tasks.retrieve("no-such-task")',
        'pa.tasks.leaderboard("no-such-task")',
        'pa.evals.frontier_models(task="no-such-task")',
    ],
)
def test_s140_an_unknown_task_is_404(run: Any, call: str) -> None:
    """It is said in a sentence, with a request id."""
    error = run(f"out = {call}").error
    assert error is not None
    assert (error["class"], error["status_code"]) == ("NotFoundError", 404)
    assert "no-such-task" in error["text"]
    assert error["request_id"].startswith("req_")


async def test_s137_these_routes_want_a_key(gateway: Gateway) -> None:
    """Before anything else about the request is looked at."""
    for path in ("/v1/tasks", "/v1/tasks/no-such-task", "/v1/tasks/x/leaderboard", "/v1/eval/frontier-models"):
        answer = await gateway.get(path, "pareta_sk_" + "a" * 24 + "." + "b" * 40)
        assert (answer.status, answer.json["error"]["code"]) == (401, "invalid_api_key"), path


async def test_paths_and_methods(gateway: Gateway, tenant: Tenant) -> None:
    """A trailing slash is no redirect, an odd id no route, a wrong method says which is right."""
    for path in ("/v1/tasks/", "/v1/tasks/a/b/c", "/v1/tasks/%2e%2e/leaderboard", "/v1/tasks/a%20b", "/v1/eval"):
        answer = await gateway.get(path, tenant.key)
        assert (answer.status, answer.json["error"]["code"]) == (404, "route_not_found"), path
    wrong = await gateway.post("/v1/tasks", tenant.key, {})
    assert (wrong.status, wrong.json["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "GET"


PAGE_QUERY = "extract the parties, dates and governing law from contracts"


def test_s022_s024_s025_a_clear_sentence_is_matched(run: Any) -> None:
    """``chosen`` is there, with an id of the catalogue, a share and one of three words."""
    out = good(
        run(
            """
            m = pa.tasks.match(query)
            out = [m.matched, m.chosen.task_id, m.chosen.score, m.chosen.confidence, m.query]
            """,
            query=PAGE_QUERY,
        )
    )
    assert out[:2] == [True, "contract-key-fields"]
    assert 0 <= out[2] <= 1
    assert out[3] in ("high", "medium")
    assert out[4] == PAGE_QUERY
    assert good(run('m = pa.tasks.match("read the total off scanned invoices"); out = m.candidates[0].task_id')) == (
        "invoice-extraction"
    )


def test_s023_s026_candidates(run: Any) -> None:
    """At most ``top_k``, ranked; gibberish has none and no ``chosen``."""
    out = good(
        run("""
        one = pa.tasks.match("classification of comments or tickets", top_k=1)
        five = pa.tasks.match("classification of comments or tickets", top_k=5)
        none = pa.tasks.match("blorp fnord wibble")
        out = [len(one.candidates), [c.score for c in five.candidates], none.matched, none.chosen, len(none.candidates)]
        """)
    )
    assert out[0] == 1
    assert 1 < len(out[1]) <= 5
    assert out[1] == sorted(out[1], reverse=True)
    assert out[2:] == [False, None, 0]


def test_s027_s028_s030_ambiguous_keyword_and_the_same_again(run: Any) -> None:
    """Two jobs in one sentence are ambiguous; the strategy is named; the answer is always the same."""
    code = """
    m = pa.tasks.match("moderation of comments and classification of support tickets")
    out = [m.ambiguous, m.matcher, [[c.task_id, c.score, c.confidence] for c in m.candidates]]
    """
    first = good(run(code))
    assert first[:2] == [True, "keyword"]
    assert good(run(code)) == first


def test_s029_an_empty_query(run: Any) -> None:
    """The SDK refuses it itself."""
    assert run('pa.tasks.match("")').error["class"] == "ValueError"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"query": "  ", "top_k": 5}, "query_invalid"),
        ({"top_k": 5}, "query_invalid"),
        ({"query": ["a"], "top_k": 5}, "query_invalid"),
        ({"query": "x" * 5000}, "query_invalid"),
        ({"query": "a", "top_k": 0}, "top_k_invalid"),
        ({"query": "a", "top_k": 51}, "top_k_invalid"),
        ({"query": "a", "top_k": True}, "top_k_invalid"),
        ({"query": "a", "top_k": "5"}, "top_k_invalid"),
    ],
)
async def test_a_match_is_checked(gateway: Gateway, tenant: Tenant, body: Any, code: str) -> None:
    """422, naming the field."""
    answer = await gateway.post("/v1/tasks/match", tenant.key, body)
    assert (answer.status, answer.json["error"]["code"]) == (422, code)


async def test_a_key_that_may_only_read_may_ask(gateway: Gateway, tenant: Tenant) -> None:
    """Matching reads."""
    _, key = await gateway.key(tenant.org_id, scope=Scope.READ)
    assert (await gateway.post("/v1/tasks/match", key, {"query": "contracts"})).status == 200
    assert (await gateway.get("/v1/tasks", key)).status == 200


async def test_the_control_process_may_die(gateway: Gateway, tenant: Tenant) -> None:
    """Killed, it is started again by itself; chat goes on, and these routes answer 503 meanwhile, then as before."""
    file = gateway.settings.control_file
    before = file.read_bytes()
    pid = lock_holder(gateway.settings.data_path / "run" / "control.lock")
    assert pid
    os.kill(pid, signal.SIGKILL)
    statuses = set()
    async with asyncio.timeout(30):
        while file.read_bytes() == before or 200 not in statuses:
            assert (await gateway.chat(tenant)).status == 200
            answer = await gateway.get("/v1/tasks", tenant.key)
            if answer.status != 200:
                assert (answer.status, answer.json["error"]["code"]) == (503, "platform_unavailable")
                assert 1 <= int(answer.headers["retry-after"]) <= 30
            statuses.add(answer.status)
            await asyncio.sleep(0.05)
    assert (await gateway.get("/v1/tasks", tenant.key)).status == 200


async def test_only_workers_reach_the_control_process(gateway: Gateway) -> None:
    """Its file is for its owner alone, and without what stands in it the door stays shut."""
    file = gateway.settings.control_file
    assert file.stat().st_mode & 0o077 == 0
    port = int(json.loads(file.read_bytes())["url"].rpartition(":")[2])
    for headers in ({}, {"x-pareta-control": "guess"}):
        answer = await ask(port, "GET", "/v1/tasks", headers={**headers, "x-pareta-org": "org_x"})
        assert answer.status == 403
