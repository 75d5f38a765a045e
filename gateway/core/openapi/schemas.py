"""Shapes of requests and answers, as JSON Schema.

Floor: core (pure). Answers are described exactly where clients read them and may have more members; requests say what
is checked, and unknown members are ignored or passed on.
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

STRING: Final[Schema] = {"type": "string"}
INTEGER: Final[Schema] = {"type": "integer"}
NUMBER: Final[Schema] = {"type": "number"}
BOOLEAN: Final[Schema] = {"type": "boolean"}
ANY_OBJECT: Final[Schema] = {"type": "object"}
SHARE: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
ID: Final[Schema] = {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"}


def maybe(schema: Schema) -> Schema:
    """This, or null."""
    return {"anyOf": [schema, {"type": "null"}]}


def listed(schema: Schema) -> Schema:
    """An array of these."""
    return {"type": "array", "items": schema}


def ref(name: str) -> Schema:
    """One of `SCHEMAS`."""
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Schema, **optional: Schema) -> Schema:
    """An object that has these members at least."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


_CHOICE_BASE: Final = {"index": COUNT, "finish_reason": maybe(STRING)}
_METRICS: Final = {"endpoint_id": STRING, "dimension": STRING, "window": STRING, "from": INTEGER, "to": INTEGER}

SCHEMAS: Final[dict[str, Schema]] = {
    "Error": record(
        {
            "detail": STRING,
            "error": record({"message": STRING, "type": STRING, "code": STRING, "param": maybe(STRING)}),
            "request_id": STRING,
        }
    ),
    "Usage": record({"prompt_tokens": COUNT, "completion_tokens": COUNT, "total_tokens": COUNT}),
    "Message": record({"role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]}}),
    "ChatRequest": record(
        {"model": STRING, "messages": {"type": "array", "minItems": 1, "maxItems": 1000, "items": ref("Message")}},
        stream=maybe(BOOLEAN),
        stream_options=maybe(record({}, include_usage=BOOLEAN)),
        temperature=maybe({"type": "number", "minimum": 0, "maximum": 2}),
        top_p=maybe({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
        max_tokens=maybe({"type": "integer", "minimum": 1}),
        max_completion_tokens=maybe({"type": "integer", "minimum": 1}),
        n=maybe({"type": "integer", "minimum": 1, "maximum": 8}),
        stop={"anyOf": [STRING, {"type": "array", "maxItems": 4, "items": STRING}, {"type": "null"}]},
        presence_penalty=maybe({"type": "number", "minimum": -2, "maximum": 2}),
        frequency_penalty=maybe({"type": "number", "minimum": -2, "maximum": 2}),
        seed=maybe(INTEGER),
        tools=maybe(listed(ANY_OBJECT)),
        response_format=maybe(ANY_OBJECT),
    ),
    "ChatAnswer": record(
        {
            "id": STRING,
            "object": {"const": "chat.completion"},
            "created": INTEGER,
            "model": STRING,
            "choices": listed(record({**_CHOICE_BASE, "message": ANY_OBJECT})),
            "usage": ref("Usage"),
        }
    ),
    "CompletionRequest": record(
        {"model": STRING, "prompt": {"anyOf": [STRING, listed(STRING), listed(INTEGER), listed(listed(INTEGER))]}},
        stream=maybe(BOOLEAN),
        max_tokens=maybe({"type": "integer", "minimum": 1}),
        temperature=maybe({"type": "number", "minimum": 0, "maximum": 2}),
    ),
    "CompletionAnswer": record(
        {
            "id": STRING,
            "object": {"const": "text_completion"},
            "created": INTEGER,
            "model": STRING,
            "choices": listed(record({**_CHOICE_BASE, "text": STRING})),
        },
        usage=ref("Usage"),
    ),
    "EmbeddingRequest": record(
        {"model": STRING, "input": {"anyOf": [STRING, listed(STRING), listed(INTEGER), listed(listed(INTEGER))]}},
        dimensions=maybe({"type": "integer", "minimum": 1}),
        encoding_format=maybe({"enum": ["float", "base64"]}),
    ),
    "EmbeddingAnswer": record({"object": {"const": "list"}, "data": listed(ANY_OBJECT), "model": STRING}),
    "Model": record({"id": STRING, "object": {"const": "model"}, "created": INTEGER, "owned_by": STRING}),
    "Models": record({"object": {"const": "list"}, "data": listed(ref("Model"))}),
    "Task": record(
        {
            "id": ID,
            "title": STRING,
            "description": STRING,
            "category": STRING,
            "default_scorer": STRING,
            "scoring_strategy": STRING,
            "has_blob_input": BOOLEAN,
            "input_fields": listed(record({"name": STRING, "type": {"enum": ["text", "blob"]}})),
            "expected_schema": maybe(ANY_OBJECT),
        },
        examples=listed(ANY_OBJECT),
    ),
    "Candidate": record({"task_id": ID, "score": SHARE, "confidence": {"enum": ["high", "medium", "low"]}}),
    "MatchRequest": record(
        {"query": {"type": "string", "minLength": 1, "maxLength": 4000}},
        top_k={"type": "integer", "minimum": 1, "maximum": 50},
    ),
    "Match": record(
        {
            "query": STRING,
            "matched": BOOLEAN,
            "chosen": maybe(ref("Candidate")),
            "candidates": listed(ref("Candidate")),
            "ambiguous": BOOLEAN,
            "matcher": STRING,
            "type": {"enum": ["task", "none"]},
        }
    ),
    "BoardRow": record(
        {
            "name": STRING,
            "kind": {"enum": ["open", "frontier"]},
            "quality": SHARE,
            "cost_per_request_micro_usd": COUNT,
            "context_k": COUNT,
            "run_mode": maybe(STRING),
        }
    ),
    "Leaderboard": record(
        {
            "task_id": ID,
            "metric": STRING,
            "cost_unit": STRING,
            "recommended": maybe(STRING),
            "models": listed(ref("BoardRow")),
            "frontier": maybe(ref("BoardRow")),
        }
    ),
    "FrontierModels": record(
        {
            "frontier_models": listed(record({"id": ID, "vendor": STRING, "vision": BOOLEAN, "benchmarked": BOOLEAN})),
            "task": maybe(STRING),
        }
    ),
    "Endpoint": record(
        {
            "id": ID,
            "name": STRING,
            "model": maybe(STRING),
            "status": {"enum": ["deploying", "starting", "live", "stopped", "failed"]},
            "taskName": maybe(STRING),
            "task": maybe(STRING),
            "url": maybe(STRING),
            "recommendedSystemPrompt": maybe(STRING),
            "promptScaffold": maybe(STRING),
            "created_at": INTEGER,
            "status_detail": maybe(STRING),
        }
    ),
    "DeployRequest": record(
        {"task": {"type": "string", "minLength": 1}},
        model={"type": "string", "minLength": 1, "default": "recommended"},
        name={"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"},
    ),
    "Performance": record(
        {**_METRICS, **dict.fromkeys(("p50", "p95", "p99", "p50_ms", "p95_ms", "p99_ms", "ttft_p50_ms"), maybe(NUMBER)),
         "requests": COUNT, "errors": COUNT}
    ),
    "Uptime": record(
        {**_METRICS, "uptime": maybe(SHARE), "live_seconds": NUMBER, "stopped_seconds": NUMBER, "incidents": COUNT}
    ),
    "Cost": record(
        {**_METRICS, "total_micro_usd": INTEGER, "frontier_baseline_micro_usd": COUNT, "savings_micro_usd": INTEGER,
         "requests": COUNT, "frontier_model": maybe(STRING), "cost_per_request_micro_usd": maybe(COUNT)}
    ),
    "Quality": record({**_METRICS, "quality_mean": maybe(SHARE), "windows": listed(ANY_OBJECT)}),
    "Activity": record(
        {**_METRICS, "requests": COUNT, "errors": COUNT, "prompt_tokens": COUNT, "completion_tokens": COUNT,
         "last_request_at": maybe(INTEGER)}
    ),
    "EvalSet": record(
        {"id": ID, "task_id": ID, "name": STRING, "item_count": COUNT, "scoring_strategy": STRING,
         "created_at": INTEGER}
    ),
    "EvalSetUpload": record(
        {"items": {"type": "string", "contentMediaType": "application/jsonl"}, "task_id": STRING},
        name={"type": "string", "maxLength": 200},
    ),
    "DocumentUpload": record(
        {"file": {"type": "string", "contentMediaType": "application/octet-stream"}, "idx": STRING,
         "field_name": STRING},
        mime=STRING,
    ),
    "UploadRequest": record(
        {"idx": COUNT, "field_name": STRING, "mime": STRING,
         "file_size": {"type": "integer", "minimum": 1, "maximum": 104_857_600}}
    ),
    "UploadUrl": record({"upload_url": STRING, "storage_uri": STRING, "expires_in_s": COUNT}),
    "UploadDone": record({"idx": COUNT, "field_name": STRING, "storage_uri": STRING}, mime=STRING),
    "Document": record({"kind": {"const": "blob"}, "uri": STRING, "mime": STRING}),
    "RunRequest": record(
        {"eval_set_id": {"type": "string", "minLength": 1},
         "candidate_model_ids": {"type": "array", "minItems": 1, "maxItems": 50,
                                 "items": {"type": "string", "minLength": 1}}}
    ),
    "RunAccepted": record({"run_id": ID, "status": STRING}),
    "Run": record(
        {
            "id": ID,
            "eval_set_id": ID,
            "status": {"enum": ["queued", "running", "evaluating", "completed", "failed"]},
            "candidate_model_ids": listed(STRING),
            "total_cost_micro_usd": COUNT,
            "error_detail": maybe(STRING),
            "created_at": INTEGER,
        }
    ),
    "Result": record(
        {
            "model_id": STRING,
            "kind": {"enum": ["open", "frontier"]},
            "quality_mean": maybe(SHARE),
            "quality_ci_low": maybe(SHARE),
            "quality_ci_high": maybe(SHARE),
            "mean_cost_micro_usd": maybe(COUNT),
            "n_succeeded": COUNT,
            "error_count": COUNT,
            "per_item": listed(
                record({"idx": COUNT, "score": maybe(SHARE), "prediction": maybe(STRING), "error": maybe(STRING)})
            ),
        }
    ),
    "RunWithResults": record({"run": ref("Run"), "results": listed(ref("Result"))}),
}  # fmt: skip
