"""Read a model's folder, as it comes from its makers: tokenizer, chat template, and how it likes to be asked.

Floor: edge; reads files, and the clock for templates that write today's date. Nothing in the folder is run as Python.
Sources: Hugging Face's documentation of ``tokenizer_config.json``, ``generation_config.json`` and chat templates.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeGuard

import orjson

from backends.tokenizer import BrokenTokenizer, TextTokenizer
from backends.wire.answer.styles import ReasoningMarks, ToolStyle
from backends.wire.chat_template import BrokenTemplate, ChatTemplate
from backends.wire.jinja_sandbox import Clock
from backends.wire.sampling import GenerationDefaults

log = logging.getLogger("pareta.models")

MOST_TOKENIZER_BYTES = 128 << 20
"""Those with the largest vocabularies, of 256,000 tokens, have 34 MB."""
MOST_CONFIG_BYTES = 16 << 20
MOST_TEMPLATE_BYTES = 1 << 20
MOST_CONTEXT = 1 << 30
"""A larger bound is a way to say that there is none."""

ALSO_ORDINARY_TEXT = frozenset({"</s>"})
"""End tokens whose text is HTML too: an answer about HTML must not end there, and engines leave them out anyway."""

_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
_OTHER_CALLS = ("<function=", "<arg_key>", "<tool_call_begin>", "<|tool_call|>")
"""Marks of formats that share one of ours, but not what stands inside."""


class ModelFolderError(Exception):
    """A folder can't be used; the text is a sentence for the operator."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What a model's folder says. ``None`` where it says nothing.

    ``stop_texts`` are the texts of its end tokens. ``opens_with_reasoning``: its template writes the opening mark of
    the reasoning, unless asked otherwise. ``lacks`` are sentences for the operator about what is not possible for want
    of a file.
    """

    template: ChatTemplate | None
    tokenizer: TextTokenizer | None
    defaults: GenerationDefaults
    stop_texts: tuple[str, ...]
    context_tokens: int | None
    tool_style: ToolStyle | None
    reasoning: ReasoningMarks | None
    opens_with_reasoning: bool
    lacks: tuple[str, ...] = ()


def load_model_folder(path: Path | str, *, now: Clock = datetime.now) -> ModelFolder:
    """Read a folder. Takes up to seconds for a large vocabulary.

    Args:
        path: of the folder.
        now: the clock of templates that write the date.

    Raises:
        ModelFolderError: with a sentence for the operator.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ModelFolderError(f"{folder} is no folder: give the one that holds the model's tokenizer.json.")
    tokenizer_config = _json(folder / "tokenizer_config.json")
    generation = _json(folder / "generation_config.json")
    config = _json(folder / "config.json")
    special_tokens = _special_tokens(_json(folder / "special_tokens_map.json")) | _special_tokens(tokenizer_config)
    tokenizer = _tokenizer(folder)
    source, tool_source = _template_sources(folder, tokenizer_config)
    template = _template(folder, source, tool_source, special_tokens, now)
    if tokenizer is None and template is None:
        raise ModelFolderError(
            f"{folder} holds neither tokenizer.json nor a chat template: give the folder that came with the model."
        )
    ends = _end_tokens(folder, generation) or _end_tokens(folder, config)
    reasoning = _reasoning(source, template)
    found = ModelFolder(
        template=template,
        tokenizer=tokenizer,
        defaults=_defaults(folder / "generation_config.json", generation, ends),
        stop_texts=_stop_texts(ends, tokenizer, special_tokens.get("eos_token")),
        context_tokens=_context_tokens(config, tokenizer_config),
        tool_style=_tool_style(tool_source or source, template),
        reasoning=reasoning,
        opens_with_reasoning=reasoning is not None and reasoning.starts_open,
        lacks=tuple(_lacks(folder, tokenizer, template)),
    )
    for sentence in found.lacks:
        log.warning("%s", sentence)
    return found


# -- files -------------------------------------------------------------------------------------------------------------


def _text(path: Path, *, limit_bytes: int) -> str | None:
    """A file's text; None if there is no such file."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelFolderError(f"{path} can't be read: {error.strerror or error}.") from error
    if len(data) > limit_bytes:
        raise ModelFolderError(f"{path} is larger than {limit_bytes} bytes, which no such file is.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelFolderError(f"{path} is not written in UTF-8.") from error


def _json(path: Path) -> dict[str, Any]:
    """The object in a file, empty if there is no such file."""
    text = _text(path, limit_bytes=MOST_CONFIG_BYTES)
    if text is None:
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ModelFolderError(f"{path} is no valid JSON: line {error.lineno}, column {error.colno}.") from error
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path} holds no JSON object.")
    return value


def _tokenizer(folder: Path) -> TextTokenizer | None:
    source = _text(folder / "tokenizer.json", limit_bytes=MOST_TOKENIZER_BYTES)
    if source is None:
        return None
    try:
        return TextTokenizer(source)
    except BrokenTokenizer as error:
        raise ModelFolderError(f"{folder}: {error}") from error


def _lacks(folder: Path, tokenizer: TextTokenizer | None, template: ChatTemplate | None) -> Iterator[str]:
    if tokenizer is None:
        yield (
            f"{folder} holds no tokenizer.json: prompts can't be counted before they are sent. If the model came with "
            "another kind of tokenizer file, let the transformers library write this one."
        )
    if template is None:
        yield f"{folder} holds no chat template: only plain completions are possible with this model."


# -- the template ------------------------------------------------------------------------------------------------------


def _template_sources(folder: Path, tokenizer_config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """The template, and the one for requests with tools. A file of its own counts more than a field."""
    named = _named_templates(folder / "tokenizer_config.json", tokenizer_config)
    if not named:
        named = _named_templates(folder / "chat_template.json", _json(folder / "chat_template.json"))
    plain = _text(folder / "chat_template.jinja", limit_bytes=MOST_TEMPLATE_BYTES)
    with_tools = _text(folder / "additional_chat_templates" / "tool_use.jinja", limit_bytes=MOST_TEMPLATE_BYTES)
    if plain is not None:
        return plain, with_tools
    return named.get("default"), with_tools or named.get("tool_use")


def _named_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a file: one alone is the default."""
    value = config.get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, dict):
        value = [{"name": name, "template": source} for name, source in value.items()]
    if not isinstance(value, list) or not all(_is_named(entry) for entry in value):
        raise ModelFolderError(f"{path}: chat_template must be text, or a list of objects with name and template.")
    named = {entry["name"]: entry["template"] for entry in value}
    if "default" not in named:
        raise ModelFolderError(f"{path}: none of the chat templates is named default.")
    return named


def _is_named(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(field), str) for field in ("name", "template"))


def _template(
    folder: Path, source: str | None, tool_source: str | None, special_tokens: Mapping[str, str], now: Clock
) -> ChatTemplate | None:
    if source is None:
        return None
    try:
        return ChatTemplate(source, special_tokens=special_tokens, tool_source=tool_source, now=now)
    except BrokenTemplate as error:
        raise ModelFolderError(f"{folder}: {error}") from error


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The texts of special tokens by the names that templates use; each is text or an object that holds it."""
    tokens: dict[str, str] = {}
    for name, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens


def _tool_style(source: str | None, template: ChatTemplate | None) -> ToolStyle | None:
    """How the model writes tool calls, by the marks in its template; None if in no way that can be read."""
    if source is None or template is None or not template.tool_form.takes_tools:
        return None
    if any(mark in source for mark in _OTHER_CALLS):
        return None
    if "<tool_call>" in source:
        return ToolStyle.HERMES
    if "[TOOL_CALLS]" in source:
        return ToolStyle.MISTRAL
    if "<|python_tag|>" in source or re.search(r"""\\?["']parameters\\?["']\s*:""", source):
        return ToolStyle.LLAMA3
    return None


def _reasoning(source: str | None, template: ChatTemplate | None) -> ReasoningMarks | None:
    if source is None or template is None:
        return None
    marks = next(
        (marks for marks in (ReasoningMarks(), ReasoningMarks("[THINK]", "[/THINK]")) if marks.closes in source), None
    )
    if marks is None:
        return None
    prompt = template.render([{"role": "user", "content": "Hi"}])
    return ReasoningMarks(marks.opens, marks.closes, starts_open=prompt.rstrip().endswith(marks.opens))


# -- numbers -----------------------------------------------------------------------------------------------------------


def _end_tokens(folder: Path, config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids of end tokens: one, or a list."""
    value = _either(config, "eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise ModelFolderError(f"{folder}: eos_token_id must be the id of a token, or a list of ids.")
    return tuple(dict.fromkeys(ids))


def _either(config: Mapping[str, Any], field: str) -> Any:
    """A field of a config; models that take more than text keep it one level deeper."""
    inner = config.get("text_config")
    if config.get(field) is None and isinstance(inner, dict):
        return inner.get(field)
    return config.get(field)


def _stop_texts(ends: tuple[int, ...], tokenizer: TextTokenizer | None, eos_token: str | None) -> tuple[str, ...]:
    texts = [] if tokenizer is None else [tokenizer.text_of(token) for token in ends]
    found = dict.fromkeys(text for text in (*texts, eos_token) if text and text.strip())
    return tuple(text for text in found if text not in ALSO_ORDINARY_TEXT)


def _context_tokens(config: Mapping[str, Any], tokenizer_config: Mapping[str, Any]) -> int | None:
    """Of prompt and answer together."""
    bounds = [bound for field in _CONTEXT_FIELDS if (bound := _bound(_either(config, field)))]
    if not bounds:
        return _bound(tokenizer_config.get("model_max_length"))
    scaling = _either(config, "rope_scaling")
    return _scaled(min(bounds), scaling) if isinstance(scaling, dict) else min(bounds)


def _scaled(bound: int, scaling: Mapping[str, Any]) -> int:
    """The bound where positions are stretched; in other ways of doing so the config has the stretched bound already."""
    factor = scaling.get("factor")
    if not _is_real(factor, low=1):
        return bound
    match scaling.get("rope_type", scaling.get("type")):
        case "yarn":
            trained = _bound(scaling.get("original_max_position_embeddings")) or bound
            return max(bound, int(trained * factor))
        case "linear" | "dynamic":
            return int(bound * factor)
        case _:
            return bound


def _defaults(path: Path, generation: Mapping[str, Any], ends: tuple[int, ...]) -> GenerationDefaults:
    def number(field: str, is_good: Callable[[Any], bool], meaning: str) -> Any:
        value = generation.get(field)
        if value is not None and not is_good(value):
            raise ModelFolderError(f"{path}: {field} must be {meaning}.")
        return value

    top_k = number("top_k", lambda value: isinstance(value, int) and not isinstance(value, bool), "a whole number")
    return GenerationDefaults(
        temperature=number("temperature", lambda value: _is_real(value, low=0), "a number from 0 on"),
        top_p=number("top_p", lambda value: _is_real(value, low=0, high=1) and value > 0, "above 0 and at most 1"),
        top_k=top_k if top_k is not None and top_k > 0 else None,
        min_p=number("min_p", lambda value: _is_real(value, low=0, high=1), "a number from 0 to 1"),
        repetition_penalty=number(
            "repetition_penalty", lambda value: _is_real(value, low=0) and value > 0, "a number above 0"
        ),
        stop_token_ids=ends,
    )


def _bound(value: Any) -> int | None:
    return int(value) if _is_real(value, low=1, high=MOST_CONTEXT) else None


def _is_real(value: Any, *, low: float, high: float = math.inf) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high and value < math.inf
