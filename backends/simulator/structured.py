"""JSON values for tool calls and JSON answers: something valid for a schema, decided by a seed.

Covers what clients commonly send (objects, arrays, enums, references, unions, bounds); what it does not know
it answers with a word. Pure.
"""

import random
from typing import Any

from backends.simulator import words

_MAX_DEPTH = 8


def json_answer(schema: dict[str, Any], seed: int, prose: str) -> Any:
    """A value for `schema`; for `{}` an object around `prose`."""
    rng = random.Random(seed)  # noqa: S311 - made-up data, not a secret
    if not schema:
        return {"answer": prose, "confidence": round(rng.random(), 2), "tags": rng.sample(words.NOUNS, 2)}
    return _value(schema, schema, rng, 0)


def _value(schema: Any, root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    schema = _resolve(schema, root, depth)
    if "const" in schema:
        return schema["const"]
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        return rng.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if isinstance(schema.get(union), list) and schema[union]:
            return _value(schema[union][0], root, rng, depth + 1)
    if isinstance(schema.get("allOf"), list) and schema["allOf"]:
        parts = [_resolve(part, root, depth) for part in schema["allOf"]]
        properties = {name: value for part in parts for name, value in part.get("properties", {}).items()}
        return _value({**parts[0], "properties": properties}, root, rng, depth + 1)
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "string"
    return _of_type(kind, schema, root, rng, depth)


def _of_type(kind: str, schema: dict[str, Any], root: dict[str, Any], rng: random.Random, depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties")
            wanted = properties if isinstance(properties, dict) else {}
            if depth >= _MAX_DEPTH:
                wanted = {name: wanted[name] for name in schema.get("required", ()) if name in wanted}
            return {name: _value(item, root, rng, depth + 1) for name, item in wanted.items()}
        case "array":
            least = schema.get("minItems", 1)
            size = 0 if depth >= _MAX_DEPTH and not schema.get("minItems") else max(1, min(int(least), 64))
            return [_value(schema.get("items", {}), root, rng, depth + 1) for _ in range(size)]
        case "integer":
            low = int(schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1))
            return rng.randint(low, max(low, int(schema.get("maximum", low + 40))))
        case "number":
            floor = float(schema.get("minimum", 0))
            return round(rng.uniform(floor, max(floor, float(schema.get("maximum", floor + 40)))), 2)
        case "boolean":
            return rng.random() < 0.5
        case "null":
            return None
        case _:
            return _string(schema, rng)


def _string(schema: dict[str, Any], rng: random.Random) -> str:
    match schema.get("format"):
        case "date":
            return f"20{rng.randint(10, 30)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
        case "date-time":
            return f"20{rng.randint(10, 30)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T12:00:00Z"
        case "email":
            return f"{rng.choice(words.NOUNS)}@example.com"
        case "uri":
            return f"https://example.com/{rng.choice(words.NOUNS)}"
        case _:
            text = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
            while len(text) < int(schema.get("minLength", 0)):
                text += f" {rng.choice(words.NOUNS)}"
            return text[: int(schema["maxLength"])] if "maxLength" in schema else text


def _resolve(schema: Any, root: dict[str, Any], depth: int) -> dict[str, Any]:
    """Follow `$ref`s inside the document."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(schema, dict) or depth > 4 * _MAX_DEPTH:
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        schema = root
        for part in reference.removeprefix("#").strip("/").split("/"):
            if part:
                schema = schema.get(part, {}) if isinstance(schema, dict) else {}
    return {}
