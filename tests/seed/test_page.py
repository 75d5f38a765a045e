"""Seed map: rows that the other files do not name, with the real clients against a real gateway."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from typing import Any

import openai
import pytest

from gateway.control.database import session
from gateway.control.deploys import store
from gateway.core.scoring import SCORERS
from gateway.core.state import Limits
from gateway.stack.processes import free_port
from tests.seed import demo
from tests.seed.personas import Personas
from tests.seed.run import block
from tests.seed.test_evals import (
    ANTHROPIC,
    BEST,
    FLAT,
    OPENAI,
    SECOND,
    TASK,
    VENDOR_ITEM,
    create_run,
    ended,
    evals,
    good,
    multipart,
    owner,
    personas,
    rows,
    run,
    upload,
)
from tests.services import run_apart
from tests.stack import Stack
from tests.system.harness import Gateway, Tenant

__all__ = ["evals", "owner", "personas", "run"]

ALIAS = re.compile(r"^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*-[1-9][0-9]*$")
HELLO = [{"role": "user", "content": "row 2 [[hello]]"}]


async def board(gateway: Gateway, key: str) -> Any:
    return (await gateway.get(f"/v1/tasks/{TASK}/leaderboard", key)).json


def test_s001_s032_s051_s062_s064_s084_s085_s089_s090_every_alias_deploys_and_answers(run: Any) -> None:
    """By alias, as ``recommended``, without a model; the endpoint's id is what chat takes; text and totals."""
    out = good(
        run(
            """
            lb = pa.tasks.leaderboard(task)
            out["aliases"], out["recommended"], out["said"] = [m.name for m in lb.models], lb.recommended, []
            for wanted in [{"model": m} for m in out["aliases"][:3]] + [{"model": "recommended"}, {}]:
                ep = pa.endpoints.deploy(task=task, wait=True, **wanted)
                chat = pa.chat.completions.create(model=ep.id, messages=messages)
                out["said"].append([ep.model, pa.endpoints.retrieve(ep.id).model, bool(chat.choices[0].message.content),
                                    chat.usage.total_tokens == chat.usage.prompt_tokens + chat.usage.completion_tokens])
            """,
            task=TASK,
            messages=HELLO,
        )
    )
    wanted = [*out["aliases"][:3], out["recommended"], out["recommended"]]
    assert out["said"] == [[alias, alias, True, True] for alias in wanted]
    assert all(ALIAS.fullmatch(alias) for alias in out["aliases"])


def test_s002_s016_s052_s099_s106_own_rows_decide(run: Any) -> None:
    """The run's numbers are not the board's; a row's score is the scorer's; open candidates alone cost something."""
    out = good(
        run(
            """
            lb = pa.tasks.leaderboard(task)
            best = lb.models[0].name
            done = pa.evals.runs.create(task=task, items=items, models=[best], wait=True, poll_interval=0.1)
            out.update(board=lb.models[0].quality, name=lb.models[0].name, raw=done.results[0].to_dict(),
                       model=done.results[0].model_id, micros=done.cost_micro_usd,
                       scorer=pa.tasks.retrieve(task).default_scorer)
            """,
            task=TASK,
            items=rows(3),
        )
    )
    assert out["model"] == out["name"]
    assert out["raw"]["quality_mean"] == pytest.approx(2 / 3) != out["board"]
    for item, row in zip(out["raw"]["per_item"], rows(3), strict=True):
        assert item["score"] == SCORERS[out["scorer"]](row["expected"], item["prediction"], {})
    assert out["micros"] == 3 * FLAT[BEST]


async def test_s003_s086_s087_s088_s091_s092_s093_the_openai_client(evals: Gateway, owner: Tenant) -> None:
    """Its strict models parse whole and streamed answers; parameters pass; every chunk has a choice."""
    endpoint_id, _ = await evals.endpoint(owner.org_id)
    await evals.wait_visible(endpoint_id, owner.key)
    async with openai.AsyncOpenAI(base_url=f"{evals.base_url}/v1", api_key=owner.key) as client:
        asked: Any = {"model": endpoint_id, "messages": HELLO, "temperature": 0, "max_tokens": 7}
        whole = await client.chat.completions.create(**asked)
        again = await client.chat.completions.create(**asked)
        assert whole.choices[0].message.content == again.choices[0].message.content
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 7
        text, chunks = "", 0
        async for chunk in await client.chat.completions.create(stream=True, **asked):
            chunks += 1
            text += chunk.choices[0].delta.content or ""
        assert chunks > 2
        assert text == whole.choices[0].message.content
        assert endpoint_id in [model.id async for model in client.models.list()]


async def test_s007_s008_s104_s105_keys_and_money_have_no_routes(evals: Gateway, owner: Tenant) -> None:
    """A key with one letter changed is none; nothing mints keys, tops up or tells a balance."""
    assert owner.key.startswith("pareta_sk_")
    for place in (12, -1):
        letters = list(owner.key)
        letters[place] = "a" if letters[place] != "a" else "b"
        assert (await evals.get("/v1/tasks", "".join(letters))).status == 401
    for path in (
        "/v1/keys",
        "/v1/api-keys",
        "/v1/balance",
        "/v1/billing",
        "/v1/credits",
        "/v1/payment-methods",
        "/v1/top-up",
    ):
        assert (await evals.get(path, owner.key)).status == 404
        assert (await evals.post(path, owner.key, {})).status == 404
    poor = await evals.tenant(credit_nanos=7_777)
    answer = await evals.chat(poor, "word " * 5000)
    assert answer.status == 402
    assert b"777" not in answer.body.replace(answer.request_id.encode(), b"")


def test_s012_every_task_that_ships_was_measured(stack: Stack, version: str) -> None:
    """Every task of the demonstration has open models and a baseline; each measurement says how it was made."""
    out = good(
        block(
            version,
            stack.base_url,
            stack.api_key,
            """
            for task in pa.tasks.list():
                lb = pa.tasks.leaderboard(task.id)
                out[task.id] = [len(lb.models), lb.frontier.name if lb.frontier else None,
                                [m.quality for m in lb.models], [m.cost_per_request_micro_usd for m in lb.models]]
            """,
        )
    )
    assert len(out) == 12
    for task_id, (count, frontier, qualities, costs) in out.items():
        assert (count, frontier) == (3, "demo-frontier"), task_id
        assert qualities == sorted(qualities, reverse=True)
        assert costs
    from gateway.control.catalog import folder

    for name, data in folder.read_files(folder.shipped()).items():
        if name.startswith("boards/"):
            for one in json.loads(data)["open"] + json.loads(data)["frontier"]:
                assert one["provenance"]["measured_with"] == "python -m benchmarks.catalog"
                assert one["items"] >= 60


def test_s021_samples_are_rows(run: Any) -> None:
    """What a task shows as examples is a set as it is."""
    out = good(
        run(
            """
            rows = pa.tasks.retrieve(task, examples_n=3).to_dict()["examples"]
            made = pa.evals.sets.create(task=task, items=rows)
            out.update(rows=len(rows), kept=made.item_count)
            """,
            task=TASK,
        )
    )
    assert 1 <= out["rows"] == out["kept"] <= 3


async def test_s034_s055_s111_s113_s114_boards_say_what_to_pick(evals: Gateway, owner: Tenant) -> None:
    """A cheaper open model stands beside a vendor's own name; rates are not floored; the page's sentence has a task."""
    said = await board(evals, owner.key)
    rates = [row["cost_per_request_micro_usd"] for row in said["models"]]
    assert min(rates) < said["frontier"]["cost_per_request_micro_usd"]
    assert any(rate % 10_000 for rate in rates)
    assert {row["kind"] for row in said["models"][:3]} == {"open"}
    assert said["frontier"]["name"] == OPENAI
    assert not ALIAS.fullmatch(ANTHROPIC) or "claude" in ANTHROPIC
    asked = {"query": "extract the parties, term, and governing law from our contracts", "top_k": 5}
    assert (await evals.post("/v1/tasks/match", owner.key, asked)).json["chosen"]["task_id"] == TASK


async def test_s048_s100_s128_explicit_baselines_cost_more(evals: Gateway, owner: Tenant) -> None:
    """One id, one frontier row; the same rows with a baseline cost exactly its tokens more."""
    name = (await board(evals, owner.key))["models"][1]["name"]
    costs = []
    for models in ([name], [name, ANTHROPIC]):
        started = await create_run(evals, owner.key, rows(2), models)
        said = await ended(evals, owner.key, started.json["run_id"])
        costs.append(said["run"]["total_cost_micro_usd"])
        assert [row["kind"] for row in said["results"]] == ["open", "frontier"][: len(models)]
    assert costs == [2 * FLAT[SECOND], 2 * FLAT[SECOND] + 2 * VENDOR_ITEM]


async def test_s065_the_registry_decides_what_serves(evals: Gateway, owner: Tenant, personas: Personas) -> None:
    """Another engine in the registry serves the next deploy; customers see the same alias and nothing else."""
    model = "orgc/Meadow-3B"
    other = Personas({"another-name": "always"})
    name = (await board(evals, owner.key))["models"][2]["name"]
    try:
        async with session(evals.settings.database_url) as conn:
            before = await store.serving_of(conn, model)
            assert before is not None
            spec = {"backends": [f"{other.url}/engine"], "model": "another-name"}
            await store.register(conn, model, "static", spec, max_output_tokens=64)
        answer = await evals.post("/v1/endpoints", owner.key, {"task": TASK, "model": name})
        record = json.loads(answer.body.decode().rsplit("data: ", 1)[1])["endpoint"]
        assert record["model"] == name
        said = await evals.post("/v1/chat/completions", owner.key, {"model": record["id"], "messages": HELLO})
        assert said.text == "hello"
        assert b"another-name" not in said.raw
        assert other.asked["another-name"] == 1
    finally:
        async with session(evals.settings.database_url) as conn:
            await store.register(conn, model, "static", dict(before.spec), max_output_tokens=1024)
        other.close()


def test_s070_s074_a_deploy_that_fails_raises_its_message(evals: Gateway, owner: Tenant, version: str) -> None:
    """Stopped while it waits for its engine: the last event is ``error``, and waiting raises ``ParetaError``."""

    async def prepare() -> str:
        async with session(evals.settings.database_url) as conn:
            nowhere = {"backends": [f"http://127.0.0.1:{free_port()}"]}
            await store.register(conn, "orga/Sprout-7B-Instruct", "static", nowhere, max_output_tokens=64)
        return str((await evals.get("/v1/tasks/comment-moderation/leaderboard", owner.key)).json["models"][1]["name"])

    async def restore() -> None:
        async with session(evals.settings.database_url) as conn:
            await store.register(conn, "orga/Sprout-7B-Instruct", "static", spec, max_output_tokens=1024)

    async def spec_now() -> Any:
        async with session(evals.settings.database_url) as conn:
            found = await store.serving_of(conn, "orga/Sprout-7B-Instruct")
            return dict(found.spec) if found is not None else None

    spec = run_apart(spec_now())
    name = run_apart(prepare())

    async def stop_it() -> None:
        async with asyncio.timeout(60):
            while True:
                listed = (await evals.get("/v1/endpoints", owner.key)).json
                waiting = [one["id"] for one in listed if one["status"] == "deploying"]
                if waiting:
                    await asyncio.sleep(0.5)
                    await evals.post(f"/v1/endpoints/{waiting[0]}/stop", owner.key, None)
                    return
                await asyncio.sleep(0.1)

    stopper = threading.Thread(target=run_apart, args=(stop_it(),))
    stopper.start()
    try:
        outcome = block(
            version,
            evals.base_url,
            owner.key,
            'pa.endpoints.deploy(task="comment-moderation", model=name, wait=True)',
            name=name,
        )
    finally:
        stopper.join(70)
        run_apart(restore())
    assert outcome.error is not None
    assert outcome.error["class"] == "ParetaError"
    assert outcome.error["text"] == "deploy failed: The endpoint was stopped."


def test_s094_s095_s152_s153_refusals_have_words_and_ids(run: Any) -> None:
    """Empty arguments are refused by client and server; a catch-all prints the server's sentence; each has its id."""
    out = good(
        run(
            """
            import asyncio
            for arguments in ({"model": "", "messages": messages}, {"model": "ep_x", "messages": []}):
                try:
                    pa.chat.completions.create(**arguments)
                except ValueError as error:
                    out.setdefault("values", []).append(str(error))
            seen = []
            for _ in range(2):
                try:
                    pa.chat.completions.create(model="ep_nothing", messages=messages)
                except pareta.ParetaError as error:
                    seen.append([str(error), error.request_id])
            out["seen"] = seen
            async def mirror():
                mine = pareta.AsyncPareta(api_key=pa.api_key, base_url=pa.base_url)
                models = await mine.models.list()
                ep = models.data[0].id
                text = ""
                made = mine.chat.completions.create(model=ep, messages=messages, stream=True)
                async for chunk in await as_it_is(made):
                    text += chunk.choices[0].delta.content or ""
                return text
            async def as_it_is(made):
                return await made if asyncio.iscoroutine(made) else made
            out["mirror"] = asyncio.run(mirror())
            """,
            messages=HELLO,
        )
    )
    assert len(out["values"]) == 2
    (first, id_one), (second, id_two) = out["seen"]
    assert first == second
    assert "ep_nothing" in first
    assert id_one != id_two
    assert id_one.startswith("req_")
    assert out["mirror"]


async def test_s096_s098_two_keys_share_one_balance(evals: Gateway, owner: Tenant) -> None:
    """What either key buys is taken from the same credit; what fails is not."""
    _, other = await evals.key(owner.org_id)
    before = await evals.balance_nanos(owner.org_id)
    flat = await evals.tenant(flat_nanos=5_000_000)
    _, second = await evals.key(flat.org_id)
    start = await evals.balance_nanos(flat.org_id)
    for key in (flat.key, second):
        answer = await evals.post("/v1/chat/completions", key, {"model": flat.endpoint_id, "messages": HELLO})
        assert answer.status == 200
    for body, status in (
        ({"model": "ep_nothing", "messages": HELLO}, 404),
        ({"model": flat.endpoint_id, "messages": []}, 400),
        ({"model": flat.endpoint_id, "messages": HELLO, "sim": {"fail": "500"}}, 502),
    ):
        assert (await evals.post("/v1/chat/completions", second, body)).status == status
    await evals.wait_quiet()
    assert start - await evals.balance_nanos(flat.org_id) == 2 * 5_000_000
    assert await evals.balance_nanos(owner.org_id) == before
    assert other != owner.key


def test_s101_s138_no_credit_is_said_once_and_before_any_chunk(evals: Gateway, version: str) -> None:
    """Whole and streamed: 402, one request each, however often the client would retry."""
    poor = run_apart(evals.tenant(credit_nanos=0))
    outcome = block(
        version,
        evals.base_url,
        poor.key,
        """
        for stream in (False, True):
            try:
                for chunk in pa.chat.completions.create(model=model, messages=messages, stream=stream) if stream else [
                    pa.chat.completions.create(model=model, messages=messages)]:
                    out["chunk"] = True
            except pareta.InsufficientCreditsError as error:
                out.setdefault("ids", []).append(error.request_id)
        """,
        options={"max_retries": 2},
        model=poor.endpoint_id,
        messages=HELLO,
    )
    out = good(outcome)
    assert "chunk" not in out
    assert len(out["ids"]) == 2
    async_lines = [line for line in log_lines(evals) if line.get("org") == poor.org_id and line["status"] == 402]
    assert sorted(line["request_id"] for line in async_lines) == sorted(out["ids"])


def log_lines(gateway: Gateway) -> list[dict[str, Any]]:
    """The request log, once it was written."""
    import time

    time.sleep(1.0)
    lines = [line for line in gateway.log.read_bytes().splitlines() if line.startswith(b'{"event":"request"')]
    return [json.loads(line) for line in lines]


async def test_s132_s133_a_run_ends_and_is_read_whole(evals: Gateway, owner: Tenant) -> None:
    """Its status becomes ``completed`` or ``failed`` and nothing else; results, cost and candidates are there."""
    name = (await board(evals, owner.key))["models"][0]["name"]
    started = await create_run(evals, owner.key, rows(1), [name])
    said = await ended(evals, owner.key, started.json["run_id"])
    assert said["run"]["status"] == "completed"
    assert said["run"]["candidate_model_ids"] == [name]
    assert said["run"]["total_cost_micro_usd"] == FLAT[BEST]
    assert len(said["results"]) == 1


async def test_s144_contention_may_be_repeated(evals: Gateway, owner: Tenant) -> None:
    """A name that is taken is refused as often as it is asked for, and nothing comes of it."""
    body = {"task": TASK, "name": "mine"}
    assert (await evals.post("/v1/endpoints", owner.key, body)).status == 200
    for _ in range(3):
        answer = await evals.post("/v1/endpoints", owner.key, body)
        assert (answer.status, answer.code) == (409, "name_taken")
    assert sum(one["name"] == "mine" for one in (await evals.get("/v1/endpoints", owner.key)).json) == 1


def test_s145_a_throttled_client_recovers(evals: Gateway, version: str) -> None:
    """429 with a number to wait; the client's own retries get through when the bucket has refilled."""
    tight = run_apart(evals.tenant(limits=Limits(requests_per_minute=60)))
    outcome = block(
        version,
        evals.base_url,
        tight.key,
        """
        out["answers"] = 0
        eager = pareta.Pareta(api_key=pa.api_key, base_url=pa.base_url, max_retries=0)
        for _ in range(200):
            try:
                eager.chat.completions.create(model=model, messages=messages, max_tokens=1)
            except pareta.RateLimitError as error:
                out["after"] = error.response.headers["retry-after"]
                break
        out["text"] = bool(pa.chat.completions.create(model=model, messages=messages, max_tokens=1).choices)
        """,
        options={"max_retries": 4},
        model=tight.endpoint_id,
        messages=HELLO,
    )
    out = good(outcome)
    assert 1 <= int(out["after"]) <= 30
    assert out["text"]


async def test_s148_a_provider_that_is_down_comes_back(evals: Gateway, owner: Tenant) -> None:
    """503 while its engine is gone, and an answer once it is there again."""
    engine = Personas({"down-and-up": "always"})
    port = int(engine.url.rpartition(":")[2])
    endpoint_id, _ = await evals.endpoint(owner.org_id, urls=[f"{engine.url}/engine"], model="down-and-up")
    await evals.wait_visible(endpoint_id, owner.key)
    body = {"model": endpoint_id, "messages": HELLO}
    assert (await evals.post("/v1/chat/completions", owner.key, body)).status == 200
    engine.close()
    async with asyncio.timeout(20):
        while (await evals.post("/v1/chat/completions", owner.key, body)).status != 503:
            await asyncio.sleep(0.1)
    engine = Personas({"down-and-up": "always"}, port=port)
    try:
        async with asyncio.timeout(20):
            while (await evals.post("/v1/chat/completions", owner.key, body)).status != 200:
                await asyncio.sleep(0.1)
    finally:
        engine.close()


async def test_s031_s044_every_page_task_has_both_kinds(evals: Gateway, owner: Tenant) -> None:
    """Open models and a baseline on each, and a roster."""
    for task_id in demo.REAL:
        said = (await evals.get(f"/v1/tasks/{task_id}/leaderboard", owner.key)).json
        assert said["models"]
        assert said["frontier"]["kind"] == "frontier"
        roster = (await evals.get(f"/v1/eval/frontier-models?task={task_id}", owner.key)).json["frontier_models"]
        assert OPENAI in [one["id"] for one in roster if one["benchmarked"]]
    assert (await evals.post("/v1/eval-sets", owner.key, **upload(multipart(rows(1))))).status == 201
