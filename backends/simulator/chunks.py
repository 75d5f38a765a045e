"""Answers on the wire, byte for byte as vLLM's OpenAI server lays them out.

Chunks are joined from parts that were encoded before; whole bodies go through one `orjson.dumps`. Engine
extras (`prompt_token_ids`, `stop_reason`, `token_ids`, `kv_transfer_params`, `system_fingerprint`) are sent
because real engines send them and a gateway must cope. Pure.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from backends.simulator.answer import Choice, completion_logprobs
from backends.simulator.schema import Route
from backends.simulator.vocabulary import chat_fragment, text_fragment

DONE = b"data: [DONE]\n\n"

_OBJECTS = {Route.CHAT: b"chat.completion.chunk", Route.COMPLETION: b"text_completion"}
_BAD_USAGE = {"prompt_tokens": -7, "completion_tokens": "many", "total_tokens": 1.5}


class ChunkEncoder:
    """Encodes the events of one streamed answer.

    A middle chunk of choice `i` is `heads[i] + fragment + middle`, then, when usage is continuous,
    `usage(tokens)`, then `END`.
    """

    __slots__ = ("_preamble", "_route", "heads", "middle", "prompt_tokens", "usage_head")

    END = b"}\n\n"

    def __init__(
        self,
        route: Route,
        answer_id: str,
        created_s: int,
        model: str,
        fingerprint: str,
        choices: int,
        prompt_tokens: int,
    ) -> None:
        self._route = route
        self._preamble = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"system_fingerprint":%b,"choices":[' % (
            orjson.dumps(answer_id),
            _OBJECTS[route],
            created_s,
            orjson.dumps(model),
            orjson.dumps(fingerprint),
        )
        self.heads = [self._preamble + b'{"index":%d,' % index for index in range(choices)]
        self.middle = (
            b',"finish_reason":null,"token_ids":null}]'
            if route is Route.CHAT
            else b',"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}]'
        )
        self.prompt_tokens = prompt_tokens
        self.usage_head = b',"usage":{"prompt_tokens":%d,"total_tokens":' % prompt_tokens

    def usage(self, completion_tokens: int) -> bytes:
        """The usage part of a middle chunk: of the request's prompt and of this choice so far, as in vLLM."""
        total = self.prompt_tokens + completion_tokens
        return self.usage_head + b'%d,"completion_tokens":%d}' % (total, completion_tokens)

    def role(self, index: int, usage: bytes) -> bytes:
        """The chunk that opens a choice of a chat answer."""
        opening = b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]'
        return self.heads[index] + opening + b',"prompt_token_ids":null' + usage + self.END

    def finish(self, choice: Choice, fragment: bytes, usage: bytes) -> bytes:
        """The chunk that closes a choice."""
        reasons = b',"finish_reason":"%b","stop_reason":%b,"token_ids":null}]' % (
            choice.finish_reason.encode(),
            orjson.dumps(choice.stop_reason),
        )
        return self.heads[choice.index] + fragment + reasons + usage + self.END

    def empty_fragment(self) -> bytes:
        """The fragment of a closing chunk that carries no token."""
        return chat_fragment("") if self._route is Route.CHAT else text_fragment("")

    def final_usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk with no choices that ends a stream whose usage was asked for."""
        return self._preamble + b'],"usage":' + orjson.dumps(usage) + self.END


def usage_object(
    prompt_tokens: int, completion_tokens: int, *, cached_tokens: int | None, reasoning_tokens: int | None
) -> dict[str, Any]:
    """Usage of a whole request."""
    usage: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
    }
    if cached_tokens is not None:
        usage["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    if reasoning_tokens is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return usage


def bad_usage_object() -> dict[str, Any]:
    """Usage that no meter may believe."""
    return dict(_BAD_USAGE)


def whole_body(
    route: Route,
    answer_id: str,
    created_s: int,
    model: str,
    fingerprint: str,
    choices: Sequence[Choice],
    usage: dict[str, Any] | None,
) -> bytes:
    """The body of an answer that is not streamed."""
    body: dict[str, Any] = {
        "id": answer_id,
        "object": "chat.completion" if route is Route.CHAT else "text_completion",
        "created": created_s,
        "model": model,
        "choices": [_chat_choice(choice) if route is Route.CHAT else _text_choice(choice) for choice in choices],
        "service_tier": None,
        "system_fingerprint": fingerprint,
    }
    if usage is not None:
        body["usage"] = {"prompt_tokens_details": None, **usage}
    if route is Route.CHAT:
        body |= {"prompt_logprobs": None, "prompt_token_ids": None}
    body["kv_transfer_params"] = None
    return orjson.dumps(body)


def _chat_choice(choice: Choice) -> dict[str, Any]:
    text = "".join(choice.pieces)
    called = choice.tool_name is not None
    calls = [{"id": choice.tool_call_id, "type": "function", "function": {"name": choice.tool_name, "arguments": text}}]
    return {
        "index": choice.index,
        "message": {
            "role": "assistant",
            "content": None if called else text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "tool_calls": calls if called else [],
            "reasoning": "".join(choice.reasoning) or None,
        },
        "logprobs": {"content": choice.logprobs} if choice.logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": None,
    }


def _text_choice(choice: Choice) -> dict[str, Any]:
    return {
        "index": choice.index,
        "text": "".join(choice.pieces),
        "logprobs": completion_logprobs(choice.logprobs) if choice.logprobs else None,
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "token_ids": None,
        "prompt_logprobs": None,
        "prompt_token_ids": None,
    }
