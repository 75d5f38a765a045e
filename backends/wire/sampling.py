"""How a text shall be generated, in the words of this project, before any engine's own are used.

Floor: wire (pure).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GuideKind(StrEnum):
    """What kind of grammar binds an answer."""

    JSON = "json"
    JSON_SCHEMA = "json_schema"


@dataclass(frozen=True, slots=True)
class Guide:
    """A grammar that the answer must follow. ``text`` is the JSON of the schema, empty for any JSON object."""

    kind: GuideKind
    text: str = ""


@dataclass(frozen=True, slots=True)
class Sampling:
    """What is asked of the engine; ``None`` leaves it to the engine.

    ``stop`` are texts at which the answer ends and that are not part of it. ``top_logprobs`` is how many alternatives
    are wanted for each token, 0 for none besides the token itself; it means nothing without ``logprobs``.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    completions: int = 1
    logprobs: bool = False
    top_logprobs: int = 0
    guide: Guide | None = None


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model's own ``generation_config.json`` says, used where the request says nothing.

    ``stop_token_ids`` are its end tokens.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    stop_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """One response of an engine: what is new in it.

    ``choice`` counts from 0. ``text`` are UTF-8 bytes that may begin or end inside a character; stop texts may stand in
    it. ``tokens`` and ``prompt_tokens`` are what the engine said of this response alone, ``None`` if it says nothing.
    ``finish`` is an OpenAI finish reason, set once for each choice by whoever knows it. ``logprobs`` are those of the
    new tokens, in order.
    """

    choice: int = 0
    text: bytes = b""
    tokens: int | None = None
    prompt_tokens: int | None = None
    finish: str | None = None
    logprobs: tuple[float, ...] | None = None
