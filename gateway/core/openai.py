"""Validation of what clients send to the OpenAI routes: a body in, a checked `Ask` or an `ApiError` out.

Floor: core (pure). Known fields are checked by a table, with the field named in the refusal. Unknown fields are kept
apart, because not every engine takes them; the few that reach into an engine's inside are dropped.
Sources: OpenAI API reference (chat, completions, embeddings); contract section 2.2 and rulings 19 and 20.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from backends.wire.request import Kind
from gateway.core import audio, errors
from gateway.core.errors import Refused

MAX_MESSAGES = 1000
MAX_COMPLETIONS = 8
MAX_INPUTS = 2048
MAX_TOOLS = 128
MAX_TOKENS = 10_000_000
MAX_IMAGES = 500
MAX_SOUNDS = 64
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
_PLAIN_ROLES = ROLES - {"tool"}
TEMPLATE_TOKENS_PER_MESSAGE = 32
"""Room for what a chat template writes around a message. No template seen so far needs half of it."""
TEMPLATE_TOKENS = 512
"""Room for what it writes once: a default system prompt, how tools are called."""
ANY_PROMPT_TOKENS = 1 << 31
"""The bound of a prompt whose bytes say nothing of its tokens; an endpoint's context is less."""
INDENTED_BYTES = 64 * 1024
"""Larger bodies with tools are not written anew to be measured: an indent may make a body hundreds of times longer."""
DEEPEST_BRACKETS = 250
"""Fewer brackets than this can't be nested deeper than orjson writes (254)."""

REACHES_INSIDE = frozenset(
    {
        "add_special_tokens", "best_of", "bootstrap_host", "bootstrap_port", "bootstrap_room", "cache_salt",
        "chat_template", "chat_template_kwargs_override", "custom_logit_processor", "custom_params",
        "data_parallel_rank", "disaggregated_params", "documents", "echo", "id_slot", "include_stop_str_in_output",
        "input_embeds", "input_ids", "kv_transfer_params", "logits_processors", "lora", "lora_path", "lora_request",
        "max_new_tokens", "media_io_kwargs", "mm_processor_kwargs", "n_predict", "priority", "prompt_embeds",
        "prompt_logprobs", "request_id", "return_hidden_states", "return_token_ids", "return_tokens_as_token_ids",
        "rid", "session_params", "use_beam_search", "vllm_xargs",
    }
)  # fmt: skip
"""Fields of engines that select internals, other templates, other bounds or unmetered work; never passed on."""

OUR_OWN = frozenset({"model", "stream", "stream_options", "user", "metadata", "store", "n", "service_tier"})
"""Known fields that the gateway answers itself or that mean nothing to an engine."""


@dataclass(frozen=True, slots=True)
class Media:
    """What a prompt holds besides text.

    Attributes:
        images: how many.
        audio_seconds: whole seconds of audio, each part rounded up.
        unknown_audio: where the first audio is whose length can't be told; its seconds are not counted.
        size_bytes: letters of base64 in all.
    """

    images: int = 0
    audio_seconds: int = 0
    unknown_audio: str | None = None
    size_bytes: int = 0


NO_MEDIA = Media()


@dataclass(slots=True)
class Ask:
    """A checked request.

    Not frozen, like all that is made anew for every request: setting a field of a frozen one takes four times as long.

    Attributes:
        model: what the client called the model, verbatim.
        known: fields of the OpenAI schema, to be passed on.
        extra: fields we don't know; only for engines that tolerate them.
        max_tokens: the caller's bound on completion tokens of one choice, if given.
        prompt_tokens_bound: no tokenizer makes more tokens than this of the prompt.
        media: images and audio that come along.
    """

    kind: Kind
    model: str
    stream: bool
    include_usage: bool
    known: dict[str, Any]
    extra: dict[str, Any]
    max_tokens: int | None
    completions: int
    prompts: int
    prompt_tokens_bound: int
    body_bytes: int
    media: Media = NO_MEDIA

    @property
    def text_bytes(self) -> int:
        """The size of the body without the images and the audio in it."""
        return self.body_bytes - self.media.size_bytes


def read_ask(kind: Kind, raw: bytes) -> Ask:
    """Check a body.

    Raises:
        Refused: 400, naming the field.
    """
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Refused(errors.malformed_json()) from None
    if not isinstance(body, dict):
        raise Refused(errors.malformed_json())
    if raw.count(b"[") + raw.count(b"{") > DEEPEST_BRACKETS:
        _check_depth(body)
    table = _TABLES[kind]
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _invalid("model", "must be the id of an endpoint, as text")
    if len(model) > 256:
        raise _invalid("model", "is longer than 256 characters")
    known: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for name, value in body.items():
        rule = table.get(name)
        if rule is None:
            extra[name] = value
            continue
        check, is_passed_on = rule
        if check is not None and value is not None:
            check(name, value)
            if is_passed_on:
                known[name] = value
    stream = bool(body.get("stream"))
    include_usage = False
    completions = 0
    if kind is not Kind.EMBEDDING:
        options = body.get("stream_options")
        if options is not None:
            include_usage = bool(options.get("include_usage"))
            if not stream:
                raise _invalid("stream_options", "may only be given when stream is true")
        completions = body.get("n") or 1
        if completions > 1:
            known["n"] = completions
    elif stream:
        raise _invalid("stream", "is not possible for embeddings")
    prompts = 1
    prompt_bound = len(raw) + 16
    media = NO_MEDIA
    if kind is Kind.CHAT:
        messages = _require(body, "messages")
        for message in messages:
            if message.get("content").__class__ is list:
                media = _media_of(messages)
                break
        prompt_bound = _chat_bound(len(raw), messages, body.get("tools"), media)
    elif kind is Kind.COMPLETION:
        prompts = _separate(_require(body, "prompt"))
        completions *= prompts
    else:
        prompts = _separate(_require(body, "input"))
    max_tokens = known.get("max_completion_tokens", known.get("max_tokens"))
    if kind is Kind.COMPLETION and max_tokens is None:
        max_tokens = 16  # the API's documented default for this route
    return Ask(
        kind=kind,
        model=model,
        stream=stream,
        include_usage=include_usage,
        known=known,
        extra=extra,
        max_tokens=max_tokens,
        completions=completions,
        prompts=prompts,
        prompt_tokens_bound=prompt_bound,
        body_bytes=len(raw),
        media=media,
    )


Check = Callable[[str, Any], None]

_NUMBERS = (int, float)
"""What JSON's numbers become; `bool` is neither."""


def _invalid(field: str, reason: str) -> Refused:
    return Refused(errors.invalid(field, reason))


def _require(body: Mapping[str, Any], name: str) -> Any:
    value = body.get(name)
    if value is None:
        raise _invalid(name, "is required")
    return value


def _separate(value: Any) -> int:
    """How many inputs a ``prompt`` or ``input`` field holds."""
    return len(value) if isinstance(value, list) and not isinstance(value[0], int) else 1


def _check_depth(body: dict[str, Any]) -> None:
    try:
        orjson.dumps(body)
    except TypeError:
        raise Refused(errors.too_deep()) from None


def _chat_bound(body_bytes: int, messages: list[dict[str, Any]], tools: list[Any] | None, media: Media) -> int:
    """No chat template makes more tokens of these; a token is at least a byte."""
    if media.size_bytes:
        return ANY_PROMPT_TOKENS  # a plain image of many pixels, or silence, has few bytes
    if tools and body_bytes > INDENTED_BYTES:
        return ANY_PROMPT_TOKENS
    # Some templates write tools with an indent of four, which is at most twice an indent of two.
    tool_bytes = 2 * len(orjson.dumps(tools, option=orjson.OPT_INDENT_2)) if tools else 0
    return body_bytes + tool_bytes + TEMPLATE_TOKENS + TEMPLATE_TOKENS_PER_MESSAGE * len(messages)


def _media_of(messages: list[dict[str, Any]]) -> Media:
    """Count the images and measure the audio of checked messages.

    Raises:
        Refused: 400, there are more of them than one request may hold.
    """
    images = seconds = size_bytes = sounds = 0
    unknown: str | None = None
    for spot, part in _parts_of(messages):
        if part["type"] == "image_url":
            images += 1
            size_bytes += len(part["image_url"]["url"])
        elif part["type"] == "input_audio":
            sounds += 1
            sound = part["input_audio"]
            size_bytes += len(sound["data"])
            if sounds > MAX_SOUNDS:
                break
            length_s = audio.seconds_of(sound["data"], sound["format"])
            seconds += length_s or 0
            unknown = f"{spot}.input_audio" if length_s is None and unknown is None else unknown
    if images > MAX_IMAGES:
        raise _invalid("messages", f"have more than {MAX_IMAGES} images")
    if sounds > MAX_SOUNDS:
        raise _invalid("messages", f"have more than {MAX_SOUNDS} parts of audio")
    return Media(images, seconds, unknown, size_bytes) if size_bytes else NO_MEDIA


def _parts_of(messages: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every content part, and where it is."""
    for number, message in enumerate(messages):
        if isinstance(message.get("content"), list):
            for position, part in enumerate(message["content"]):
                yield f"messages[{number}].content[{position}]", part


# -- checks of single fields ----------------------------------------------------------


def _number(low: float, high: float, *, above_low: bool = False) -> Check:
    def check(name: str, value: Any) -> None:
        if value.__class__ not in _NUMBERS:
            raise _invalid(name, "must be a number")
        if not low <= value <= high or (above_low and value == low):
            raise _invalid(name, f"must be {'above' if above_low else 'at least'} {low:g} and at most {high:g}")

    return check


def _integer(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if value.__class__ is not int:
            raise _invalid(name, "must be a whole number")
        if not low <= value <= high:
            raise _invalid(name, f"must be between {low} and {high}")

    return check


def _boolean(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise _invalid(name, "must be true or false")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise _invalid(name, "must be text")


def _object(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _invalid(name, "must be an object")


def _text_or_object(name: str, value: Any) -> None:
    if not isinstance(value, (str, dict)):
        raise _invalid(name, "must be text or an object")


def _one_of(*words: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in words:
            raise _invalid(name, f"must be one of {', '.join(words)}")

    return check


def _stop(name: str, value: Any) -> None:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or len(texts) > 4 or not all(isinstance(text, str) for text in texts):
        raise _invalid(name, "must be text or a list of up to 4 texts")


def _stream_options(name: str, value: Any) -> None:
    _object(name, value)
    if not isinstance(value.get("include_usage", False), bool):
        raise _invalid("stream_options.include_usage", "must be true or false")


def _logit_bias(name: str, value: Any) -> None:
    _object(name, value)
    if len(value) > 1024:
        raise _invalid(name, "has more than 1024 entries")
    for bias in value.values():
        _number(-100, 100)(name, bias)


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise _invalid(name, f"must be a list of up to {MAX_TOOLS} tools")
    for position, tool in enumerate(value):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(tool, dict) or tool.get("type") != "function" or not isinstance(function, dict):
            raise _invalid(f"tools[{position}]", "must be an object with type 'function' and a function")
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise _invalid(f"tools[{position}].function.name", "must be text")


def _messages(name: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        raise _invalid(name, "must be a list with at least one message")
    if len(value) > MAX_MESSAGES:
        raise _invalid(name, f"has more than {MAX_MESSAGES} messages")
    for position, message in enumerate(value):
        # Nearly all messages are one role and one text.
        if message.__class__ is dict and message.get("content").__class__ is str and len(message) == 2:
            role = message.get("role")
            if role.__class__ is str and role in _PLAIN_ROLES:
                continue
        _message(f"messages[{position}]", message)


def _message(where: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise _invalid(where, "must be an object with role and content")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise _invalid(f"{where}.role", f"must be one of {', '.join(sorted(ROLES))}")
    calls = message.get("tool_calls")
    if calls is not None and (role != "assistant" or not isinstance(calls, list)):
        raise _invalid(f"{where}.tool_calls", "must be a list, and only in an assistant's message")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise _invalid(f"{where}.tool_call_id", "is required in a tool's message")
    content = message.get("content")
    if content is None:
        if role == "assistant" and (calls or message.get("refusal")):
            return
        raise _invalid(f"{where}.content", "is required")
    if not isinstance(content, str):
        _content_parts(f"{where}.content", content)


def _content_parts(where: str, parts: Any) -> None:
    if not isinstance(parts, list) or not parts:
        raise _invalid(where, "must be text or a list of content parts")
    for position, part in enumerate(parts):
        spot = f"{where}[{position}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            if not isinstance(part.get("text"), str):
                raise _invalid(f"{spot}.text", "must be text")
        elif kind == "image_url":
            image = part.get("image_url")
            if not isinstance(image, dict) or not isinstance(image.get("url"), str):
                raise _invalid(f"{spot}.image_url.url", "must be text")
            # An engine that fetched any address would be a way into the operator's network.
            if not image["url"].startswith("data:image/"):
                raise _invalid(f"{spot}.image_url.url", "must be a data:image/… URL")
        elif kind == "input_audio":
            sound = part.get("input_audio")
            if not isinstance(sound, dict) or not isinstance(sound.get("data"), str) or not sound["data"]:
                raise _invalid(f"{spot}.input_audio.data", "must be audio in base64")
            if sound.get("format") not in audio.FORMATS:
                raise _invalid(f"{spot}.input_audio.format", f"must be one of {', '.join(audio.FORMATS)}")
        elif kind == "refusal":
            _text(f"{spot}.refusal", part.get("refusal"))
        else:
            raise _invalid(f"{spot}.type", "must be text, image_url or input_audio")


def _prompt(name: str, value: Any) -> None:
    _text_or_tokens(name, value, most=128)


def _input(name: str, value: Any) -> None:
    _text_or_tokens(name, value, most=MAX_INPUTS)


def _text_or_tokens(name: str, value: Any, *, most: int) -> None:
    if isinstance(value, str) and value:
        return
    if not isinstance(value, list) or not value:
        raise _invalid(name, "must be text, a list of texts or a list of token ids, and not empty")
    if all(isinstance(item, int) and not isinstance(item, bool) for item in value):
        return
    if len(value) > most:
        raise _invalid(name, f"has more than {most} entries")
    for item in value:
        is_tokens = isinstance(item, list) and item and all(isinstance(token, int) for token in item)
        if not is_tokens and not (isinstance(item, str) and item):
            raise _invalid(name, "must hold only texts or only lists of token ids, none empty")
    if len({type(item) for item in value}) > 1:
        raise _invalid(name, "must hold only texts or only lists of token ids, none empty")


_SAMPLING: dict[str, Check] = {
    "model": _text,
    "stream": _boolean,
    "stream_options": _stream_options,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, above_low=True),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "seed": _integer(-(2**63), 2**63 - 1),
    "stop": _stop,
    "max_tokens": _integer(1, MAX_TOKENS),
    "n": _integer(1, MAX_COMPLETIONS),
    "logit_bias": _logit_bias,
    "user": _text,
}

_CHECKS: dict[Kind, dict[str, Check]] = {
    Kind.CHAT: _SAMPLING
    | {
        "messages": _messages,
        "max_completion_tokens": _integer(1, MAX_TOKENS),
        "tools": _tools,
        "tool_choice": _text_or_object,
        "parallel_tool_calls": _boolean,
        "response_format": _object,
        "logprobs": _boolean,
        "top_logprobs": _integer(0, 20),
        "reasoning_effort": _one_of("none", "minimal", "low", "medium", "high", "xhigh"),
        "metadata": _object,
        "store": _boolean,
        "service_tier": _text,
    },
    Kind.COMPLETION: _SAMPLING | {"prompt": _prompt, "logprobs": _integer(0, 5), "suffix": _text},
    Kind.EMBEDDING: {
        "model": _text,
        "stream": _boolean,
        "input": _input,
        "encoding_format": _one_of("float", "base64"),
        "dimensions": _integer(1, 65536),
        "user": _text,
    },
}

_TABLES: dict[Kind, dict[str, tuple[Check | None, bool]]] = {
    kind: dict.fromkeys(REACHES_INSIDE | OUR_OWN, (None, False))
    | {name: (check, name not in OUR_OWN) for name, check in checks.items()}
    for kind, checks in _CHECKS.items()
}
"""Of each field its check and whether it is passed on; without a check it is dropped unread."""
