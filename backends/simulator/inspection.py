"""What the simulator tells about itself: models, metrics, and `/sim/*` for tests.

`/sim/requests` shows the latest requests, `/sim/stats` the sums, `/sim/faults` the plans in force, and
`/sim/refuse` closes the listening socket for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import asdict
from typing import Any, Protocol
from urllib.parse import parse_qs

import orjson

from backends.simulator.connection import Connection, Request
from backends.simulator.faults import FaultBook
from backends.simulator.options import BadOption
from backends.simulator.records import RecordBook, State
from backends.simulator.refusal import Refusal
from backends.simulator.schema import read_json
from backends.simulator.settings import DESCRIPTION, OWNER, SimulatorSettings

_DEFAULT_LIMIT = 100
_MAX_REFUSE_S = 600


class Inspected(Protocol):
    """What is told of: the engine, as far as it shows itself."""

    settings: SimulatorSettings
    records: RecordBook
    faults: FaultBook
    refuse_connections: Callable[[float], None]
    connections: set[Connection]
    connections_made: int
    running: int
    started_s: float

    @property
    def waiting(self) -> Sized:
        """Requests in the queue."""


def inspect(engine: Inspected, request: Request) -> tuple[int, bytes]:
    """Answer a `/sim/*` request: status and JSON body.

    Raises:
        Refusal: for what is wrong with it.
    """
    match request.method, request.path:
        case "GET", "/sim/requests":
            return 200, orjson.dumps({"requests": _requests(engine, request.query)})
        case "DELETE", "/sim/requests":
            engine.records.clear()
            return 200, b"{}"
        case "GET", "/sim/stats":
            return 200, orjson.dumps(stats(engine))
        case "GET", "/sim/faults":
            return 200, orjson.dumps({"faults": engine.faults.as_json()})
        case "POST", "/sim/faults":
            return 200, _add_faults(engine, request.body)
        case "DELETE", "/sim/faults":
            engine.faults.clear()
            return 200, orjson.dumps({"faults": []})
        case "POST", "/sim/refuse":
            seconds = read_json(request.body).get("seconds")
            if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _MAX_REFUSE_S:
                raise Refusal(400, f"`seconds` must be a number above 0 and at most {_MAX_REFUSE_S}.", param="seconds")
            engine.refuse_connections(float(seconds))
            return 200, orjson.dumps({"refusing_s": seconds})
    return 404, orjson.dumps({"detail": "Not Found"})


def stats(engine: Inspected) -> dict[str, Any]:
    """Sums, and what is going on now."""
    return {
        "simulator": True,
        "replica": engine.settings.replica,
        "models": engine.settings.models,
        "running": engine.running,
        "waiting": len(engine.waiting),
        "active": sum(1 for _ in engine.records.live()),
        "connections": len(engine.connections),
        "connections_made": engine.connections_made,
        "started_s": engine.started_s,
        "totals": asdict(engine.records.totals()),
    }


def models_json(engine: Inspected) -> bytes:
    """The list of `/v1/models`."""
    return orjson.dumps({"object": "list", "data": [_model(engine, model) for model in engine.settings.models]})


def model_json(engine: Inspected, model: str) -> bytes:
    """One entry of it."""
    return orjson.dumps(_model(engine, model))


def metrics_text(engine: Inspected) -> bytes:
    """Prometheus text under vLLM's names, for each model."""
    models = engine.settings.models
    running = dict.fromkeys(models, 0)
    waiting = dict.fromkeys(models, 0)
    held = 0
    for record in engine.records.live():
        if record.model in running:
            counts = waiting if record.state is State.WAITING else running
            counts[record.model] += 1
            held += record.prompt_tokens + record.completion_tokens
    totals = engine.records.totals()
    cache = min(1.0, held / (engine.settings.context_tokens * 64))
    lines = ["# This engine is a simulator; its names are vLLM's."]
    for name, kind, help_text, values in (
        ("vllm:num_requests_running", "gauge", "Requests that generate.", running),
        ("vllm:num_requests_waiting", "gauge", "Requests that wait for a slot.", waiting),
        ("vllm:kv_cache_usage_perc", "gauge", "Share of the pretended cache in use.", dict.fromkeys(models, cache)),
        ("vllm:prompt_tokens_total", "counter", "Prompt tokens taken in.", {models[0]: totals.prompt_tokens}),
        ("vllm:generation_tokens_total", "counter", "Tokens delivered.", {models[0]: totals.completion_tokens}),
        ("vllm:request_success_total", "counter", "Requests finished.", {models[0]: totals.finished}),
    ):
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}"]
        lines += [f'{name}{{model_name="{model}"}} {float(value)}' for model, value in values.items()]
    return ("\n".join(lines) + "\n").encode()


def _requests(engine: Inspected, query: str) -> list[dict[str, Any]]:
    wanted = {name: values[-1] for name, values in parse_qs(query).items()}
    limit = int(wanted["limit"]) if wanted.get("limit", "").isdecimal() else _DEFAULT_LIMIT
    chosen: list[dict[str, Any]] = []
    for record in engine.records.newest_first():
        if len(chosen) >= limit:
            break
        if wanted.get("state") in (None, record.state) and wanted.get("request_id") in (None, record.request_id):
            chosen.append(record.as_json())
    return chosen


def _add_faults(engine: Inspected, body: bytes) -> bytes:
    try:
        value = orjson.loads(body)
        engine.faults.add(value["faults"] if isinstance(value, dict) and "faults" in value else value)
    except orjson.JSONDecodeError:
        raise Refusal(400, "The body must be JSON.") from None
    except BadOption as error:
        raise Refusal(400, str(error)) from None
    return orjson.dumps({"faults": engine.faults.as_json()})


def _model(engine: Inspected, model: str) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": int(engine.started_s),
        "owned_by": OWNER,
        "description": DESCRIPTION,
        "root": model,
        "parent": None,
        "max_model_len": engine.settings.context_tokens,
        "replica": engine.settings.replica,
    }
