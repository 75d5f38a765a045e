"""What a request asks for, read from its JSON and checked once.

Wrong requests are refused in the words and shapes of vLLM's OpenAI server. Unknown fields are ignored, as
vLLM does. Pure.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from backends.simulator.documents import document_text
from backends.simulator.options import BadOption, SimOptions, parse_options
from backends.simulator.refusal import Refusal
from backends.simulator.tokens import IMAGE_TOKENS, count_tokens, render_chat

Json = dict[str, Any]

MAX_CHOICES = 128
COMPLETION_DEFAULT_MAX_TOKENS = 16


class Route(StrEnum):
    """What an engine is asked for."""

    CHAT = "chat"
    COMPLETION = "completion"
    EMBEDDING = "embedding"


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the answer must call."""

    name: str
    parameters: Json


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A checked chat or text completion request.

    Attributes:
        prompts: rendered prompts, one for chat.
        prompt_tokens: of all prompts together, images included.
        max_tokens: limit of one choice; never more than the context leaves.
        top_logprobs: alternatives per token; None when no log probabilities were asked for.
        tool: the function that must be called, if any.
        json_schema: schema of a JSON answer; `{}` for any object; None for prose.
    """

    route: Route
    model: str
    prompts: tuple[str, ...]
    prompt_tokens: int
    stream: bool
    include_usage: bool
    continuous_usage: bool
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    n: int
    seed: int | None
    repeatable: bool
    stop: tuple[str, ...]
    top_logprobs: int | None
    tool: Tool | None
    json_schema: Json | None
    echo: bool


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """A checked embeddings request; `inputs` are texts, no model means the engine's first."""

    model: str | None
    inputs: tuple[str, ...]
    prompt_tokens: int
    dimensions: int | None
    base64: bool


def read_json(body: bytes) -> Json:
    """Parse a body that must be a JSON object.

    Raises:
        Refusal: 400.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        sentence = f"[{{'type': 'json_invalid', 'loc': ('body', {error.pos}), 'msg': 'JSON decode error'}}]"
        raise Refusal(400, sentence) from None
    if not isinstance(value, dict):
        raise Refusal(400, "[{'type': 'model_attributes_type', 'loc': ('body',), 'msg': 'Input should be an object'}]")
    return value


def read_options(value: Any) -> SimOptions:
    """The options in a `sim` object, none for None.

    Raises:
        Refusal: 400 for a wrong option.
    """
    try:
        return _SILENT if value is None else parse_options(value)
    except BadOption as error:
        raise Refusal(400, str(error), param="sim") from None


_SILENT = SimOptions()


def read_chat(body: Json, context_tokens: int) -> GenerationRequest:
    """Check a chat request. Raises: Refusal."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "must be a non-empty array")
    images = 0
    pairs: list[tuple[str, str]] = []
    for index, message in enumerate(messages):
        role, text, pictures = _message(message, index)
        pairs.append((role, text))
        images += pictures
    tools = body.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise _wrong("tools", "must be an array")
    prompt = render_chat(pairs, orjson.dumps(tools).decode() if tools else "")
    asked = _integer(body, "max_completion_tokens", 1)
    if asked is None:
        asked = _integer(body, "max_tokens", 1)
    top_logprobs: int | None = None
    if _flag(body, "logprobs"):
        top_logprobs = _integer(body, "top_logprobs", 0, 20) or 0
    return _generation(
        body,
        Route.CHAT,
        (prompt,),
        count_tokens(prompt) + images * IMAGE_TOKENS,
        asked=asked,
        context_tokens=context_tokens,
        top_logprobs=top_logprobs,
        tool=_tool(body.get("tool_choice"), tools),
        json_schema=_json_schema(body.get("response_format")),
        echo=False,
    )


def read_completion(body: Json, context_tokens: int) -> GenerationRequest:
    """Check a text completion request. Raises: Refusal."""
    prompts = _texts(body.get("prompt"), "prompt")
    asked = _integer(body, "max_tokens", 1)
    return _generation(
        body,
        Route.COMPLETION,
        prompts,
        sum(map(count_tokens, prompts)),
        asked=COMPLETION_DEFAULT_MAX_TOKENS if asked is None else asked,
        context_tokens=context_tokens,
        top_logprobs=_integer(body, "logprobs", 0, 20),
        tool=None,
        json_schema=_json_schema(body.get("response_format")),
        echo=_flag(body, "echo"),
    )


def read_embedding(body: Json, context_tokens: int) -> EmbeddingRequest:
    """Check an embeddings request. Raises: Refusal."""
    inputs = _texts(body.get("input"), "input")
    counts = [count_tokens(text) for text in inputs]
    if max(counts) > context_tokens:
        raise _too_long(context_tokens, max(counts))
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise _wrong("encoding_format", "must be 'float' or 'base64'")
    model = body.get("model")
    return EmbeddingRequest(
        model=model if isinstance(model, str) else None,
        inputs=inputs,
        prompt_tokens=sum(counts),
        dimensions=_integer(body, "dimensions", 1, 4096),
        base64=encoding == "base64",
    )


def _generation(
    body: Json,
    route: Route,
    prompts: tuple[str, ...],
    prompt_tokens: int,
    *,
    asked: int | None,
    context_tokens: int,
    top_logprobs: int | None,
    tool: Tool | None,
    json_schema: Json | None,
    echo: bool,
) -> GenerationRequest:
    longest = prompt_tokens if len(prompts) == 1 else max(map(count_tokens, prompts))
    left = context_tokens - longest
    if left < 1:
        raise _too_long(context_tokens, longest)
    if asked is not None and asked > left:
        raise Refusal(
            400,
            f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context length is "
            f"{context_tokens} tokens and your request has {longest} input tokens "
            f"({asked} > {context_tokens} - {longest}).",
            param="max_tokens",
        )
    stream = _flag(body, "stream")
    stream_options = body.get("stream_options")
    if stream_options is None:
        stream_options = {}
    elif not isinstance(stream_options, dict):
        raise _wrong("stream_options", "must be an object")
    elif not stream:
        raise _wrong("stream_options", "can only be defined when `stream=True`")
    temperature = _number(body, "temperature", 0, 2)
    seed = _integer(body, "seed", -(2**63), 2**63)
    return GenerationRequest(
        route=route,
        model=body["model"],
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        stream=stream,
        include_usage=_flag(stream_options, "include_usage"),
        # vLLM heeds it only beside include_usage.
        continuous_usage=_flag(stream_options, "include_usage") and _flag(stream_options, "continuous_usage_stats"),
        max_tokens=left if asked is None else asked,
        min_tokens=_integer(body, "min_tokens", 0) or 0,
        ignore_eos=_flag(body, "ignore_eos"),
        n=_integer(body, "n", 1, MAX_CHOICES) or 1,
        seed=seed,
        repeatable=seed is not None or temperature == 0,
        stop=_stop(body.get("stop")),
        top_logprobs=top_logprobs,
        tool=tool,
        json_schema=json_schema,
        echo=echo,
    )


def _message(message: Any, index: int) -> tuple[str, str, int]:
    """Role, text and number of images of one message."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise _wrong(f"messages.{index}.role", "must be a string")
    content = message.get("content")
    calls = message.get("tool_calls")
    tail = orjson.dumps(calls).decode() if calls else ""
    if content is None or isinstance(content, str):
        return message["role"], (content or "") + tail, 0
    if not isinstance(content, list):
        raise _wrong(f"messages.{index}.content", "must be a string or an array of parts")
    texts: list[str] = []
    images = 0
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise _wrong(f"messages.{index}.content", "has a part without a type")
        if part["type"] == "image_url":
            images += 1
        elif part["type"] == "file":
            texts.append(document_text(part.get("file")))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
    return message["role"], "\n".join(texts) + tail, images


def _texts(value: Any, name: str) -> tuple[str, ...]:
    """Texts out of a string, an array of strings, or token ids, each of which counts as a token."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, int) for item in value):
            return (_from_ids(value),)
        if all(isinstance(item, list) and item and all(isinstance(i, int) for i in item) for item in value):
            return tuple(_from_ids(item) for item in value)
    raise _wrong(name, "must be a string, an array of strings or an array of token ids")


def _from_ids(ids: list[int]) -> str:
    return "".join(f"<|{_letters(token)}|>" for token in ids)


def _letters(number: int) -> str:
    return "t" + "".join(chr(ord("a") + int(digit)) for digit in str(abs(number))[:20])


def _tool(choice: Any, tools: Any) -> Tool | None:
    """The function the answer has to call, if the request leaves no choice."""
    if not tools:
        return None
    if choice == "required":
        return first_tool(tools)
    if isinstance(choice, dict) and isinstance(choice.get("function"), dict):
        wanted = choice["function"].get("name")
        for tool in tools:
            found = first_tool([tool])
            if found is not None and found.name == wanted:
                return found
        raise _wrong("tool_choice", f"names the function {wanted!r}, which is not in `tools`")
    return None


def first_tool(tools: Any) -> Tool | None:
    """The first well-formed function of `tools`."""
    for tool in tools if isinstance(tools, list) else ():
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            return Tool(function["name"], parameters if isinstance(parameters, dict) else {})
    return None


def _json_schema(wanted: Any) -> Json | None:
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind == "json_schema" and isinstance(wanted.get("json_schema"), dict):
        schema = wanted["json_schema"].get("schema")
        return schema if isinstance(schema, dict) else {}
    raise _wrong("response_format", "must be of type 'text', 'json_object' or 'json_schema'")


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(item, str) for item in stops):
        raise _wrong("stop", "must be a string or an array of strings")
    return tuple(stop for stop in stops if stop)


def _integer(body: Json, name: str, low: int, high: int = 2**63) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _wrong(name, f"must be an integer of at least {low}" + (f" and at most {high}" if high < 2**63 else ""))
    return value


def _number(body: Json, name: str, low: float, high: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(name, f"must be a number from {low} to {high}")
    return value


def _flag(body: Json, name: str) -> bool:
    value = body.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(name, "must be true or false")


def _wrong(name: str, rule: str) -> Refusal:
    return Refusal(400, f"`{name}` {rule}.", param=name)


def _too_long(context_tokens: int, tokens: int) -> Refusal:
    return Refusal(
        400,
        f"This model's maximum context length is {context_tokens} tokens. However, your request has {tokens} input "
        "tokens. Please reduce the length of the input messages.",
        param="input_tokens",
    )
