"""Seed map E: deploying and operating endpoints, with both SDKs against a real gateway and its simulators."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any

import openai
import pytest

from gateway.control.database import session
from gateway.control.deploys import store
from gateway.control.deploys.process import name_of
from gateway.core.state import EndpointStatus, Scope
from gateway.stack.processes import free_port, lock_holder
from tests.seed import demo
from tests.seed.run import Outcome, block
from tests.services import run_apart
from tests.system.harness import MODEL, Gateway, Tenant

pytestmark = pytest.mark.usefixtures("catalog", "serving")
TASK = "contract-key-fields"
BEST, SECOND, THIRD, LAUNCHED = demo.REAL[TASK]
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="session")
def serving(session_gateway: Gateway, catalog: None) -> None:
    """The simulators serve two models; a third is registered at an address where nothing listens."""
    urls = [simulator.url for simulator in session_gateway.simulators]

    async def register() -> None:
        async with session(session_gateway.settings.database_url) as conn:
            for model in (BEST, SECOND):
                await store.register(conn, model, "static", {"backends": urls, "model": MODEL}, max_output_tokens=1024)
            nowhere = {"backends": [f"http://127.0.0.1:{free_port()}"]}
            await store.register(conn, THIRD, "static", nowhere, max_output_tokens=None)

    run_apart(register())


@pytest.fixture
def owner(gateway: Gateway) -> Tenant:
    """An organization of its own, with credit."""
    return run_apart(gateway.tenant())


@pytest.fixture
def run(gateway: Gateway, owner: Tenant, version: str) -> Any:
    """Run a block of the page with one SDK."""

    def runner(code: str, **given: Any) -> Outcome:
        return block(version, gateway.base_url, owner.key, code, **given)

    return runner


def good(outcome: Outcome) -> Any:
    assert outcome.error is None, outcome.error
    return outcome.out


async def raw_deploy(gateway: Gateway, key: str, **body: Any) -> tuple[int, list[tuple[str, Any]], Any]:
    """Deploy over a raw socket: the status, the events, and a refusal's body."""
    answer = await gateway.post("/v1/endpoints", key, body)
    if answer.status != 200:
        return answer.status, [], answer.json
    events = []
    for piece in answer.body.decode("ascii").split("\n\n"):
        lines = [line for line in piece.split("\n") if line and not line.startswith(":")]
        if lines:
            name, data = lines
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return 200, events, None


def test_s061_s043_s059_s066_s067_s069_deploy_and_chat(run: Any) -> None:
    """Task and model are enough; the pick is echoed; the live endpoint answers at once."""
    out = good(
        run(
            """
            pick = pa.tasks.recommended("contract-key-fields")
            ep = pa.endpoints.deploy(task="contract-key-fields", model="recommended", wait=True)
            answer = pa.chat.completions.create(model=ep.id, messages=hello)
            out = {"pick": pick, "id": ep.id, "model": ep.model, "status": ep.status, "url": ep.url, "live": ep.is_live,
                   "task": ep.task, "text": answer.choices[0].message.content, "total": answer.usage.total_tokens}
            """,
            hello=HELLO,
        )
    )
    assert out["model"] == out["pick"]
    assert out["live"] is True
    assert out["status"] == "live"
    assert out["id"]
    assert out["url"].startswith("http")
    assert out["url"].endswith("/v1")
    assert out["task"] == TASK
    assert out["text"]
    assert out["total"] > 0


def test_s053_s056_s063_a_model_by_alias_and_by_its_real_id(run: Any) -> None:
    """A name of the board goes in verbatim; a real id works and shows as the alias."""
    out = good(
        run(
            """
            name = pa.tasks.leaderboard(task).models[1].name
            one = pa.endpoints.deploy(task=task, model=name, wait=True)
            two = pa.endpoints.deploy(task=task, model=real, wait=True)
            out = [name, one.model, two.model, pa.endpoints.retrieve(two.id).model]
            """,
            task=TASK,
            real=SECOND,
        )
    )
    assert len(set(out)) == 1
    assert SECOND not in json.dumps(out)


def test_s068_s071_s072_events_are_pairs(run: Any) -> None:
    """Without waiting it iterates over events: progress first, complete last."""
    events = good(
        run("""
        out = [[sorted(e), e["event"], e["data"]] for e in pa.endpoints.deploy(task="contract-key-fields", wait=False)]
        """)
    )
    assert all(keys == ["data", "event"] for keys, _, _ in events)
    names = [name for _, name, _ in events]
    assert names[-1] == "complete"
    assert set(names[:-1]) == {"progress"}
    assert all(data["stage"] for _, name, data in events if name == "progress")


async def test_s073_t18_the_raw_record_has_its_id(gateway: Gateway, owner: Tenant) -> None:
    """Clients that read the raw JSON find ``id`` and both names of the task; nothing tells of hardware."""
    status, events, _ = await raw_deploy(gateway, owner.key, task=TASK)
    assert status == 200
    name, data = events[-1]
    assert name == "complete"
    record = data["endpoint"]
    assert record["id"] == record["name"]
    assert record["task"] == record["taskName"] == TASK
    assert record["status"] == "live"
    assert (record["recommendedSystemPrompt"] is None) is not (record["promptScaffold"] is None)
    assert set(record) == {
        *("id", "name", "model", "status", "taskName", "task", "url", "recommendedSystemPrompt", "promptScaffold"),
        *("created_at", "status_detail", "run_mode"),
    }
    percents = [event["pct"] for kind, event in events if kind == "progress"]
    assert percents == sorted(percents)


async def test_s060_s031_hardware_and_prices_in_the_body_change_nothing(gateway: Gateway, owner: Tenant) -> None:
    """What nobody may choose is accepted and ignored: the price is the board's."""
    extras = {"gpu": "H100", "quantization": "int4", "region": "eu", "cost_per_request_micro_usd": 0, "run_mode": "rte"}
    status, events, _ = await raw_deploy(gateway, owner.key, task=TASK, **extras)
    assert status == 200
    endpoint = events[-1][1]["endpoint"]
    assert endpoint["run_mode"] is None
    assert "H100" not in json.dumps(events)
    answer = await gateway.post("/v1/chat/completions", owner.key, {"model": endpoint["id"], "messages": HELLO})
    board = (await gateway.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
    price = next(one["cost_per_request_micro_usd"] for one in board["models"] if one["name"] == endpoint["model"])
    assert int(answer.headers["x-pareta-billed"]) == price > 0


def test_s075_s076_s081_s082_the_newest_is_the_last(run: Any) -> None:
    """All are listed, the oldest first; the page's loop ends on the newest, which answers."""
    out = good(
        run(
            """
            old = pa.endpoints.deploy(task="contract-key-fields", wait=True)
            pa.endpoints.stop(old.id)
            new = pa.endpoints.deploy(task="contract-key-fields", wait=True)
            for ep in pa.endpoints.list():
                print(ep.id, ep.task, ep.status, ep.is_live)
            text = pa.chat.completions.create(model=ep.id, messages=hello).choices[0].message.content
            out = [old.id, new.id, [e.id for e in pa.endpoints.list()], ep.id, bool(text),
                   pa.endpoints.retrieve(old.id).status, [m.id for m in pa.models.list()]]
            """,
            hello=HELLO,
        )
    )
    old, new, listed, last, answered, status, callable_ones = out
    assert listed[-2:] == [old, new]
    assert last == new
    assert answered
    assert status == "stopped"
    assert new in callable_ones
    assert old not in callable_ones


def test_s077_s078_s146_s151_stop_start_and_again(run: Any) -> None:
    """Stopped it answers 503; started it comes back; the page's recipe works."""
    out = good(
        run(
            """
            import time
            ep = pa.endpoints.deploy(task="contract-key-fields", wait=True)
            stopped = pa.endpoints.stop(ep.id)
            seen = []
            for _ in range(100):
                try:
                    pa.chat.completions.create(model=ep.id, messages=hello)
                except pareta.EndpointNotReadyError as error:
                    seen.append(error.status_code)
                    break
                time.sleep(0.05)
            started = pa.endpoints.start(ep.id)
            for _ in range(200):
                if pa.endpoints.retrieve(ep.id).is_live:
                    break
                time.sleep(0.05)
            for _ in range(100):
                try:
                    text = pa.chat.completions.create(model=ep.id, messages=hello).choices[0].message.content
                    break
                except pareta.EndpointNotReadyError:
                    time.sleep(0.05)
            again = pa.endpoints.start(ep.id)
            out = [stopped["status"], seen, started["status"], bool(text), again["status"]]
            """,
            hello=HELLO,
        )
    )
    assert out == ["stopped", [503], "starting", True, "live"]


def test_s079_deleted_is_gone(run: Any) -> None:
    """Then it is 404 everywhere."""
    out = good(
        run(
            """
            ep = pa.endpoints.deploy(task="contract-key-fields", wait=True)
            pa.endpoints.delete(ep.id)
            out = []
            for call in (lambda: pa.endpoints.retrieve(ep.id), lambda: pa.endpoints.start(ep.id),
                         lambda: pa.endpoints.stop(ep.id), lambda: pa.endpoints.delete(ep.id)):
                try:
                    call()
                except pareta.NotFoundError as error:
                    out.append(error.status_code)
            """,
        )
    )
    assert out == [404] * 4


def test_s033_s057_what_is_no_model_of_the_task(run: Any) -> None:
    """A vendor's model, a name of another task, a made-up one: refused, and nothing is left behind."""
    for model in (demo.FRONTIER, "thicket-vl-1", "no-such-1"):
        error = run("pa.endpoints.deploy(task='contract-key-fields', model=model, wait=True)", model=model).error
        assert error is not None
        assert (error["class"], error["status_code"]) == ("BadRequestError", 400), model
    assert len(good(run("out = [e.id for e in pa.endpoints.list()]"))) == 1, "only the one that it began with"


def test_s140_an_unknown_task(run: Any) -> None:
    """404."""
    error = run("pa.endpoints.deploy(task='no-such-task', wait=True)").error
    assert error is not None
    assert error["class"] == "NotFoundError"


def test_s139_a_key_that_may_only_read_deploys_nothing(gateway: Gateway, owner: Tenant, version: str) -> None:
    """403; looking is allowed."""
    _, key = run_apart(gateway.key(owner.org_id, scope=Scope.READ))
    outcome = block(
        version,
        gateway.base_url,
        key,
        "out = len(pa.endpoints.list()); pa.endpoints.deploy(task='contract-key-fields', wait=True)",
    )
    assert outcome.error is not None
    assert outcome.error["class"] == "PermissionDeniedError"


async def test_s143_a_seed_record_was_never_deployed(gateway: Gateway, owner: Tenant) -> None:
    """It is listed as stopped, the first; start, stop and chat are 409; it can be deleted."""
    endpoint_id, _ = await gateway.endpoint(owner.org_id, status=EndpointStatus.SEED, rates=None)
    listed = (await gateway.get("/v1/endpoints", owner.key)).json
    assert (listed[0]["id"], listed[0]["status"]) == (endpoint_id, "stopped")
    for action in ("start", "stop"):
        answer = await gateway.post(f"/v1/endpoints/{endpoint_id}/{action}", owner.key, None)
        assert (answer.status, answer.json["error"]["code"]) == (409, "seed_endpoint")
        assert answer.headers["x-should-retry"] == "false"
    assert (await gateway.send("DELETE", f"/v1/endpoints/{endpoint_id}", owner.key)).status == 204


async def test_s141_another_organizations_endpoint_does_not_exist(gateway: Gateway, owner: Tenant) -> None:
    """Every route answers 404, with the same text as for an id that nobody has."""
    _, events, _ = await raw_deploy(gateway, owner.key, task=TASK)
    theirs = events[-1][1]["endpoint"]["id"]
    stranger = await gateway.tenant()
    for endpoint_id in (theirs, "ep_nobody"):
        for method, path in (
            ("GET", f"/v1/endpoints/{endpoint_id}"),
            ("POST", f"/v1/endpoints/{endpoint_id}/start"),
            ("POST", f"/v1/endpoints/{endpoint_id}/stop"),
            ("DELETE", f"/v1/endpoints/{endpoint_id}"),
        ):
            answer = await gateway.send(method, path, stranger.key)
            assert (answer.status, answer.json["error"]["code"]) == (404, "endpoint_not_found"), (method, path)
    assert (await gateway.get(f"/v1/endpoints/{theirs}", owner.key)).json["status"] == "live"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 422, "task_invalid"),
        ({"task": 5}, 422, "task_invalid"),
        ({"task": TASK, "model": 5}, 422, "model_invalid"),
        ({"task": TASK, "model": None}, 422, "model_invalid"),
        ({"task": TASK, "name": "auto"}, 422, "name_invalid"),
        ({"task": TASK, "name": "a b"}, 422, "name_invalid"),
        ({"task": TASK, "name": "ep_mine"}, 422, "name_invalid"),
        ({"task": TASK, "name": "x" * 64}, 422, "name_invalid"),
        ({"task": "invoice-extraction"}, 503, "no_capacity"),
    ],
)
async def test_a_deploy_is_checked(gateway: Gateway, owner: Tenant, body: Any, status: int, code: str) -> None:
    """Before anything is written down."""
    answer = await gateway.post("/v1/endpoints", owner.key, body)
    assert (answer.status, answer.json["error"]["code"]) == (status, code)
    assert len((await gateway.get("/v1/endpoints", owner.key)).json) == 1


async def test_a_name_is_the_organizations_own(gateway: Gateway, owner: Tenant) -> None:
    """It can be called by it; a second one of that name is 409 and is not to be tried again."""
    status, events, _ = await raw_deploy(gateway, owner.key, task=TASK, name="mine")
    assert status == 200
    assert events[-1][1]["endpoint"]["name"] == "mine"
    chat = await gateway.post("/v1/chat/completions", owner.key, {"model": "mine", "messages": HELLO})
    assert chat.status == 200
    again = await gateway.post("/v1/endpoints", owner.key, {"task": TASK, "name": "mine"})
    assert (again.status, again.json["error"]["code"]) == (409, "name_taken")
    assert again.headers["x-should-retry"] == "false"


async def test_s147_an_engine_that_does_not_answer_yet(gateway: Gateway, owner: Tenant) -> None:
    """While it is deploying chat is 503, the client may leave the stream, and stop ends the wait."""
    third = (await gateway.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json["models"][2]["name"]
    partial = await gateway.post(
        "/v1/endpoints", owner.key, {"task": TASK, "model": third}, leave_when=lambda answer: b"starting" in answer.raw
    )
    assert partial.status == 200
    listed = (await gateway.get("/v1/endpoints", owner.key)).json
    endpoint = listed[-1]
    assert (endpoint["model"], endpoint["status"], endpoint["url"]) == (third, "deploying", None)
    chat = await gateway.post("/v1/chat/completions", owner.key, {"model": endpoint["id"], "messages": HELLO})
    assert chat.status == 503
    stopped = await gateway.post(f"/v1/endpoints/{endpoint['id']}/stop", owner.key, None)
    assert (stopped.status, stopped.json["status"]) == (200, "stopped")


async def test_a_deploy_survives_the_control_process(gateway: Gateway, owner: Tenant) -> None:
    """Killed while the engine is not there yet; when both are back, the endpoint becomes live by itself."""
    urls = [simulator.url for simulator in gateway.simulators]
    third = (await gateway.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json["models"][2]["name"]
    async with session(gateway.settings.database_url) as conn:
        before = await conn.fetchval("SELECT spec FROM control.serving WHERE model_id = $1", THIRD)
    await gateway.post(
        "/v1/endpoints", owner.key, {"task": TASK, "model": third}, leave_when=lambda answer: b"starting" in answer.raw
    )
    endpoint_id = (await gateway.get("/v1/endpoints", owner.key)).json[-1]["id"]
    pid = lock_holder(gateway.settings.data_path / "run" / "control.lock")
    assert pid
    os.kill(pid, signal.SIGKILL)
    async with session(gateway.settings.database_url) as conn:
        await store.register(conn, THIRD, "static", {"backends": urls, "model": MODEL}, max_output_tokens=None)
    try:
        async with asyncio.timeout(40):
            while True:
                answer = await gateway.get(f"/v1/endpoints/{endpoint_id}", owner.key)
                if answer.status == 200 and answer.json["status"] == "live":
                    break
                assert answer.status in (200, 503)
                await asyncio.sleep(0.1)
        await gateway.wait_visible(endpoint_id, owner.key)
        chat = await gateway.post("/v1/chat/completions", owner.key, {"model": endpoint_id, "messages": HELLO})
        assert chat.status == 200
    finally:
        async with session(gateway.settings.database_url) as conn:
            await store.register(conn, THIRD, "static", json.loads(before), max_output_tokens=None)


async def test_s049_no_real_name_gets_out(gateway: Gateway, owner: Tenant) -> None:
    """Not in lists, boards, events, answers, errors or headers of these routes."""
    _, events, _ = await raw_deploy(gateway, owner.key, task=TASK, model=SECOND)
    endpoint_id = events[-1][1]["endpoint"]["id"]
    said = [json.dumps(events).encode()]
    for path in ("/v1/tasks", f"/v1/tasks/{TASK}?examples_n=20", f"/v1/tasks/{TASK}/leaderboard", "/v1/endpoints",
                 f"/v1/endpoints/{endpoint_id}", "/v1/models", "/v1/eval/frontier-models"):  # fmt: skip
        said.append((await gateway.get(path, owner.key)).raw)
    said.append((await gateway.post("/v1/chat/completions", owner.key, {"model": endpoint_id, "messages": HELLO})).raw)
    words = {name.lower() for models in demo.REAL.values() for name in models} | {
        "orga/",
        "orgb/",
        "orgc/",
        "-instruct",
    }
    for text in said:
        for word in words:
            assert word.encode() not in text.lower(), word


async def test_a_deploy_that_is_sent_again_is_the_same(gateway: Gateway, owner: Tenant) -> None:
    """The same key and body: one endpoint, whose stream is told again; another body: 422."""
    named = {"headers": {"Idempotency-Key": "deploy-once"}}
    first, again = await asyncio.gather(
        *(gateway.post("/v1/endpoints", owner.key, {"task": TASK}, **named) for _ in range(2))
    )
    later = await gateway.post("/v1/endpoints", owner.key, {"task": TASK}, **named)
    ids = {
        json.loads(answer.body.decode().rsplit("data: ", 1)[1])["endpoint"]["id"] for answer in (first, again, later)
    }
    assert len(ids) == 1
    listed = (await gateway.get("/v1/endpoints", owner.key)).json
    assert sum(one["task"] == TASK for one in listed) == 1
    other = await gateway.post("/v1/endpoints", owner.key, {"task": TASK, "name": "other"}, **named)
    assert other.status == 422


async def test_who_calls_too_early_is_told_when_to_come(gateway: Gateway, owner: Tenant) -> None:
    """503 while it starts, with what its model's latest starts took, in whole seconds from 1 to 30."""
    async with session(gateway.settings.database_url) as conn:
        await conn.execute("DELETE FROM control.start_time WHERE model_id = $1", THIRD)
        for seconds in (2.2, 11.4, 55.0):
            await store.remember_start(conn, THIRD, seconds)
    board = (await gateway.get(f"/v1/tasks/{TASK}/leaderboard", owner.key)).json
    name = board["models"][demo.REAL[TASK].index(THIRD)]["name"]
    deploying = asyncio.create_task(gateway.post("/v1/endpoints", owner.key, {"task": TASK, "model": name}))
    async with asyncio.timeout(60):
        while not (waiting := [one for one in (await gateway.get("/v1/endpoints", owner.key)).json
                               if one["status"] == "deploying"]):  # fmt: skip
            await asyncio.sleep(0.05)
        endpoint_id = waiting[0]["id"]
        while True:
            answer = await gateway.chat(owner, model=endpoint_id)
            if answer.status == 503 and answer.headers.get("retry-after") == "12":
                break
            await asyncio.sleep(0.1)
    assert (await gateway.post(f"/v1/endpoints/{endpoint_id}/stop", owner.key, None)).status == 200
    await deploying


@pytest.fixture(scope="module")
def engines(session_gateway: Gateway, catalog: None) -> None:
    """A model whose engine this host launches."""
    words = [sys.executable, "-m", "backends.simulator", "--model", "{model}", "--port", "{port}"]

    async def register() -> None:
        async with session(session_gateway.settings.database_url) as conn:
            spec = {"command": words, "model": MODEL}
            await store.register(conn, LAUNCHED, "process", spec, max_output_tokens=1024)

    run_apart(register())


def launched_pid(gateway: Gateway) -> int:
    lock = gateway.settings.data_path / "run" / f"engine-{name_of(LAUNCHED)}.lock"
    return lock_holder(lock) or 0


@pytest.mark.usefixtures("engines")
async def test_an_engine_of_this_host_lives_as_long_as_it_is_wanted(gateway: Gateway, owner: Tenant) -> None:
    """Launched by the first deploy, shared by the second; killed it comes back; the control process may die over it."""
    task = next(task for task, models in demo.REAL.items() if LAUNCHED in models)
    board = (await gateway.get(f"/v1/tasks/{task}/leaderboard", owner.key)).json
    alias = board["models"][demo.REAL[task].index(LAUNCHED)]["name"]
    made = []
    for _ in range(2):
        status, events, _ = await raw_deploy(gateway, owner.key, task=task, model=alias)
        assert (status, events[-1][0]) == (200, "complete"), events
        made.append(events[-1][1]["endpoint"]["id"])
    pid = launched_pid(gateway)
    assert pid
    for endpoint_id in made:
        assert (await gateway.chat(owner, model=endpoint_id, max_tokens=3)).status == 200

    control = lock_holder(gateway.settings.data_path / "run" / "control.lock")
    assert control
    os.kill(control, signal.SIGKILL)
    assert (await gateway.chat(owner, model=made[0], max_tokens=3)).status == 200
    async with asyncio.timeout(30):
        while (await gateway.get("/v1/endpoints", owner.key)).status != 200:
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    assert launched_pid(gateway) == pid

    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while (answer := await gateway.chat(owner, model=made[1], max_tokens=3)).status != 200:
            assert answer.status in (502, 503), answer.raw
            await asyncio.sleep(0.1)
    assert launched_pid(gateway) not in (0, pid)

    for endpoint_id in made:
        assert (await gateway.post(f"/v1/endpoints/{endpoint_id}/stop", owner.key, None)).status == 200
    async with asyncio.timeout(30):
        while launched_pid(gateway):
            await asyncio.sleep(0.1)


@pytest.mark.usefixtures("engines")
async def test_an_idle_endpoint_sleeps_and_a_call_wakes_it(gateway: Gateway, owner: Tenant) -> None:
    """Not while a stream runs. Its engine ends; the openai client gets its answer all the same; stop is for good."""
    task = next(task for task, models in demo.REAL.items() if LAUNCHED in models)
    board = (await gateway.get(f"/v1/tasks/{task}/leaderboard", owner.key)).json
    alias = board["models"][demo.REAL[task].index(LAUNCHED)]["name"]

    async def idle_s(seconds: int | None) -> None:
        async with session(gateway.settings.database_url) as conn:
            serving = await store.serving_of(conn, LAUNCHED)
            assert serving is not None
            await store.register(conn, LAUNCHED, "process", serving.spec, max_output_tokens=1024, idle_s=seconds)

    async def record() -> Any:
        return (await gateway.get(f"/v1/endpoints/{endpoint_id}", owner.key)).json

    async def until_it_sleeps() -> None:
        async with asyncio.timeout(30):
            while (now := await record())["status"] != "stopped":
                await asyncio.sleep(0.1)
        assert "wakes it" in now["status_detail"]

    status, events, _ = await raw_deploy(gateway, owner.key, task=task, model=alias)
    assert status == 200
    endpoint_id = events[-1][1]["endpoint"]["id"]
    try:
        await idle_s(4)
        slow = await gateway.chat(
            owner, model=endpoint_id, stream=True, max_tokens=70, sim={"tokens": 70, "itl_ms": 100}
        )
        assert slow.status == 200
        assert b"[DONE]" in slow.raw
        assert (await record())["status"] == "live"
        await until_it_sleeps()
        async with asyncio.timeout(30):
            while launched_pid(gateway):
                await asyncio.sleep(0.1)
        async with openai.AsyncOpenAI(base_url=f"{gateway.base_url}/v1", api_key=owner.key, max_retries=8) as client:
            said = await client.chat.completions.create(
                model=endpoint_id, messages=[{"role": "user", "content": "Wake up."}], max_tokens=3
            )
        assert said.choices[0].message.content
        assert (await record())["status"] == "live"
        await until_it_sleeps()
        assert (await gateway.post(f"/v1/endpoints/{endpoint_id}/stop", owner.key, None)).status == 200
        async with asyncio.timeout(5):
            while "retry-after" in (answer := await gateway.chat(owner, model=endpoint_id, max_tokens=3)).headers:
                await asyncio.sleep(0.05)  # this worker has not heard of it yet
        assert answer.status == 503
        await asyncio.sleep(1)
        assert ((now := await record())["status"], now["status_detail"]) == ("stopped", None)
    finally:
        await idle_s(None)
        assert (await gateway.send("DELETE", f"/v1/endpoints/{endpoint_id}", owner.key)).status == 204
