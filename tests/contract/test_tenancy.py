"""Tenancy: every route with the ids of another organization answers as if there were nothing."""

from __future__ import annotations

import json
import os
import random
from typing import Any

import pytest

from gateway.control.database import session
from gateway.control.evals import sets
from gateway.control.evals.rows import EvalRow
from gateway.core import routes
from tests.system.harness import Gateway
from tests.system.wire import ask

FREE = {"/v1/tasks", "/v1/tasks/match", "/v1/tasks/{task_id}", "/v1/tasks/{task_id}/leaderboard",
        "/v1/eval/frontier-models"}  # fmt: skip
"""Of nobody: the same for everybody."""
ROUNDS = 4


@pytest.mark.usefixtures("catalog")
async def test_a_stranger_finds_nothing(gateway: Gateway) -> None:
    """404 for every route that names something of another organization, whatever the body; lists show nothing of it."""
    seed = int(os.environ.get("SEED", random.randrange(10**6)))
    print(f"SEED={seed}")
    draw = random.Random(seed)
    owner, stranger = await gateway.tenant(), await gateway.tenant()
    async with session(gateway.settings.database_url) as conn:
        made = await sets.create(
            conn, owner.org_id, task_id="contract-key-fields", name="theirs", rows=[EvalRow(0, "a", {"a": "b"}, {})],
            claim=None,
        )  # fmt: skip
        run_id = f"run_tenancy{seed}"
        await conn.execute(
            "INSERT INTO control.eval_run (id, org_id, key_id, set_id, scorer, scorer_settings, max_output_tokens,"
            " hold_id, hold_epoch, held_micros, fingerprint, status, ended_at)"
            " VALUES ($1, $2, $3, $4, 'field_f1', '{}', 1, 'none', 1, 0, 'none', 'completed', now())",
            run_id, owner.org_id, owner.key_id, made.id,
        )  # fmt: skip
    theirs = {"endpoint_id": owner.endpoint_id, "set_id": made.id, "run_id": run_id}
    bodies: list[Any] = [None, {}, {"idx": 0, "field_name": "document", "mime": "image/png", "file_size": 3}, b"\xff"]
    tried = 0
    for route in routes.PLATFORM:
        names = [name for name in theirs if f"{{{name}}}" in route.template]
        if route.template in FREE:
            continue
        if not names:
            if route.method == "GET":
                answer = await gateway.get(route.template, stranger.key)
                assert answer.status == 200
                for hidden in (*theirs.values(), owner.org_id):
                    assert hidden not in answer.body.decode(), route
            continue
        path = route.template.format(**theirs)
        for _ in range(ROUNDS):
            answer = await ask(gateway.settings.port, route.method, path, key=stranger.key, body=draw.choice(bodies))
            assert answer.status == 404, (route, answer.raw[:500])
            assert answer.json["error"]["code"].endswith("_not_found"), answer.json
            tried += 1
    # What names a thing in its body.
    body = {"eval_set_id": made.id, "candidate_model_ids": ["sprout-1"]}
    assert (await gateway.post("/v1/eval-runs", stranger.key, body)).status == 404
    for path in ("/v1/chat/completions", "/v1/completions"):
        messages = [{"role": "user", "content": "x"}]
        content: dict[str, Any] = {"messages": messages} if "chat" in path else {"prompt": "x"}
        answer = await gateway.post(path, stranger.key, {"model": owner.endpoint_id, **content})
        assert (answer.status, answer.code) == (404, "model_not_found")
    assert (await gateway.get(f"/v1/models/{owner.endpoint_id}", stranger.key)).status == 404
    # And nothing of it was changed.
    said = await gateway.get(f"/v1/endpoints/{owner.endpoint_id}", owner.key)
    assert said.json["status"] == "live", json.dumps(said.json)
    assert (await gateway.get(f"/v1/eval-sets/{made.id}", owner.key)).status == 200
    assert tried >= 14 * ROUNDS
