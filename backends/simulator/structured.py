"""JSON values for tool calls and JSON answers: something valid for a schema, decided by a seed.

Covers what clients commonly send (objects, arrays, enums, references, unions, bounds); what it does not know
it answers with a word. Pure.
"""

import random
from typing import Any

from backends.simulator import words

_MAX_DEPTH = 8
_MAX_NODES = 2_000
_MAX_LENGTH = 4_096


class BadSchema(ValueError):
    """A schema that contradicts what schemas are."""


def json_answer(schema: dict[str, Any], seed: int, prose: str) -> Any:
    """A value for `schema`; for `{}` an object around `prose`.

    Raises:
        BadSchema: if the schema has, say, a word for a minimum.
    """
    rng = random.Random(seed)  # noqa: S311 - made-up data, not a secret
    if not schema:
        return {"answer": prose, "confidence": round(rng.random(), 2), "tags": rng.sample(words.NOUNS, 2)}
    try:
        return _Maker(schema, rng).value(schema, 0)
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError) as error:
        raise BadSchema(f"The JSON schema is not valid: {error}.") from error


class _Maker:
    """Makes one value; bounded in depth and in size, for schemas may refer to themselves."""

    def __init__(self, root: dict[str, Any], rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._nodes_left = _MAX_NODES

    def value(self, schema: Any, depth: int) -> Any:
        """Something valid for `schema`."""
        self._nodes_left -= 1
        schema = self._resolve(schema, depth)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return self._rng.choice(schema["enum"])
        for union in ("anyOf", "oneOf"):
            if schema.get(union):
                return self.value(schema[union][0], depth + 1)
        if schema.get("allOf"):
            parts = [self._resolve(part, depth) for part in schema["allOf"]]
            properties = {name: value for part in parts for name, value in part.get("properties", {}).items()}
            return self.value({**parts[0], "properties": properties}, depth + 1)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((item for item in kind if item != "null"), "null")
        if kind is None:
            kind = "object" if "properties" in schema else "string"
        return self._of_type(kind, schema, depth)

    def _of_type(self, kind: str, schema: dict[str, Any], depth: int) -> Any:
        rng = self._rng
        match kind:
            case "object":
                wanted = schema.get("properties", {})
                if depth >= _MAX_DEPTH or self._nodes_left <= 0:
                    wanted = {name: wanted[name] for name in schema.get("required", ()) if name in wanted}
                return {name: self.value(item, depth + 1) for name, item in wanted.items()}
            case "array":
                least = int(schema.get("minItems", 0))
                size = least if depth >= _MAX_DEPTH or self._nodes_left <= 0 else max(1, least)
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(min(size, 64))]
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
                return self._string(schema)

    def _string(self, schema: dict[str, Any]) -> str:
        rng = self._rng
        match schema.get("format"):
            case "date":
                return f"20{rng.randint(10, 30)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
            case "date-time":
                return f"20{rng.randint(10, 30)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T12:00:00Z"
            case "email":
                return f"{rng.choice(words.NOUNS)}@example.com"
            case "uri":
                return f"https://example.com/{rng.choice(words.NOUNS)}"
        text = f"{rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
        while len(text) < min(int(schema.get("minLength", 0)), _MAX_LENGTH):
            text += f" {rng.choice(words.NOUNS)}"
        return text[: int(schema["maxLength"])] if "maxLength" in schema else text

    def _resolve(self, schema: Any, depth: int) -> dict[str, Any]:
        """Follow `$ref`s inside the document; what goes too deep or grows too big becomes a word."""
        if depth > 4 * _MAX_DEPTH or self._nodes_left < -_MAX_NODES:
            return {}
        for _ in range(_MAX_DEPTH):
            if not isinstance(schema, dict):
                return {}
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = self._root
            for part in reference.removeprefix("#").strip("/").split("/"):
                if part:
                    schema = schema.get(part, {}) if isinstance(schema, dict) else {}
        return {}
